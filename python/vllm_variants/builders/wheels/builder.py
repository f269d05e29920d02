"""The default builder: published wheels, hash-locked, slimmed to one SM. Needs no Nix, no compiler.

    lock → install (uv) → files → slim → records → bytecode → audit → manifest → publish → link

Everything up to `publish` happens in a folder of its own; a build that ends early leaves nothing
but uv's cache of what it had downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.builders.outcomes import Done, Outcome, Status, one_after_another, outcome_of
from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import (
    bytecode,
    compilers,
    device_code,
    files,
    installation,
    installed,
    launchers,
    locks,
    native,
    shared_bytecode,
    unread,
)
from vllm_variants.builders.wheels import manifest as manifests
from vllm_variants.builders.wheels.bytecode import Bytecode
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.errors import Error, UnsupportedError, resource_error
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.machine import c_library, interpreters
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import DamagedError, Result
from vllm_variants.store import Store, disk_use
from vllm_variants.system import links
from vllm_variants.system.progress import Say

# Part of every result's hash: raise it when the same inputs give another result.
PIPELINE = 6
# Where a result for another platform expects its interpreter, unless --python says otherwise.
FOREIGN_HOME = Path("/usr/bin")


@dataclass(frozen=True)
class _Inputs:
    """All that decides a result; `compiler` is the ptxas of a native one."""

    request: Request
    lock: Lock
    interpreter: Interpreter
    compiler: Compiler | None

    @property
    def foreign(self) -> bool:
        """Whether it is for another platform than this one."""
        return self.lock.system != host_system()

    @property
    def entry(self) -> str:
        """The name that the result has in the store: a hash of its inputs, and what it is."""
        request, interpreter = self.request, self.interpreter
        facts = {
            "pipeline": PIPELINE,
            "variant": request.name,
            "release": request.release.name,
            "lock": self.lock.digest,
            "index": request.index if self.lock.index_only else None,
            "python": [str(interpreter.path), interpreter.version, str(request.python)],
            "bytecode": bytecode.identity(Bytecode(request.bytecode)),
            "slim": request.slim and device_code.rules_of(request).identity,
            "native": self.compiler.as_dict() if self.compiler else None,
            "files": request.slim
            and not request.keep_unread
            and [unread.digest_of_list(), *sorted(request.without)],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return f"{digest}-{request.name}-{request.release.name}"

    def describe(self) -> str:
        """The interpreter, for people."""
        return f"Python {self.interpreter.version} ({self.interpreter.origin}: {self.interpreter.path})"


@dataclass(frozen=True)
class Wheels:
    """The `wheels` builder over one store."""

    store: Store
    keep_going: bool = True

    def build_all(self, requests: Sequence[Request], say: Say, done: Done) -> list[Outcome]:
        """Build one request after the other; `done` hears of each."""

        def build(request: Request) -> Outcome:
            try:
                result = self.build(request, say)
            except Error as error:
                return outcome_of(request, Status.FAILED, error=error)
            facts = result.manifest.facts
            return outcome_of(request, Status.BUILT, link=request.link, path=result.path, manifest=facts)

        return one_after_another(requests, build, done, keep_going=self.keep_going)

    def build(self, request: Request, say: Say) -> Result:
        """Build, or find built, one variant and link it. Raises an `errors.Error`."""
        links.require_free(request.link)  # now, not after all the work
        request.release.require_builder("wheels")
        if request.variant.system == host_system():
            c_library.require(request.release)
        inputs = _inputs(request, self.store)
        if inputs.lock.index_only and not request.index:
            raise UnsupportedError(
                f"{request.variant.short} needs --index URL: the public package index has only CPU builds of "
                f"torch for {request.variant.system}",
                hint=f"vllm-variants build {request.variant.short} --index <PyTorch's index for this CUDA>",
            )
        entry = inputs.entry
        with self.store.lock(
            entry, lambda: say(f"another build of {request.name} is running: waiting for it")
        ):
            result = self._found(request, entry, say)
            if result:
                say(f"{request.name} is already built")
            else:
                say(f"building {request.name}, release {request.release.name}, with {inputs.describe()}")
                if inputs.foreign:
                    say(f"it is for {request.variant.system}: it can be built here, but not run")
                result = self._make(inputs, say)
            self.store.link(result, request.link)
        return result

    def _found(self, request: Request, entry: str, say: Say) -> Result | None:
        try:
            return self.store.find(entry)
        except DamagedError as damage:
            say(f"{request.name} is damaged ({damage.message}): it is built anew")
            return None

    def _make(self, inputs: _Inputs, say: Say) -> Result:
        steps, request = Steps(say), inputs.request
        try:
            with self.store.building(inputs.entry) as folder:
                self._install(inputs, steps, folder)
                installed_bytes, _ = disk_use(folder)
                results = [entry.result for entry in self.store.entries() if entry.result]
                _reduce(inputs, steps, folder, results)
                audited = device_code.audit(steps, request, folder)
                libraries = device_code.with_ptx_to_compile(audited, folder)
                waiting = native.waiting(folder, request.variant.capability, libraries)
                size = {"installed": installed_bytes, "result": disk_use(folder)[0]}
                facts = {"waiting": waiting.as_dict()}
                manifests.write(folder, request, inputs.lock, inputs.interpreter, steps, size, facts)
                result = self.store.publish(folder, inputs.entry)
        except OSError as error:
            raise resource_error(error) from error
        for line in _what_waits(request, steps, waiting):
            say(line)
        return result

    def _install(self, inputs: _Inputs, steps: Steps, folder: Path) -> None:
        """Install the lock into `folder`, and give it the programs of a result."""
        request, lock, minor = inputs.request, inputs.lock, inputs.request.release.stack.python
        with steps.step("install") as step:
            installation.environment(folder, inputs.interpreter)
            site = _site_packages(folder, request)
            files = [lock.path]
            if lock.index_only and request.index:
                share = folder / "share" / "vllm-variants"
                share.mkdir(parents=True)
                files.append(installation.lock_from_index(lock, request.index, share))
                installation.sync(folder, lock, files[1:], request.index)
                _require_cuda(site / "torch", lock)  # before the gigabytes that would be of no use without it
            installation.sync(folder, lock, files, request.index)
            _require_cuda(site / "torch", lock)
            installed.require_whole(folder, site)
            step.facts["site_packages"] = str(site.relative_to(folder))
        launchers.write(folder, inputs.interpreter.path, minor)
        if inputs.foreign:
            home = request.python or FOREIGN_HOME / f"python{minor}"
            launchers.expect_interpreter(folder, home, minor)

    def entry(self, request: Request) -> str:
        """The name that the request's result has in the store."""
        return _inputs(request, self.store).entry


def _site_packages(folder: Path, request: Request) -> Path:
    return folder / "lib" / f"python{request.release.stack.python}" / "site-packages"


def _reduce(inputs: _Inputs, steps: Steps, folder: Path, others: Sequence[Result]) -> None:
    """Leave in an installed tree what something reads, RECORDs that say so, and bytecode.

    What `others`, results of the store, have already is not made again.
    """
    request, site = inputs.request, _site_packages(folder, inputs.request)
    dropped = files.drop_unread(steps, request, site)
    stored = device_code.stored_alike(others, request, inputs.lock)
    slimmed = device_code.slim(steps, request, folder, inputs.compiler, stored)
    files.refresh_records(steps, site, dropped, slimmed)
    compiled = filter(None, map(shared_bytecode.recorded, others))
    bytecode.write(steps, Bytecode(request.bytecode), inputs.interpreter, site, compiled)


def _what_waits(request: Request, steps: Steps, waiting: native.Waiting) -> list[str]:
    """The last lines of a build: what the driver will compile, and why or until when."""
    done = {step.name: step.facts for step in steps.done}
    if compiled := done["slim"].get("native"):
        return native.left_sentences(compiled)  # type: ignore[arg-type]
    return waiting.sentences(request.variant.capability.sm)


def _require_cuda(torch: Path, lock: Lock) -> None:
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        raise UnsupportedError(
            f"the torch that the index has for {lock.system} is a CPU build",
            hint="name an index that has torch's CUDA wheels for it: --index URL",
        )


def _inputs(request: Request, store: Store) -> _Inputs:
    """What a build starts from; fetches the compiler of a native one. Raises an `errors.Error`."""
    foreign = request.variant.system != host_system()
    interpreter = interpreters.find(request.release.stack.python, None if foreign else request.python)
    lock = locks.find(request.release, request.variant.system)
    locks.require_sound(lock)
    files.require_known(request.without)
    native = request.native and request.slim
    compiler = compilers.compiler(request.release.stack.cuda, root=store.root) if native else None
    return _Inputs(request, lock, interpreter, compiler)
