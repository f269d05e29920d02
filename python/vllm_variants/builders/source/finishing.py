"""What every built variant goes through before it counts: fetched, audited, linked, pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.builders.source import closure_audit
from vllm_variants.builders.source.options import Cache
from vllm_variants.errors import Error, InputError, resource_error
from vllm_variants.model import results
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.nix.command import Nix, first_error
from vllm_variants.nix.failures import transfer_failure
from vllm_variants.system import links
from vllm_variants.system.progress import Say


def blocked_links(requests: Iterable[Request]) -> dict[Request, Error]:
    """The requests whose link cannot be made, and why: to be known before hours of building."""
    blocked = {}
    for request in requests:
        try:
            links.require_free(request.link.absolute())
        except Error as error:
            blocked[request] = error
    return blocked


@dataclass(frozen=True)
class Finisher:
    """Takes a built output to a linked result.

    Without `nix` only the result itself is audited, not what it needs, and its link keeps nothing from
    collection. `stopped` says whether the person asked to stop: the step under way is then the last one.
    """

    nix: Nix | None
    cache: Cache | None = None
    stopped: Callable[[], bool] = lambda: False

    def finish(self, request: Request, out: str, outcome: Outcome, say: Say) -> Outcome:
        """The outcome of a built output, once it is audited, linked and pushed; or failed, and why."""
        try:
            result, audit = self._link_audited(request, out, say)
            outcome = replace(outcome, link=request.link, path=result.path, audit=audit)
            outcome = replace(outcome, manifest=result.manifest.facts)
            if self.cache and self.nix:
                self._go_on()
                self._push(self.nix, self.cache, request, out)
                outcome = replace(outcome, pushed=self.cache.url)
        except Error as error:
            return replace(outcome, status=Status.FAILED, error=error)
        except OSError as error:
            return replace(outcome, status=Status.FAILED, error=resource_error(error))
        return outcome

    def _link_audited(self, request: Request, out: str, say: Say) -> tuple[Result, Path]:
        """Fetch from a remote store, audit, link; the result and the path of the audit's report.

        Raises an `Error`, and then has linked nothing.
        """
        if self.nix and self.nix.store:
            self._fetch(self.nix, request, out)
        result = identified(request, Path(out))
        self._go_on()
        if self.nix:
            closure = [Path(path) for path in self.nix.requisites(out)]
        else:
            say("without nix on PATH only the result itself is audited, not what it needs")
            closure = [result.path]
        report = closure_audit.audited(request, result, closure, say, self._go_on)
        self._go_on()
        link = request.link.absolute()
        if self.nix:
            links.require_free(link)
            completed = self.nix.run("build", out, "--out-link", str(link), remote=False)
            if completed.status:
                raise Error(f"the link {link} cannot be made: {first_error(completed.stderr)}")
        else:
            links.point(link, result.path)
        return result, report

    def _go_on(self, library: str = "") -> None:
        if self.stopped():
            raise Error("interrupted")

    def _push(self, nix: Nix, cache: Cache, request: Request, out: str) -> None:
        """Copy the output and all it needs to the cache, signed; raises an `Error`."""
        url = cache.url
        if cache.key:
            key = str(cache.key.absolute())
            if cache.is_binary_cache:
                url += f"{'&' if urlsplit(url).query else '?'}secret-key={key}"
            else:
                signed = nix.run("store", "sign", "--recursive", "--key-file", key, out, remote=False)
                if signed.status:
                    text = f"{request.variant.short} could not be signed"
                    raise transfer_failure(text, first_error(signed.stderr))
        pushed = nix.run("copy", "--to", url, out, remote=False)
        if pushed.status:
            text = f"{request.variant.short} is linked, but could not be pushed to {cache.url}"
            raise transfer_failure(text, first_error(pushed.stderr))

    def _fetch(self, nix: Nix, request: Request, out: str) -> None:
        assert nix.store is not None
        fetched = nix.run("copy", "--from", nix.store, "--no-check-sigs", out, remote=False)
        if fetched.status:
            text = f"{request.variant.short} was built in {nix.store}, but not fetched"
            raise transfer_failure(text, first_error(fetched.stderr))


def identified(request: Request, out: Path) -> Result:
    """The result at `out`; raises `InputError` when it is not the requested variant of that release."""
    result = results.read(out)
    manifest = result.manifest
    if (manifest.variant, manifest.release) != (request.name, request.release.name):
        raise InputError(
            f"{out} is {manifest.variant} of release {manifest.release} by its manifest, "
            f"not {request.name} of {request.release.name}",
            hint="the flake and this vllm-variants are of different versions: use those of one checkout",
        )
    return result
