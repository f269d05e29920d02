"""What every variant of every release holds and weighs, rule by rule: one JSON document, for docs' tables.

    python bench/variants.py [--release V …] [--variant sm90 …] [--system SYSTEM] [--out FILE]
                             [--work DIR] [--native [--compile]] [--times REPORT …] [--against RESULT …]

For each release the published wheels are installed once (hard links into uv's cache) and the files that
nothing reads go, as in a build. Then each variant is planned as `build` would make it: the same functions,
in a dry run, so that nothing is written, and its containers are judged as the audit does. Bytecode is made
once for a release and system; `--system aarch64-linux` measures the other platform, of which all but
running it works here. `--native` plans `build --native` too, for the variants whose PTX is in the cache of
cubins already (`VLLM_VARIANTS_CUBINS`), or with `--compile` for all; `--times` are reports of
`bench/cubins.py compile`, which know what compiling took.

FILE keeps what it has of other variants and releases, and of these where nothing that decides them changed,
so a run that was stopped goes on. With `--against`, a result that was really built
is compared: every figure of its manifest must be the planned one (`same`), but for the size of the whole,
which also counts its reports and RECORDs.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import checkout
import cubins
import published

from vllm_variants.audit import collect, contents, judge
from vllm_variants.audit.report import WORTH_DROPPING
from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import (
    bytecode,
    compilers,
    device_code,
    launchers,
    locks,
    native,
    unread,
)
from vllm_variants.builders.wheels.builder import PIPELINE
from vllm_variants.builders.wheels.bytecode import Bytecode
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.native import cache as caches
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.rewrite import device_sections, rewrites
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.tree import SlimReport, slim_tree
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix, offers
from vllm_variants.model.capability import Capability, Fit, Target
from vllm_variants.model.platforms import SYSTEMS
from vllm_variants.model.requests import Request
from vllm_variants.model.variants import Matrix, Release, Variant
from vllm_variants.store import disk_use

DOCUMENT = checkout.ROOT / "docs" / "measurements-variants.json"
SCHEMA = 1
Key = tuple[str, str, tuple[str, ...]]
"""A compilation: the PTX's sha256, the target, the options."""
Times = Mapping[str, float]
"""CPU seconds of compilations, by the names that `bench/cubins.py` gives them."""


class Published:
    """A release's wheels without the files that nothing reads, and what a system's variants share."""

    def __init__(self, release: Release, work: Path, system: str) -> None:
        self.release, self.tree = release, Path(work, f"published-{release.name}-{system}")
        published.install(release, self.tree, system)
        self.site = self.tree / "lib" / f"python{release.stack.python}" / "site-packages"
        interpreter = interpreters.find(release.stack.python)
        launchers.write(self.tree, interpreter.path, release.stack.python)
        self.installed, _ = disk_use(self.tree)
        planned = unread.plan(self.site, unread.load())
        unread.apply(self.site, planned)
        self.files = planned.saved
        steps = Steps(lambda line: None)
        bytecode.write(steps, Bytecode.SERVING, interpreter, self.site)
        self.bytecode = int(steps.done[-1].facts["bytes"])  # type: ignore[call-overload]
        for folder in list(self.site.rglob("__pycache__")):
            shutil.rmtree(folder)

    def request(self, variant: Variant) -> Request:
        """What `build VARIANT` asks for."""
        return Request(variant, self.release, self.tree.parent)

    def identity(self, variant: Variant) -> dict[str, Any]:
        """All that decides the figures: a row of another one is made anew."""
        lock = locks.find(self.release, variant.system).digest
        rules = device_code.rules_of(self.request(variant)).identity
        return {"pipeline": PIPELINE, "lock": lock, "rules": rules, "unread": unread.digest_of_list()}


def planned(release: Published, variant: Variant) -> dict[str, Any]:
    """A variant as `build` makes it: bytes rule by rule, and its containers."""
    started, cpu = time.monotonic(), _cpu()
    request = release.request(variant)
    report = slim_tree(release.tree, [variant.capability], device_code.rules_of(request), dry_run=True)
    facts = _bytes(release, report)
    facts |= {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(_cpu() - cpu, 1)}
    known = contents.load(release.release.name, variant.system)
    fits, jit, foreign = Counter[str](), 0, 0
    slimmed = {file.path for file in report.changed if file.saved["images"]}
    audited = collect([release.tree], variant.capability)
    for library in audited:
        fits.update({str(key): count for key, count in library.fits.items()})
        jit += len({container.offset for container in library.jit})
        left = _foreign_left(release.tree / library.path, variant.capability)
        foreign = max(foreign, left if library.path in slimmed else library.foreign)
    missing = judge((), audited, variant.capability, known).missing
    facts["containers"] = dict(fits) | {"jit": jit}
    facts["verdict"] = (
        "missing" if missing else "foreign" if foreign >= WORTH_DROPPING else "jit" if jit else "pass"
    )
    waiting = native.waiting(release.tree, variant.capability).as_dict()
    shared = {"unread": release.files, "bytecode": release.bytecode, "identity": release.identity(variant)}
    return {**facts, **shared, "waiting": waiting}


def _bytes(release: Published, report: SlimReport) -> dict[str, Any]:
    """Bytes after each rule; the last is the whole result but for its RECORDs' and reports' few bytes."""
    saved, links = report.saved_by_rule, release.installed - release.files - report.before
    images = release.installed - saved["images"] - saved["native"]
    compress = images - saved["compress"]
    symbols = compress - saved["symbols"]
    files = symbols - release.files
    assert files == report.after + links, (files, links, report)
    result = files + release.bytecode
    return {
        "installed": release.installed, "images": images, "compress": compress, "symbols": symbols,
        "files": files, "after": report.after, "before": report.before, "result": result,
        "ratio": round(result / release.installed, 4), "saved": saved,
        "libraries": sum(file.changed for file in report.files),
    }  # fmt: skip


def _foreign_left(path: Path, device: Capability) -> int:
    """Bytes that cannot run on the device and that slimming leaves in a library's code sections."""
    left = 0
    with opened(path) as source:
        for section in device_sections(elfs.parse(source)) if elfs.is_elf64(source) else ():
            for change in rewrites(source, section, [device]):
                kept = kept_images(change.container, [device])
                images = [image for image in change.images if isinstance(image, Image) and image.known]
                left += sum(image.size for image in images if image not in kept)
    return left


def planned_native(
    release: Published, variant: Variant, facts: dict[str, Any], times: Times, compiling: bool
) -> dict[str, Any]:
    """The same with `--native`; `facts` are those without. Only counts what the cache lacks."""
    compiler = compilers.compiler(release.release.stack.cuda)
    needed: dict[Key, int] = {}
    known: dict[Key, float] = {}
    cache, absent = caches.Cache(caches.default_folder()), set[Key]()
    for text, content in cubins.planned(release.release.name, release.tree, [variant.capability]):
        key = text.sha256, text.target, text.options
        needed[key] = text.size
        name = f"{text.wanted_by[0]} for {text.target}"
        known |= {key: times[name]} if name in times else {}
        if not cache.path(caches.key_of(content, Target.parse(text.target), text.options, compiler)).exists():
            absent.add(key)
    counts = {
        "ptx": facts["containers"]["jit"], "compilations": len(needed), "ptx_bytes": sum(needed.values()),
        "cpu_seconds": round(sum(known.values())), "cpu_seconds_known_for": len(known),
        "in_cache": len(needed) - len(absent),
    }  # fmt: skip
    if absent and not compiling:
        return counts
    started = time.monotonic()
    ahead = native.ahead(compiler, lambda line: print(line, file=sys.stderr))
    rules = device_code.rules_of(release.request(variant))
    report = slim_tree(release.tree, [variant.capability], rules, native=ahead, dry_run=True)
    compiled = sum(len(library.containers) for library in report.native)
    left = [(library.plan.name, left.reason) for library in report.native for left in library.left]
    fits = Counter(facts["containers"])
    fits[str(Fit.NATIVE)] += compiled
    fits["jit"] -= compiled
    verdict = "pass" if facts["verdict"] == "jit" and not fits["jit"] else facts["verdict"]
    return {
        **counts, **_bytes(release, report), "seconds": round(time.monotonic() - started, 1),
        "containers": dict(fits), "verdict": verdict, "compiler": compiler.as_dict(),
        "left": [{"library": name, "reason": reason} for name, reason in left],
    }  # fmt: skip


def times_of(reports: Sequence[Path]) -> Times:
    """What reports of `bench/cubins.py compile` know."""
    found: dict[str, float] = {}
    for path in reports:
        found |= {
            job["name"]: job["cpu_seconds"] for job in json.loads(path.read_text(encoding="utf-8"))["each"]
        }
    return found


def differences(facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where the plan and a real result's manifest are not the same; empty: nowhere."""
    steps = {step["name"]: step for step in manifest["steps"]}
    chosen = facts["native"] if "native" in steps["slim"] else facts
    audit = steps["audit"]
    pairs = {
        "installed": (chosen["installed"], manifest["bytes"]["installed"]),
        "before": (chosen["before"], steps["slim"]["before"]),
        "after": (chosen["after"], steps["slim"]["after"]),
        "saved": (chosen["saved"], steps["slim"]["saved"]),
        "libraries": (chosen["libraries"], steps["slim"]["libraries"]),
        "unread": (facts["unread"], steps["files"]["saved"]),
        "bytecode": (facts["bytecode"], steps["bytecode"]["bytes"]),
        "jit": (chosen["containers"]["jit"], audit["totals"]["jit_containers"]),
        "verdict": (chosen["verdict"], audit["verdict"]),
    }
    found = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    rest = manifest["bytes"]["result"] - chosen["result"]
    return found | ({"rest of the result": rest} if abs(rest) > 3_000_000 else {})


def _chosen(rows: Matrix, release: Release, given: argparse.Namespace) -> list[Variant]:
    """Those that the release has code for on the system, or the named ones of them."""
    offered = [v for v in offers.of(rows, release).values() if v.system == given.system]
    return [variant for variant in offered if not given.variant or variant.short in given.variant]


def _in_order(found: Mapping[str, Any], rows: Matrix) -> dict[str, Any]:
    """Releases and variants in the matrix's order."""
    return {
        release: {v.short: found[release][v.short] for v in rows.every_variant if v.short in found[release]}
        for release in rows.releases
        if release in found
    }


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", nargs="*", help="default: all")
    parser.add_argument("--variant", nargs="*", help="default: all that the release has code for")
    parser.add_argument("--system", choices=SYSTEMS, default=published.SYSTEM)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--work", type=Path, help="a folder on the disk of uv's cache")
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--compile", action="store_true", help="what the cache of cubins lacks, hours of it")
    parser.add_argument("--times", nargs="*", type=Path, default=[], help="reports of bench/cubins.py")
    parser.add_argument(
        "--against", nargs="*", type=Path, default=[], help="built results, or their manifests"
    )
    given = parser.parse_args()
    rows, times = matrix.load(), times_of(given.times)
    document: dict[str, Any] = {"schema": SCHEMA, "rows": {}}
    if given.out.exists():
        document = json.loads(given.out.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="vllm-variants-bench.", dir=given.work) as work:
        for release in [rows.release(name) for name in given.release or rows.releases]:
            installed = Published(release, Path(work), given.system)
            for variant in _chosen(rows, release, given):
                where = document["rows"].setdefault(release.name, {})
                facts = where.get(variant.short, {})
                if facts.get("identity") != installed.identity(variant):
                    facts = planned(installed, variant)
                if given.native:
                    facts["native"] = planned_native(installed, variant, facts, times, given.compile)
                where[variant.short] = facts
                document["rows"] = _in_order(document["rows"], rows)
                given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                print(release.name, variant.short, json.dumps(facts), flush=True)
    for result in given.against:
        path = result if result.is_file() else result / "share/vllm-variants/manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = differences(document["rows"][manifest["release"]][manifest["short"]], manifest)
        print(result.name, found or "same as planned", flush=True)


if __name__ == "__main__":
    main()
