"""A wheelhouse: a folder of wheels for environments that people make themselves.

    requirements.txt       every package with its hashes: what pip and uv install
    *.whl                  the packages that the build changed, repacked; with `--all` the others too
    *-variants.json        which variants there are of a version; only with `--variants`
    export.json            what each wheel was made of
    sbom.cdx.json  licences/

Made aside and shown by one rename. The same results give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from vllm_variants.errors import Interrupted, UsageError, resource_error
from vllm_variants.export import (
    canonical_zip,
    changes,
    destinations,
    downloads,
    licences,
    packages,
    pins,
    published,
    report,
    sbom,
    variant_wheels,
    wheel_lists,
)
from vllm_variants.export.canonical_zip import WrittenWheel
from vllm_variants.export.changes import Changes
from vllm_variants.export.destinations import Destination
from vllm_variants.export.members import Member
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.packages import Package
from vllm_variants.export.pins import Pin
from vllm_variants.export.published import PublishedWheel
from vllm_variants.export.repack import Repack, text
from vllm_variants.export.report import Exported
from vllm_variants.model.results import Result
from vllm_variants.store import disk
from vllm_variants.system import new_folder

MANIFEST = "export.json"


@dataclass(frozen=True)
class _Contents:
    """What is known of one result's packages; `changes` and `pins` have only those with some."""

    result: Result
    packages: tuple[Package, ...]
    published: dict[str, PublishedWheel]
    changes: dict[str, Changes]
    pins: dict[str, tuple[Pin, ...]]


@dataclass(frozen=True)
class _Plan:
    """The wheels to write, each with its files, and the packages that stay as published."""

    repacks: tuple[tuple[Repack, tuple[Member, ...]], ...]
    kept: tuple[tuple[Package, PublishedWheel], ...]
    all_wheels: bool

    @property
    def bytes(self) -> int:
        """What the wheelhouse takes at most: no wheel is larger than its files."""
        repacked = sum(member.size for _, members in self.repacks for member in members)
        return repacked + (sum(wheel.size for _, wheel in self.kept) if self.all_wheels else 0)


def export(results: Sequence[Result], destination: Destination, options: Options, talk: Talk) -> Exported:
    """Make a wheelhouse of results; raises an `Error`, and then nothing is there."""
    results = sorted(results, key=lambda result: result.manifest.capability)
    _require_together(results, options)
    talk.say(licences.NOTICE)
    contents = [_contents(result) for result in results]
    plan = _plan(contents, options)
    destinations.require_room(destination, plan.bytes)
    try:
        with new_folder.aside(destination.path) as folder:
            facts = _fill(folder, contents, plan, options, talk)
            document = report.document(destination.form, results, facts)
            (folder / MANIFEST).write_text(report.text(document), encoding="utf-8")
            size, _ = disk.disk_use(folder)
            folder.chmod(0o755)
            disk.sync_file_system(folder)
            new_folder.publish(folder, destination.path)
            disk.sync_folder(destination.path.absolute().parent)
    except OSError as error:
        raise resource_error(error) from error
    return Exported(destination, tuple(results), size, facts)


def _require_together(results: Sequence[Result], options: Options) -> None:
    """Raise `UsageError` for results that cannot be in one wheelhouse."""
    first = results[0].manifest
    if len(results) > 1 and not options.variants:
        raise UsageError(
            "a wheelhouse holds one variant: pip would take the wheels of the highest SM for every GPU",
            hint="export them to folders of their own, or as variant wheels: --variants",
        )
    for result in results[1:]:
        other = result.manifest
        if (other.release, other.facts.get("lock")) != (first.release, first.facts.get("lock")):
            raise UsageError(
                f"{first.short} of release {first.release} and {other.short} of release {other.release} are "
                "made of different wheels",
                hint="put variants of one release and one platform into a wheelhouse",
            )


def _contents(result: Result) -> _Contents:
    found = packages.of_result(result)
    return _Contents(
        result,
        found,
        published.of_result(result, found),
        changes.of_result(result, found),
        pins.corrections(found, result.manifest),
    )


def _plan(contents: Sequence[_Contents], options: Options) -> _Plan:
    """Which packages are repacked: those that changed; as variants those that differ between SMs."""
    names = {name for each in contents for name in each.pins}
    for each in contents:
        names |= {name for name, made in each.changes.items() if made.device or not options.variants}
    repacks = [
        _repack(each, package, options.variants)
        for each in contents
        for package in each.packages
        if package.name in names
    ]
    kept = [(p, contents[0].published[p.name]) for p in contents[0].packages if p.name not in names]
    return _Plan(
        tuple((repack, tuple(repack.members())) for repack in repacks), tuple(kept), options.all_wheels
    )


def _repack(contents: _Contents, package: Package, variants: bool) -> Repack:
    manifest, name = contents.result.manifest, package.name
    label = variant_wheels.label(manifest)
    more = {variant_wheels.FILE: text(variant_wheels.document([manifest])).encode()} if variants else {}
    return Repack(
        package,
        contents.published[name],
        manifest,
        contents.changes.get(name, Changes()),
        contents.pins.get(name, ()),
        local="" if variants else label,
        label=label if variants else "",
        more=more,
    )


def _fill(
    folder: Path, contents: Sequence[_Contents], plan: _Plan, options: Options, talk: Talk
) -> dict[str, object]:
    """Write all of a wheelhouse but its manifest; the facts of that."""
    wheels = [
        wheel_lists.Repacked(repack, written)
        for (repack, _), written in zip(plan.repacks, _written(folder, plan, talk), strict=True)
    ]
    if options.all_wheels:
        talk.say(f"fetching {len(plan.kept)} published wheels, which were not changed")
        python = contents[0].result.manifest.facts["stack"]["python"]
        _fetch(folder, plan, python)
    if options.variants:
        manifests = [each.result.manifest for each in contents]
        index = text(variant_wheels.document(manifests))
        for stem in {repack.stem for repack, _ in plan.repacks}:
            (folder / variant_wheels.index_file(stem)).write_text(index, encoding="utf-8")
    requirements = wheel_lists.requirements(contents[0].result.manifest, wheels, plan.kept, options)
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    _write_facts(folder, contents, wheels, plan)
    return wheel_lists.facts(wheels, plan.kept, options)


def _written(folder: Path, plan: _Plan, talk: Talk) -> list[WrittenWheel]:
    """Write the repacked wheels, the largest first, as many at once as there are processors."""
    stop, lock, done = Event(), Lock(), [0]
    total = sum(member.size for _, members in plan.repacks for member in members)

    def advance(count: int) -> None:
        if stop.is_set():
            raise Interrupted
        with lock:
            done[0] += count
            talk.advance(done[0], total)

    def write(index: int) -> WrittenWheel:
        repack, members = plan.repacks[index]
        advance(0)
        return canonical_zip.write(folder / repack.file, members, repack.record, advance)

    sizes = [sum(member.size for member in members) for _, members in plan.repacks]
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            found = dict(zip(order, pool.map(write, order), strict=True))
        finally:
            stop.set()  # of an error or an interruption: the others end at their next block
    return [found[index] for index in range(len(sizes))]


def _fetch(folder: Path, plan: _Plan, python: str) -> None:
    aside = folder / ".fetching"
    aside.mkdir()
    wheels = [(package.spelled, wheel) for package, wheel in plan.kept]
    downloads.fetch(wheels, python, folder, aside)
    for path in aside.iterdir():
        path.unlink()
    aside.rmdir()


def _write_facts(
    folder: Path, contents: Sequence[_Contents], wheels: Sequence[wheel_lists.Repacked], plan: _Plan
) -> None:
    """The bill of materials and the licences."""
    first = contents[0]
    repacked = {wheel.repack.package.name: wheel for wheel in wheels}
    parts = [
        sbom.Part(
            package,
            repacked[package.name].repack.changes if package.name in repacked else Changes(),
            repacked[package.name].repack.version if package.name in repacked else package.version,
            repacked[package.name].written.sha256
            if package.name in repacked and len(contents) == 1
            else first.published[package.name].sha256,
        )
        for package in first.packages
    ]
    bill = sbom.text([each.result.manifest for each in contents], parts)
    (folder / sbom.FILE).write_text(bill, encoding="utf-8")
    licences.write(folder, first.packages, repacked.keys())
