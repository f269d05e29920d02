"""What folders, archives and images share: a result's tree with a Python of its own, and facts about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_variants.export import facts as facts_of_parts
from vllm_variants.export import interpreter, licences, packages, report, sources, tree
from vllm_variants.export.destinations import Form
from vllm_variants.export.interpreter import Runtime
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.others import Other
from vllm_variants.export.tree import Text, Tree
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.results import Result

_FORMS = {Form.TAR: Form.FOLDER, Form.OCI_ARCHIVE: Form.OCI}
"""What is in an archive is what is in a folder: the same bytes, with the same manifest."""


@dataclass(frozen=True)
class Portable:
    """A result, the Python that it runs with, and the plan of both in one tree.

    `licence` is that of all that is in it, an SPDX expression.
    """

    result: Result
    runtime: Runtime
    tree: Tree
    licence: str = ""

    @property
    def name(self) -> str:
        """`vllm-python312-cuda12_9-sm90-0.13.0`: what it is called where it lies beside others."""
        return f"{self.result.manifest.variant}-{self.result.manifest.release}"


def prepared(
    results: Sequence[Result],
    form: Form,
    options: Options,
    talk: Talk,
    folder: Path,
    others: Sequence[Other] = (),
) -> list[Portable]:
    """The results, each with its Python in `folder`, which must last as long, and all that they carry.

    Results of one Python version share it; `others` is what the export has besides. Raises
    `UnsupportedError` for a result of another platform, and what `interpreter` raises.
    """
    chosen: dict[Path, Interpreter] = {}
    runtimes: dict[Interpreter, Runtime] = {}
    made: list[Portable] = []
    for result in results:
        sources.require_this_platform(result)
        own = interpreter.own(result)
        if own not in chosen:
            chosen[own] = interpreter.chosen(result, options.python, talk.say)
        python = chosen[own]
        if python not in runtimes:
            talk.say(f"taking Python {python.version} along ({python.path}) …")
            place = folder / f"python{len(runtimes)}"
            runtimes[python] = interpreter.take(python, place, talk.say)
        recorded = packages.recorded(packages.of_result(result), result.path)
        planned = Portable(result, runtimes[python], tree.plan(result, runtimes[python], recorded))
        made.append(_with_facts(planned, form, folder / f"facts{len(made)}", others))
    talk.say(licences.NOTICE)
    return made


def _with_facts(portable: Portable, form: Form, folder: Path, others: Sequence[Other]) -> Portable:
    """With the manifest of the export, the bill of materials and the licences of what is in it."""
    folder.mkdir()
    licence = facts_of_parts.write(portable.result, folder, [*portable.runtime.parts, *others])
    facts = report.document(_FORMS.get(form, form), [portable.result], {"python": portable.runtime.as_dict()})
    manifest = Text(str(report.MANIFEST), report.text(facts).encode())
    about = tree.scanned(folder, str(report.MANIFEST.parent))
    launchers = sorted((*portable.tree.launchers, manifest, *about), key=lambda entry: entry.path)
    return replace(portable, tree=replace(portable.tree, launchers=tuple(launchers)), licence=licence)
