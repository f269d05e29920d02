"""The default builder: published wheels, hash-locked, slimmed to one SM. Needs no Nix, no compiler.

    lock → install (uv) → slim → audit → manifest → publish → link

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
from vllm_variants.builders.steps import Step, Steps
from vllm_variants.builders.wheels import device_code, installation, installed, launchers, locks
from vllm_variants.builders.wheels import manifest as manifests
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.errors import Error, UnsupportedError, resource_error
from vllm_variants.machine import interpreters
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import DamagedError, Result
from vllm_variants.store import Store, disk_use
from vllm_variants.system import links
from vllm_variants.system.progress import Say

# Part of every result's hash: raise it when the same inputs give another result.
PIPELINE = 4
# Where a result for another platform expects its interpreter, unless --python says otherwise.
FOREIGN_HOME = Path("/usr/bin")


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
        lock, interpreter = _inputs(request)
        if lock.index_only and not request.index:
            raise UnsupportedError(
                f"{request.variant.short} needs --index URL: the public package index has only CPU builds of "
                f"torch for {request.variant.system}",
                hint=f"vllm-variants build {request.variant.short} --index <PyTorch's index for this CUDA>",
            )
        entry = _entry(request, lock, interpreter)
        with self.store.lock(
            entry, lambda: say(f"another build of {request.name} is running: waiting for it")
        ):
            result = self._found(request, entry, say)
            if result:
                say(f"{request.name} is already built")
            else:
                say(f"building {request.name}, release {request.release.name}, with {_python(interpreter)}")
                if lock.system != host_system():
                    say(f"it is for {request.variant.system}: it can be built here, but not run")
                result = self._make(request, lock, interpreter, entry, say)
            self.store.link(result, request.link)
        return result

    def _found(self, request: Request, entry: str, say: Say) -> Result | None:
        try:
            return self.store.find(entry)
        except DamagedError as damage:
            say(f"{request.name} is damaged ({damage.message}): it is built anew")
            return None

    def _make(self, request: Request, lock: Lock, interpreter: Interpreter, entry: str, say: Say) -> Result:
        steps = Steps(say)
        minor = request.release.stack.python
        try:
            with self.store.building(entry) as folder:
                with steps.step("install") as step:
                    self._install(request, lock, interpreter, folder, step)
                launchers.write(folder, interpreter.path, minor)
                if lock.system != host_system():
                    home = request.python or FOREIGN_HOME / f"python{minor}"
                    launchers.expect_interpreter(folder, home, minor)
                installed, _ = disk_use(folder)
                device_code.slim(steps, request, folder)
                device_code.audit(steps, request, folder)
                size = {"installed": installed, "result": disk_use(folder)[0]}
                manifests.write(folder, request, lock, interpreter, steps, size)
                return self.store.publish(folder, entry)
        except OSError as error:
            raise resource_error(error) from error

    def _install(
        self, request: Request, lock: Lock, interpreter: Interpreter, folder: Path, step: Step
    ) -> None:
        installation.environment(folder, interpreter)
        torch = folder / "lib" / f"python{request.release.stack.python}" / "site-packages" / "torch"
        files = [lock.path]
        if lock.index_only and request.index:
            share = folder / "share" / "vllm-variants"
            share.mkdir(parents=True)
            files.append(installation.lock_from_index(lock, request.index, share))
            installation.sync(folder, lock, files[1:], request.index)
            _require_cuda(torch, lock)  # before the gigabytes that would be of no use without it
        installation.sync(folder, lock, files, request.index)
        _require_cuda(torch, lock)
        installed.require_whole(folder, torch.parent)
        step.facts["site_packages"] = str(torch.parent.relative_to(folder))

    def entry(self, request: Request) -> str:
        """The name that the request's result has in the store: a hash of its inputs, and what it is."""
        return _entry(request, *_inputs(request))


def _require_cuda(torch: Path, lock: Lock) -> None:
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        raise UnsupportedError(
            f"the torch that the index has for {lock.system} is a CPU build",
            hint="name an index that has torch's CUDA wheels for it: --index URL",
        )


def _inputs(request: Request) -> tuple[Lock, Interpreter]:
    foreign = request.variant.system != host_system()
    interpreter = interpreters.find(request.release.stack.python, None if foreign else request.python)
    lock = locks.find(request.release, request.variant.system)
    locks.require_sound(lock)
    return lock, interpreter


def _entry(request: Request, lock: Lock, interpreter: Interpreter) -> str:
    inputs = {
        "pipeline": PIPELINE,
        "variant": request.name,
        "release": request.release.name,
        "lock": lock.digest,
        "index": request.index if lock.index_only else None,
        "python": [str(interpreter.path), interpreter.version, str(request.python)],
        "slim": request.slim,
        "keep_ptx": request.slim and request.keep_ptx,
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    return f"{digest}-{request.name}-{request.release.name}"


def _python(interpreter: Interpreter) -> str:
    return f"Python {interpreter.version} ({interpreter.origin}: {interpreter.path})"
