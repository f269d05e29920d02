"""Ask OSV (osv.dev) which advisories a version of a package has: POST /v1/query, page by page."""

from __future__ import annotations

import json
from typing import Any

from vllm_variants.errors import ResourceError, UsageError

SERVICE = "https://api.osv.dev"
_SECONDS = 30.0
_LARGEST = 64 << 20  # bytes of an answer
_PAGES = 100


def query(service: str, package: str, version: str | None) -> list[dict[str, Any]]:
    """OSV's records for a version of a PyPI package, or of all its versions.

    Raises `ResourceError` where the service cannot be asked or does not answer as OSV does, `UsageError` for
    an address that is none. An empty list is an answer.
    """
    if not service.startswith(("https://", "http://")):
        raise UsageError(f"{service!r} is no address of an OSV service", hint=f"write it as {SERVICE}")
    body: dict[str, Any] = {"package": {"name": package, "ecosystem": "PyPI"}}
    if version:
        body["version"] = version
    records: list[dict[str, Any]] = []
    for _ in range(_PAGES):
        answer = _post(f"{service.rstrip('/')}/v1/query", body)
        records += answer.get("vulns", [])
        if not answer.get("next_page_token"):
            return records
        body["page_token"] = answer["next_page_token"]
    raise ResourceError(f"{service} has no end of pages")


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            answer = json.loads(response.read(_LARGEST))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ResourceError(f"{url} was not asked: {error}", hint="name a mirror: --service URL") from error
    vulns = answer.get("vulns", []) if isinstance(answer, dict) else None
    if not isinstance(vulns, list) or not all(isinstance(record, dict) for record in vulns):
        raise ResourceError(f"{url} does not answer as OSV does", hint="name a mirror: --service URL")
    return dict(answer)
