"""Which files a package has on an index: its page of the simple repository API, as JSON or HTML."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from vllm_variants.system import http, uv
from vllm_variants.system.http import Unreachable

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LINK = re.compile(r"<a\b[^>]*\bhref\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A file on an index: its name, where it is, and its SHA-256 (empty: the page does not say)."""

    name: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Index:
    """Package indexes, asked in order until one has the package."""

    urls: tuple[str, ...]

    @classmethod
    def of_settings(cls) -> Index:
        """The indexes that uv would ask, by its settings and its own default."""
        # Of any Python: without one uv looks through all that the machine has, which can take seconds.
        asked = [
            "pip",
            "compile",
            "--emit-index-url",
            "--no-header",
            "--quiet",
            "--python",
            sys.executable,
            "-",
        ]
        said = uv.capture(asked).stdout
        return cls(tuple(re.findall(r"^--(?:extra-)?index-url\s+(\S+)", said, re.MULTILINE)))

    def files(self, package: str) -> list[Listed]:
        """The files of a package; raise `Unreachable` where no index has it."""
        why = "no index has it" if self.urls else "uv names no index"
        for url in self.urls:
            try:
                found = self._page(url, package)
            except Unreachable as error:
                why = str(error)
                continue
            if found:
                return found
        raise Unreachable(why)

    def _page(self, url: str, package: str) -> list[Listed]:
        body, kind, final = http.page(f"{url.rstrip('/')}/{package}/", _ACCEPT)
        if "json" not in kind:
            return [
                _of_link(final, html.unescape(link))
                for link in _LINK.findall(body.decode("utf-8", "replace"))
            ]
        try:
            files = json.loads(body)["files"]
            return [
                Listed(
                    file["filename"], urljoin(final, file["url"]), file.get("hashes", {}).get("sha256", "")
                )
                for file in files
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable("its page is not as the simple repository API has it") from error


def _of_link(page: str, link: str) -> Listed:
    url, _, fragment = urljoin(page, link).partition("#")
    name = Path(unquote(urlsplit(url).path)).name
    return Listed(name, url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else "")
