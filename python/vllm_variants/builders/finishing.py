"""What every built variant goes through before it counts: fetched, audited, linked, pushed.

A store path never changes, so an audit that passed is remembered by path and not done again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vllm_variants import __version__, results
from vllm_variants.builders import Request, Say
from vllm_variants.builders.build_logs import state_folder
from vllm_variants.builders.nix_command import Nix
from vllm_variants.builders.nix_failures import transfer_failure
from vllm_variants.errors import AuditError, Error, InputError, UsageError
from vllm_variants.results import Result


@dataclass(frozen=True)
class Cache:
    """A store to push to (`file://`, `s3://`, `ssh-ng://`, …) and the key that signs, if any."""

    url: str
    key: Path | None = None

    def __post_init__(self) -> None:
        if not urlsplit(self.url).scheme:
            raise UsageError(
                f"--push {self.url} is no address of a store",
                mend="write file:///srv/cache, s3://bucket or ssh-ng://host",
            )
        if self.key and not self.key.is_file():
            raise UsageError(
                f"there is no signing key {self.key}",
                mend=f"make one: nix key generate-secret --key-name cache.example.org-1 > {self.key}",
            )

    @property
    def is_binary_cache(self) -> bool:
        """Whether paths lie there as files, signed as they are written; else in a Nix store."""
        return urlsplit(self.url).scheme in {"file", "s3", "http", "https"}


@dataclass(frozen=True)
class Finisher:
    """Takes a built output to a linked result."""

    nix: Nix
    cache: Cache | None = None

    def finish(self, request: Request, out: str, say: Say) -> tuple[Result, Path]:
        """Fetch from a remote store, audit, link; the result and the path of the audit's report.

        Raises an `Error`, and then has linked nothing.
        """
        if self.nix.store:
            self._fetch(request, out)
        result = results.read(Path(out))
        told = result.manifest.variant
        if told != request.name or result.manifest.release != request.release.name:
            raise InputError(
                f"{out} says it is {told} of release {result.manifest.release}, not {request.name} "
                f"of {request.release.name}",
                mend="the flake and this vllm-variants are of different versions: use those of one checkout",
            )
        report = self._audit(request, result, say)
        self._link(request, out)
        return result, report

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

    def _audit(self, request: Request, result: Result, say: Say) -> Path:
        """Audit the output with all it needs at run time; the report's path. Raises `AuditError`."""
        path = state_folder() / "audits" / f"{result.path.name}-{__version__}.json"
        if path.exists():
            return path
        from vllm_variants import audit
        from vllm_variants.audit import expectations

        known = expectations.load(request.release.name, request.variant.system)
        closure = [Path(p) for p in sorted(self.nix.requisites(str(result.path)))]
        device = request.variant.capability
        report = audit.judge((str(result.path),), audit.collect(closure, device), device, known)
        short = request.variant.short
        if not report.passed:
            missing = [f for f in report.findings if f.verdict is audit.Verdict.MISSING]
            more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
            raise AuditError(
                f"{short} is built, but not linked: {missing[0].library}: {missing[0].what}{more}",
                mend=f"vllm-variants audit {result.path} --closure shows every library",
            )
        say(f"{short}: audit: {report.verdict} for {report.capability} in all {len(closure)} store paths")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
        return path

    def _link(self, request: Request, out: str) -> None:
        link = request.link.absolute()
        if link.exists() and not link.is_symlink():
            raise Error(f"{link} is in the way: it is not a link", mend=f"move it: mv {link} {link}.old")
        told = self.nix.ask("build", out, "--out-link", str(link), remote=False)
        if told.status:
            raise Error(f"the link {link} cannot be made: {told.error}")
