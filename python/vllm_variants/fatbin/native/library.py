"""The containers of libraries as they will be: PTX that devices would compile becomes cubins.

`plan_library` reads headers, `compile_libraries` compiles for all libraries at once (one queue, so
that the largest PTX of any comes first), and gives for each the new images of each container. A
container keeps its place and must not grow: what does not fit stays PTX, and is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vllm_variants.errors import Error, InputError
from vllm_variants.fatbin import codecs
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.codecs import Encoded, Encoding
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.native import cubin as cubins
from vllm_variants.fatbin.native import ptx as ptxs
from vllm_variants.fatbin.native import queue
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.image import cubin_image
from vllm_variants.fatbin.native.plan import Left, Need, images_beside, needs
from vllm_variants.fatbin.native.queue import Compiled, Failed, Job, Limits, Progress
from vllm_variants.fatbin.new_image import NewImage, recompressed
from vllm_variants.fatbin.rewrite import Images, containers_in, device_sections
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import Source, opened
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability

_SECTION = ".nv_fatbin"
"""What the driver loads. `__nv_relfatbin` is for linkers: its PTX is not whole programs."""


@dataclass(frozen=True)
class LibraryPlan:
    """What must be compiled for a library, and what cannot be. `options` are those of each need."""

    path: Path
    name: str
    devices: tuple[Capability, ...]
    needs: tuple[tuple[Need, tuple[str, ...]], ...]
    left: tuple[Left, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of PTX text of each need, for `schedule.total`."""
        return [need.image.original_size for need, _ in self.needs]


@dataclass(frozen=True)
class NativeCubin:
    """A cubin that took the place of PTX; sizes in bytes, `seconds` of CPU (0 from the cache)."""

    offset: int
    device: Capability
    ptx: str
    target: str
    kernels: int
    ptx_stored: int
    cubin: int
    stored: int
    compression: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class NativeLibrary:
    """What became of a library: `containers` by their offset in the source, as they will be."""

    plan: LibraryPlan
    containers: Mapping[int, Images]
    cubins: tuple[NativeCubin, ...]
    left: tuple[Left, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and reports, without the images."""
        return {
            "path": self.plan.name,
            "cubins": [{**asdict(cubin), "device": str(cubin.device)} for cubin in self.cubins],
            "left": [
                {
                    "offset": left.offset,
                    "device": str(left.device),
                    "ptx": str(left.ptx),
                    "reason": left.reason,
                }
                for left in self.left
            ],
        }


@dataclass(frozen=True)
class Native:
    """How PTX is compiled ahead of time; `progress` hears of each second and each end."""

    compiler: Compiler
    cache: Cache
    limits: Limits
    progress: Callable[[Progress], None] = lambda progress: None


def plan_tree(paths: Sequence[Path], root: Path, devices: Sequence[Capability]) -> list[LibraryPlan]:
    """The plans of those libraries below `root` that have PTX which one of the devices would compile.

    A library that cannot be read or is malformed has none: slimming says what is wrong with it.
    """
    plans = []
    for path in paths:
        with suppress(Error, OSError):
            plan = plan_library(path, devices, str(path.relative_to(root)))
            plans += [plan] if plan.needs or plan.left else []
    return plans


def compile_tree(
    paths: Sequence[Path], root: Path, devices: Sequence[Capability], rules: Rules, native: Native
) -> dict[Path, NativeLibrary]:
    """Compile what the libraries below `root` need, by their paths. Raises `ResourceError`."""
    made = compile_libraries(
        plan_tree(paths, root, devices), native.compiler, native.cache, native.limits,
        allowed=rules.encodings, keep_ptx=rules.keep_ptx, progress=native.progress,
    )  # fmt: skip
    return {library.plan.path: library for library in made}


def plan_library(path: Path, devices: Sequence[Capability], name: str | None = None) -> LibraryPlan:
    """Plan one library, by its headers; `name` is for people (default: the path).

    A file without device code has nothing to compile. Raises `Malformed`.
    """
    with opened(path) as source:
        found, left = _planned(source, devices) if elfs.is_elf64(source) else ([], [])
    return LibraryPlan(path, name or str(path), tuple(devices), tuple(found), tuple(left))


def _planned(
    source: Source, devices: Sequence[Capability]
) -> tuple[list[tuple[Need, tuple[str, ...]]], list[Left]]:
    found: list[tuple[Need, tuple[str, ...]]] = []
    left: list[Left] = []
    elf = elfs.parse(source)
    for section in device_sections(elf):
        for container in containers_in(source, section):
            wanted, ambiguous = needs(container, devices)
            left += ambiguous
            for need in wanted:
                if is_stub(source, need.image):
                    continue
                try:
                    if elfs.is_program(source, elf):
                        raise InputError("it is in a program, whose device code stays as it is")
                    if section.name != _SECTION:
                        raise InputError(f"it is in {section.name}: code to be linked, which no driver loads")
                    options = ptxs.compiler_options(ptxs.stored_options(source, need.image))
                    found.append((need, options))
                except InputError as error:
                    left.append(_left(need, error.message))
    return found, left


def compile_libraries(
    plans: Sequence[LibraryPlan],
    compiler: Compiler,
    cache: Cache,
    limits: Limits,
    *,
    allowed: Collection[Encoding],
    keep_ptx: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
    folder: Path | None = None,
) -> Iterator[NativeLibrary]:
    """Compile what all plans need; yields each library as soon as its last PTX has ended.

    `allowed` are the encodings that the release's driver reads; the smallest is taken.
    See `queue.compile_all` for the rest.
    """
    builds = [_Build(plan, frozenset(allowed), keep_ptx) for plan in plans]
    jobs: dict[int, tuple[_Build, Need]] = {}
    queued: list[Job] = []
    for build in builds:
        for need, options in build.plan.needs:
            job = _job(build.plan, need, options)
            jobs[id(job)] = build, need
            queued.append(job)
    yield from (build.finished() for build in builds if build.complete)
    for outcome in queue.compile_all(queued, compiler, cache, limits, progress=progress, folder=folder):
        build, need = jobs[id(outcome.job)]
        build.ended(need, outcome)
        if build.complete:
            yield build.finished()


def _job(plan: LibraryPlan, need: Need, options: tuple[str, ...]) -> Job:
    name = f"{plan.name} at {need.container.offset:#x} for {need.target.sm}"
    return Job(name, need.image.original_size, need.target, options, partial(_payload, plan.path, need.image))


def _payload(path: Path, image: Image) -> bytes:
    """The PTX at an image's place; raise `InputError` where it is not there any more."""
    try:
        with opened(path) as source:
            return codecs.raw_payload(source, image)
    except OSError as error:
        raise InputError(f"its library cannot be read any more ({error.strerror})") from error


@dataclass
class _Build:
    """A library whose PTX is being compiled; cubins are held as they will be stored."""

    plan: LibraryPlan
    allowed: frozenset[Encoding]
    keep_ptx: bool
    made: dict[tuple[int, Capability], NewImage] = field(default_factory=dict)
    rows: dict[tuple[int, Capability], NativeCubin] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    done: int = 0

    @property
    def complete(self) -> bool:
        return self.done == len(self.plan.needs)

    def ended(self, need: Need, outcome: Compiled | Failed) -> None:
        self.done += 1
        if isinstance(outcome, Failed):
            self.left.append(_left(need, outcome.reason))
            return
        if outcome.ptx.target != need.image.target:
            reason = f"its header says {need.image.target}, and its text {outcome.ptx.target}"
            self.left.append(_left(need, reason))
            return
        cubin = cubins.parse(outcome.cubin)
        new = cubin_image(cubin, need.target, _smallest(outcome, self.allowed), need.image)
        where = need.container.offset, need.device
        self.made[where] = new
        self.rows[where] = NativeCubin(
            *where, str(need.image.target), str(need.target), len(cubin.kernels), need.image.size,
            len(outcome.cubin), new.size, new.image.compression, round(outcome.seconds, 2), outcome.cached,
        )  # fmt: skip

    def finished(self) -> NativeLibrary:
        containers: dict[int, Images] = {}
        by_offset: dict[int, list[Need]] = {}
        for need, _ in self.plan.needs:
            if (need.container.offset, need.device) in self.made:
                by_offset.setdefault(need.container.offset, []).append(need)
        for offset, wanted in by_offset.items():
            if images := self._fitting(wanted):
                containers[offset] = images
        rows = tuple(self.rows[where] for where in sorted(self.rows))
        left = sorted((*self.plan.left, *self.left), key=lambda left: (left.offset, left.device))
        return NativeLibrary(self.plan, containers, rows, tuple(left))

    def _fitting(self, wanted: Sequence[Need]) -> Images | None:
        """What a container holds with as many of its new cubins as fit, the largest left out first.

        Where it is needed, images that stay are stored in less room too.
        """
        container = wanted[0].container
        room = container.size - container.header_size
        fitting = list(wanted)
        while fitting:
            for images in self._alternatives(fitting):
                takes = sum(image.size for image in images)
                if takes <= room:
                    return images
            largest = max(fitting, key=lambda need: self._new(need).size)
            fitting.remove(largest)
            del self.rows[container.offset, largest.device]
            beside = " beside its PTX" if self.keep_ptx else ""
            reason = f"its cubin{beside} does not fit in the container's room: {takes - room} bytes too many"
            self.left.append(_left(largest, reason))
        return None

    def _alternatives(self, wanted: Sequence[Need]) -> Iterator[Images]:
        """The container's images as they are, then with those that stay stored in less room."""
        images = self._images(wanted)
        yield images
        with suppress(InputError, OSError), opened(self.plan.path) as source:  # it may be gone meanwhile
            yield tuple(
                recompressed(source, image, self.allowed) if isinstance(image, Image) else image
                for image in images
            )

    def _images(self, wanted: Sequence[Need]) -> Images:
        """What the container holds with these needs met: each new cubin stands before its PTX's place."""
        container = wanted[0].container
        compiled = [need.device for need in wanted]
        kept = images_beside(container, self.plan.devices, compiled, self.keep_ptx)
        images: list[Image | NewImage] = []
        for image in container.images:
            images += [self._new(need) for need in wanted if need.image == image]
            images += [image] if image in kept else []
        return tuple(images)

    def _new(self, need: Need) -> NewImage:
        return self.made[need.container.offset, need.device]


def _smallest(outcome: Compiled, allowed: Collection[Encoding]) -> Encoded:
    """The cubin in the smallest of the encodings; what the cache has encoded is not encoded again."""
    stored = outcome.stored
    ready = [stored] if stored and stored.encoding in allowed else []
    others = [encoding for encoding in allowed if not (ready and encoding == ready[0].encoding)]
    ready += [codecs.smallest(outcome.cubin, others)] if others else []
    return min(ready, key=lambda encoded: len(encoded.padded))


def _left(need: Need, reason: str) -> Left:
    return Left(need.container.offset, need.device, need.image.target, reason)
