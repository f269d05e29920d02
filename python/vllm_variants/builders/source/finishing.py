"""What every built variant goes through before it counts: fetched, audited, linked, pushed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.builders.source import closure_audit
from vllm_variants.errors import Error, UsageError, resource_error
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.nix.command import Nix
from vllm_variants.nix.failures import transfer_failure
from vllm_variants.system import links
from vllm_variants.system.progress import Say


@dataclass(frozen=True)
class Cache:
    """A store to push to (`file://`, `s3://`, `ssh-ng://`, …) and the key that signs, if any."""

    url: str
    key: Path | None = None

    def __post_init__(self) -> None:
        if not urlsplit(self.url).scheme:
            raise UsageError(
                f"--push {self.url} is no address of a store",
                hint="write file:///srv/cache, s3://bucket or ssh-ng://host",
            )
        if self.key and not self.key.is_file():
            raise UsageError(
                f"there is no signing key {self.key}",
                hint=f"make one: nix key generate-secret --key-name cache.example.org-1 > {self.key}",
            )

    @property
    def is_binary_cache(self) -> bool:
        """Whether paths lie there as files, signed as they are written; else in a Nix store."""
        return urlsplit(self.url).scheme in {"file", "s3", "http", "https"}


@dataclass(frozen=True)
class Finisher:
    """Takes a built output to a linked result.

    `stopped` says whether the person asked to stop: then the step under way is the last one.
    """

    nix: Nix
    cache: Cache | None = None
    stopped: Callable[[], bool] = lambda: False

    def finish(self, request: Request, out: str, say: Say) -> tuple[Result, Path]:
        """Fetch from a remote store, audit, link; the result and the path of the audit's report.

        Raises an `Error`, and then has linked nothing.
        """
        if self.nix.store:
            self._fetch(request, out)
        result = closure_audit.identified(request, Path(out))
        self._go_on()
        closure = map(Path, self.nix.requisites(out))
        report = closure_audit.audited(request, result, closure, say, self._go_on)
        self._go_on()
        self._link(request, out)
        return result, report

    def conclude(self, request: Request, out: str, outcome: Outcome, say: Say) -> Outcome:
        """`outcome` of a built output, once it is audited, linked and pushed; or failed, and why."""
        try:
            result, audit = self.finish(request, out, say)
            outcome = replace(outcome, link=request.link, path=result.path, audit=audit)
            outcome = replace(outcome, manifest=result.manifest.facts)
            if self.cache:
                self._go_on()
                self.push(request, out)
                outcome = replace(outcome, pushed=self.cache.url)
        except Error as error:
            return replace(outcome, status=Status.FAILED, error=error)
        except OSError as error:
            return replace(outcome, status=Status.FAILED, error=resource_error(error))
        return outcome

    def _go_on(self, library: str = "") -> None:
        if self.stopped():
            raise Error("interrupted")

    def push(self, request: Request, out: str) -> None:
        """Copy the output and all it needs to the cache, signed; raises an `Error`."""
        assert self.cache is not None
        url = self.cache.url
        if self.cache.key:
            key = str(self.cache.key.absolute())
            if self.cache.is_binary_cache:
                url += f"{'&' if urlsplit(url).query else '?'}secret-key={key}"
            else:
                told = self.nix.ask("store", "sign", "--recursive", "--key-file", key, out, remote=False)
                if told.status:
                    raise transfer_failure(f"{request.variant.short} could not be signed", told.error)
        told = self.nix.ask("copy", "--to", url, out, remote=False)
        if told.status:
            text = f"{request.variant.short} is linked, but could not be pushed to {self.cache.url}"
            raise transfer_failure(text, told.error)

    def _fetch(self, request: Request, out: str) -> None:
        assert self.nix.store is not None
        told = self.nix.ask("copy", "--from", self.nix.store, "--no-check-sigs", out, remote=False)
        if told.status:
            text = f"{request.variant.short} was built in {self.nix.store}, but not fetched"
            raise transfer_failure(text, told.error)

    def _link(self, request: Request, out: str) -> None:
        link = request.link.absolute()
        links.require_free(link)
        told = self.nix.ask("build", out, "--out-link", str(link), remote=False)
        if told.status:
            raise Error(f"the link {link} cannot be made: {told.error}")
