"""Files on a package index, read in pieces: pages whole, wheels by ranges of bytes.

The machine's proxy variables and certificates count, as `urllib` has them. Credentials in a URL are sent as
basic authentication, and appear in no message.
"""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from typing import IO, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from vllm_variants.system.positioned import Positioned

_TIMEOUT = 60.0
"""Seconds without a byte after which a server does not answer."""
_BLOCK = 1 << 16


class Unreachable(Exception):
    """A server that does not answer, or not with what was asked for; the text says why."""


def page(url: str, accept: str) -> tuple[bytes, str, str]:
    """A page, its content type, and the URL that it came from in the end; raise `Unreachable`."""
    with _opened(url, {"Accept": accept}) as response:
        try:
            return response.read(), response.headers.get("Content-Type", ""), response.geturl()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error)) from error


def without_credentials(url: str) -> str:
    """A URL without the user and the password that it may have: fit to be kept, and to be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _opened(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = {**headers, "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        url = without_credentials(url)
    request = urllib.request.Request(url, headers=headers)
    try:
        return cast("http.client.HTTPResponse", urllib.request.urlopen(request, timeout=_TIMEOUT))
    except urllib.error.HTTPError as error:
        raise Unreachable(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise Unreachable(str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(str(error)) from error


class RemoteFile(Positioned):
    """A file on a server, read from wherever it is asked for: one request for each place, then on and on.

    Raises `Unreachable` at first use where the server sends no ranges.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._response: http.client.HTTPResponse | None = None
        self._at = 0  # where the response stands
        end = self._range(f"bytes=-{_BLOCK}")
        with end:
            self.size = int(end.headers.get("Content-Range", "").rpartition("/")[2] or 0)
            self._end = end.read()

    def _range(self, wanted: str) -> http.client.HTTPResponse:
        response = _opened(self._url, {"Range": wanted, "Accept-Encoding": "identity"})
        if response.status != 206 or not response.headers.get("Content-Range"):
            response.close()
            raise Unreachable("the server sends no ranges of files")
        return response

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Read on into a buffer; `OSError` where the server stops in between."""
        into = self._position - (self.size - len(self._end))
        if into >= 0:
            data = self._end[into : into + len(buffer)]
        else:
            data = self._stream().read(min(len(buffer), self.size - self._position))
            self._at += len(data)
            if not data:
                raise OSError("the server stopped sending")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _stream(self) -> IO[bytes]:
        if self._response is None or self._at != self._position:
            self.drop()
            try:
                self._response = self._range(f"bytes={self._position}-")
            except Unreachable as error:
                raise OSError(str(error)) from error
            self._at = self._position
        return cast("IO[bytes]", self._response)

    def drop(self) -> None:
        """Let go of the connection; reading makes another."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        """Let go of everything."""
        self.drop()
        super().close()
