"""What the command line does, as functions: `vllm_variants` gives each of them by its name (docs/api.md).

Nothing here prints, answers signals or ends the process: talk goes to a callback, and a failure is an
`errors.Error`. What the operating system refuses where nobody expects it stays an `OSError`.

A function that has the name of a package (`audit`, `verify`) would be hidden by it, so those say what they
work on: `audit_path`, `verify_result`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_variants import data, documents
from vllm_variants.errors import Error, UsageError
from vllm_variants.model import matrix as matrix_files
from vllm_variants.model import offers, results
from vllm_variants.model.capability import Capability
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.model.variants import Matrix, Release, Variant
from vllm_variants.system import progress as progresses

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport
    from vllm_variants.builders.outcomes import Builder, Outcome
    from vllm_variants.export.report import Exported
    from vllm_variants.fatbin.native.library import Native
    from vllm_variants.fatbin.rules import Rules
    from vllm_variants.fatbin.tree import SlimReport
    from vllm_variants.machine.detection import Detection
    from vllm_variants.machine.gpus import Machine
    from vllm_variants.verify.judgement import JudgedCheck

PathLike = str | os.PathLike[str]
Device = str | Capability
"""A compute capability, or the word for one: `sm90`, `9.0`, `H100`."""

Say = Callable[[str], None]
"""Called with each line of talk: what a build does, what was taken for what."""


def _quiet(line: str) -> None:
    pass


def load_matrix(path: PathLike | None = None) -> Matrix:
    """Read the matrix of releases and variants: the one that comes with the package, or another file.

    The file is read anew each time, and nothing of the value can be changed. Raises `InputError`, which
    names the line, for a file that is broken.
    """
    return matrix_files.read(Path(path) if path is not None else data.root() / "variants.toml")


def read_result(path: PathLike) -> Result:
    """The result at `path`, a result-… link or the directory that it leads to.

    Raises `MissingError` when there is none, `DamagedError` when it is broken.
    """
    return results.read(Path(path))


def load_schema(document: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document, by its `schema`: `vllm-variants/audit/1`.

    Raises `UsageError` for a name that no document has; docs/json.md lists them.
    """
    return documents.schema(document)


def detect(
    release: str | Release | None = None, *, machine: Machine | None = None, matrix: Matrix | None = None
) -> Detection:
    """Which variants of a release (the default one if None) the GPUs of a machine need, and why.

    `machine` None: this one; the driver is asked, or the recording that VLLM_VARIANTS_MACHINE names is read.
    A machine without a GPU is no error here: `variants` is empty then, and `require()` raises.
    """
    from vllm_variants.machine import detection, gpus

    rows = matrix or load_matrix()
    return detection.detect(machine or gpus.machine(), rows, _release(release, rows))


# ── building ──


def request(
    variant: str | Variant,
    *,
    release: str | Release | None = None,
    links: PathLike = ".",
    index: str | None = None,
    python: PathLike | None = None,
    slim: bool = True,
    keep_ptx: bool = False,
    native: bool = False,
    compress: str | None = None,
    keep_symbols: bool = False,
    keep_unread: bool = False,
    without: Sequence[str] = (),
    bytecode: str = "serving",
) -> Request:
    """One variant to build, for `build_all`; the arguments are those of `build`."""
    from vllm_variants.builders.wheels.bytecode import Bytecode

    rows = load_matrix()
    chosen = _release(release, rows)
    row = variant if isinstance(variant, Variant) else rows.parse(variant, release=chosen).variant
    offers.require(rows, chosen, row)
    interpreter = Path(python) if python is not None else None
    return Request(
        row, chosen, Path(links), index, interpreter, slim, keep_ptx,
        native, _codec(compress), keep_symbols, keep_unread, tuple(without),
        _word("bytecode", bytecode, Bytecode),
    )  # fmt: skip


def build(
    variant: str | Variant,
    *,
    release: str | Release | None = None,
    links: PathLike = ".",
    index: str | None = None,
    python: PathLike | None = None,
    slim: bool = True,
    keep_ptx: bool = False,
    native: bool = False,
    compress: str | None = None,
    keep_symbols: bool = False,
    keep_unread: bool = False,
    without: Sequence[str] = (),
    bytecode: str = "serving",
    builder: Builder | None = None,
    say: Say = _quiet,
) -> Result:
    """Build a variant, or find it built, and link it as `links`/result-<variant>.

    `variant` is a row of the matrix or a word for one (`sm90`, `9.0`, `H100`), `release` the default one if
    None. `builder` is what builds it: published wheels if None, else one of `source_builder` or your own.
    `say` hears what is done.

    The rest is for published wheels. `index` is one more package index, `python` the interpreter to use.
    `slim` keeps only code that runs on the variant's SM; without it all stays as it was published.
    `keep_ptx`: one PTX a container stays, for later GPUs. `native`: PTX that the GPU's driver would compile
    is compiled now. `compress` is how the code is stored: `none`, `lz4`, `zstd`, or None for the smallest
    that the release's oldest driver reads. `keep_symbols`: sections that nothing loads stay. `keep_unread`:
    files that nothing opens stay; `without` names more files that go. `bytecode` is made for `all` modules,
    for those that `serving` imports, or for `none`.

    Raises an `Error`, and then nothing is linked: `UnsupportedError`, `MissingError`, `ResourceError`,
    `AuditError` or what the builder has.
    """
    requested = request(
        variant, release=release, links=links, index=index, python=python, slim=slim, keep_ptx=keep_ptx,
        native=native, compress=compress, keep_symbols=keep_symbols, keep_unread=keep_unread,
        without=without, bytecode=bytecode,
    )  # fmt: skip
    (outcome,) = build_all([requested], builder=builder, say=say)
    if outcome.path is None or not outcome.ok:
        raise outcome.error or Error(f"{requested.name} was not built: {outcome.status}")
    return results.read(outcome.path)


def build_all(
    requests: Sequence[Request],
    *,
    builder: Builder | None = None,
    say: Say = _quiet,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Build several variants; one outcome each, in their order, and to `done` as each is known.

    A variant that fails is an outcome with its `error`; the others are built all the same.
    """
    if builder is None:
        from vllm_variants.builders.wheels.builder import Wheels
        from vllm_variants.store import Store

        builder = Wheels(Store.default())
    with progresses.heard_by(say):
        return builder.build_all(requests, say, done)


def source_builder(
    flake: str | None = None,
    *,
    cores: int | None = None,
    max_jobs: int | None = None,
    retries: int = 0,
    logs: PathLike | None = None,
    keep_going: bool = True,
) -> Builder:
    """The builder that has this machine's Nix compile vLLM, for `build` and `build_all`.

    `flake` None: the checkout that this package is part of. `cores` a build and `max_jobs` builds at once
    are computed from memory if None; what failed is tried again `retries` times; the full logs go to the
    folder `logs`. Raises `MissingError` without Nix.
    """
    from vllm_variants.builders.source.nix import NixBuilder
    from vllm_variants.builders.source.options import Options
    from vllm_variants.nix import command

    folder = Path(logs) if logs is not None else None
    return NixBuilder(command.find(flake), Options(cores, max_jobs, keep_going, retries, folder))


# ── device code ──


def slim(
    path: PathLike,
    sm: Device | Sequence[Device],
    *,
    to: PathLike | None = None,
    in_place: bool = False,
    dry_run: bool = False,
    keep_ptx: bool = False,
    resources: bool = True,
    native: bool = False,
    compress: str | None = None,
    keep_symbols: bool = False,
    release: str | Release | None = None,
    link: bool = False,
    jobs: int | None = None,
    any_device: bool = False,
    say: Say = _quiet,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> SlimReport:
    """Keep the code that the devices `sm` run, in a library or in every library of a directory.

    `to` names the slimmed copy, which must not exist, `in_place` replaces the files themselves, and
    `dry_run` only says what would change; each new file is proven before it is there. `keep_ptx`: keep one
    PTX a container, for later GPUs; `resources`: also empty what cannot run in sections that mix code and
    tables; `native`, `compress` and `keep_symbols` are those of `build`, for the driver and the CUDA of
    `release`. `link`: files of a copied directory that stay the same are hard links; `jobs` processes work on
    a directory, one a core if None or 0. `progress` hears of bytes done, bytes in all and the library's name
    after each library of a directory, `say` of what `native` compiles.

    Raises `UsageError` for a device that no variant is for, unless `any_device`, `InputError` for a library
    that cannot be slimmed, `ResourceError` without room. Of a directory, what could not be read or written
    stays as it was and is among the report's `failed`.
    """
    from vllm_variants.fatbin.slim_path import slim_path

    if [to is not None, in_place, dry_run].count(True) != 1:
        raise UsageError(
            "say where the slimmed files go", hint="give one of to=PATH, in_place=True, dry_run=True"
        )
    if jobs is not None and jobs < 0:
        raise UsageError(f"{jobs} processes slim nothing", hint="jobs=None is one a core")
    rows = load_matrix()
    devices = _devices([sm] if isinstance(sm, str | Capability) else sm, any_device, rows)
    chosen = _release(release, rows)
    rules = _rules(chosen, keep_ptx, resources, compress, keep_symbols)
    with progresses.heard_by(say):
        return slim_path(
            Path(path),
            devices,
            rules,
            to=Path(to) if to is not None else None,
            native=_native(chosen, jobs, say) if native and not dry_run else None,
            link=link,
            jobs=jobs,
            dry_run=dry_run,
            progress=progress,
        )


def _devices(sm: Sequence[Device], any_device: bool, rows: Matrix) -> list[Capability]:
    devices = list(dict.fromkeys(_device(word, rows) for word in sm))
    if not devices:
        raise UsageError("no device to slim for", hint='name one: sm="sm90"')
    for device in devices:
        if not any_device and not rows.knows(device):
            raise UsageError(
                f"no variant is for {device.sm} (compute capability {device}): all code might be dropped",
                hint="any_device=True if you mean it",
            )
    return devices


def _rules(
    release: Release, keep_ptx: bool, resources: bool, compress: str | None, keep_symbols: bool
) -> Rules:
    from vllm_variants.fatbin.codecs import requested_codec
    from vllm_variants.fatbin.rules import Rules

    codec = requested_codec(_codec(compress), release.stack.driver)
    return Rules(keep_ptx, resources, codec, keep_symbols)


def _native(release: Release, jobs: int | None, say: Say) -> Native:
    from vllm_variants.builders.wheels import compilers, native

    return native.ahead(compilers.compiler(release.stack.cuda), say, jobs or None)


def audit_path(
    path: PathLike,
    sm: Device | None = None,
    *,
    release: str | Release | None = None,
    driver: str | None = None,
    closure: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> AuditReport:
    """Read every CUDA image in whatever `path` is, and judge it for `sm`.

    That is a library, wheel, folder, environment, wheelhouse, requirements lock, image (OCI layout or
    archive), result or store path. A result is judged for the SM and held to the release that it was built
    for, unless they are given; of anything else, images are only counted without `sm`. `driver` (`570.86`) is
    the version to judge for; None: this machine's, where it has such a GPU. `closure`: with all that a store
    path needs at run time. `progress` hears each library's name. Needs no GPU.

    `answer` of the report says whether it will run there, `passed` whether all code that must be there is.
    Raises `MissingError` or `InputError` for a `path` that cannot be read, `ResourceError` where no wheel of
    a lock can be reached; what cannot be read in it is a finding.
    """
    from vllm_variants import audit
    from vllm_variants.audit.audited_path import audited_paths
    from vllm_variants.audit.find import examined
    from vllm_variants.audit.subject import report_on
    from vllm_variants.audit.targets import identify
    from vllm_variants.audit.targets.found import Found, Kind

    rows, root = load_matrix(), Path(path)
    name = _release(release, rows).name if release is not None else None
    examined(root)
    (subject,) = audited_paths([root], _device(sm, rows) if sm is not None else None, name)
    if name and (subject.capability is None or not subject.whole):
        raise UsageError(
            f"{root} cannot be held to vLLM {name}",
            hint='name the device, sm="sm90", and the wheel or directory that holds all of the release',
        )
    if closure:
        roots = audit.closure(root)
        found = Found(Kind.STORE_PATH, audit.summaries(roots, progress), roots=tuple(map(str, roots)))
    else:
        found = identify.read(root, progress)
    report, _ = report_on(subject, found, _driver_for(driver)(subject.capability), rows)
    return report


def _driver_for(driver: str | None) -> Callable[[Capability | None], str | None]:
    """The driver that a device would run on: the one that is given, else this machine's for its own GPUs."""
    from vllm_variants.machine import gpus

    return lambda device: driver or (gpus.machine().driver_for(device) if device else None)


def report(
    what: PathLike | Sequence[PathLike],
    to: PathLike | None = None,
    *,
    sm: Device | None = None,
    driver: str | None = None,
    evidence: Sequence[PathLike] = (),
    advisories: Sequence[PathLike] = (),
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Write what is in a result, an audit or a batch of builds as one HTML file that needs nothing else.

    `what` is a variant (its `./result-…` is meant), a path as of `audit_path`, or a file that `--json` of
    `audit` or `build` printed; two are compared. `to` is the HTML file (None: none is written), `sm` and
    `driver` are as of `audit_path`. `evidence` are runs of checks (files that `verify --json` printed),
    `advisories` lists of them. Returns the document that the file holds, `vllm-variants/report/1`.

    Raises `UsageError` for what cannot stand in one report, and as `audit_path` does.
    """
    from vllm_variants.reports import advisories as lists
    from vllm_variants.reports import document, inputs, reading, runs
    from vllm_variants.reports.page import page
    from vllm_variants.system import reporting

    words = [what] if isinstance(what, str | os.PathLike) else list(what)
    device = _device(sm, load_matrix()) if sm is not None else None
    listed = [advisory for path in advisories for advisory in lists.read(Path(path))]
    with reading.of_others(map(Path, words), map(Path, evidence)):
        named = [inputs.read(os.fspath(word), device, progress, _driver_for(driver)) for word in words]
        made = document.report(named, document.Extra(runs.read(map(Path, evidence)), (), listed))
        html = page(made) if to is not None else ""
    if to is not None:
        reporting.write(Path(to), html)
    return made


# ── taking it elsewhere ──


def export_results(
    results: PathLike | Sequence[PathLike],
    to: str,
    *,
    python: PathLike | None = None,
    gzip: bool = False,
    base: str | None = None,
    push: str | None = None,
    all_wheels: bool = False,
    variants: bool = False,
    say: Say = _quiet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Export results, `result-…` links or directories, `to` a form: `folder:DIR`, `oci:DIR`, `wheels:DIR`, …

    The options are those of `vllm-variants export`, each of some forms only: `python` is the interpreter to
    include, `gzip` compresses layers for old pullers, `base` is the image to stand on, `push` the registry to
    copy to; `all_wheels` puts the published wheels into a wheelhouse too, `variants` makes variant wheels
    (a preview). `progress` hears of bytes done and bytes in all.

    Raises an `Error`, and then nothing is there: `UsageError` for a form that does not exist or a path that
    does, `DamagedError` and `UnsupportedError` for a result that cannot be taken, `ResourceError` without
    room.
    """
    from vllm_variants.export import destinations, forms, sources
    from vllm_variants.export.options import Options, Talk

    destination = destinations.parse(to)
    paths = [results] if isinstance(results, str | os.PathLike) else results
    found = sources.read([Path(path) for path in paths])
    if len(found) > 1 and destination.form not in forms.SEVERAL:
        raise UsageError(f"{destination.form}: takes one variant", hint="export them one by one")
    destinations.require_outside(destination, found)
    destinations.require_new(destination)
    interpreter = Path(python) if python is not None else None
    options = Options(
        python=interpreter, gzip=gzip, base=base, push=push, all_wheels=all_wheels, variants=variants
    )
    with progresses.heard_by(say):
        return forms.exporter(destination.form)(found, destination, options, Talk(say, progress))


# ── checks ──


def verify_result(
    result: PathLike | Result,
    *,
    only: Sequence[str] = (),
    seed: int | None = None,
    together: int = 1,
    time: float | None = None,
    logs: PathLike | None = None,
    native: bool = False,
) -> Iterator[JudgedCheck]:
    """Run GPU checks on a result, each in a process of the result's own interpreter; each as it ends.

    `only` has names, groups or patterns of checks (`moe`, `*fp8*`), `seed` is the inputs' (a fresh one if
    None); `together` checks share the GPU; after `time` seconds what is left is skipped; `logs` is a folder
    that keeps what failing checks print; `native` forbids the driver to compile. `summarise` says of all of
    them whether the result is good.

    Before it returns, raises `MissingError`, `InputError` or `UnsupportedError` where this result cannot be
    checked on this machine. However the iteration ends, no process is left.
    """
    from vllm_variants.machine import gpus
    from vllm_variants.verify import catalogue, judgement, preflight
    from vllm_variants.verify.options import run_options

    checks = catalogue.select(catalogue.read(), only)
    found = preflight.result(result.path if isinstance(result, Result) else Path(result))
    checked = preflight.checked_result(found, preflight.fitting(found, gpus.machine()), native=native)
    folder = Path(logs) if logs is not None else None
    options = run_options(seed=seed, together=together, time=time, logs=folder)
    release, sm = found.manifest.release, found.manifest.capability.sm
    return judgement.run_and_judge(checked, checks, options, release=release, sm=sm)


# ── words for things ──


def _release(release: str | Release | None, rows: Matrix) -> Release:
    return release if isinstance(release, Release) else rows.release(release)


def _device(sm: Device, rows: Matrix) -> Capability:
    if isinstance(sm, Capability):
        return sm
    try:
        return Capability.parse(sm)
    except ValueError:
        return rows.parse(sm).device


def _word(name: str, word: str, words: type[StrEnum]) -> str:
    """`word`, which must be one of `words`; `UsageError` says which there are."""
    try:
        return words(word).value
    except ValueError:
        raise UsageError(f"{name} is {word!r}", hint=f"give one of {', '.join(words)}") from None


def _codec(compress: str | None) -> str | None:
    from vllm_variants.fatbin.codecs import Codec

    return compress and _word("compress", compress, Codec)
