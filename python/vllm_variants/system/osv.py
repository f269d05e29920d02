"""Ask OSV (osv.dev) which advisories a version of a package has: POST /v1/query, page by page."""

from __future__ import annotations

import json
from typing import Any

from vllm_variants.errors import ResourceError, UsageError
from vllm_variants.system import http

SERVICE = "https://api.osv.dev"
_LARGEST = 64 << 20  # bytes of an answer
_PAGES = 100
_HINT = "name a mirror: --service URL"


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
    raise ResourceError(f"{http.without_credentials(service)} has no end of pages", hint=_HINT)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    place = http.without_credentials(url)
    try:
        answer = json.loads(http.post(url, json.dumps(body).encode(), "application/json", _LARGEST))
    except http.Unreachable as error:
        raise ResourceError(f"{place} gave no answer: {error}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise ResourceError(f"{place} does not answer as OSV does: {error}", hint=_HINT) from error
    vulns = answer.get("vulns", []) if isinstance(answer, dict) else None
    if not isinstance(vulns, list) or not all(isinstance(record, dict) for record in vulns):
        raise ResourceError(f"{place} does not answer as OSV does", hint=_HINT)
    return dict(answer)
