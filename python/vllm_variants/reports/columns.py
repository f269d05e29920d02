"""How libraries and features fare, a column for each device: the one that was audited for, or every SM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_variants.model.capability import Capability, Fit
from vllm_variants.reports.serving import Serves, of_fits, serves

Document = Mapping[str, Any]


def devices(audit: Document | None, matrix: Document | None) -> list[str]:
    """The capabilities of the columns, in order."""
    if matrix:
        return [str(Capability.parse(sm)) for sm in matrix["sms"]]
    return [audit["capability"]] if audit and audit["capability"] else []


def libraries(audit: Document | None, matrix: Document | None) -> list[dict[str, Any]]:
    """A row for each library: `serves` says how the device is served that was audited for, if one was."""
    rows = {row["path"]: _of_matrix(row, matrix["sms"]) for row in matrix["libraries"]} if matrix else {}
    for library in audit["libraries"] if audit else ():
        row = rows.setdefault(library["path"], _of_audit(library, bool(audit and audit["capability"])))
        row["serves"] = str(serves(library))
        row["containers"] = library["containers"]
    return list(rows.values())


def _of_matrix(row: Document, sms: list[str]) -> dict[str, Any]:
    cells = [_cell(row["fits"][sm]["containers"]) if sm in row["fits"] else _broken() for sm in sms]
    counts = [sum(row["fits"][sm]["containers"].values()) for sm in sms if sm in row["fits"]]
    return {
        "path": row["path"],
        "size": row["size"],
        "device": row["device"],
        "problem": row["problem"],
        "containers": max(counts, default=0),
        "serves": str(Serves.BROKEN if row["problem"] else Serves.UNJUDGED),
        "cells": cells,
    }


def _of_audit(library: Document, judged: bool) -> dict[str, Any]:
    cell = _broken() if library["problem"] else _cell(library["fits"])
    return {
        "path": library["path"],
        "size": library["size"],
        "device": sum(group["bytes"] for group in library["images"]),
        "problem": library["problem"],
        "containers": library["containers"],
        "serves": "",
        "cells": [cell] if judged else [],
    }


def _cell(fits: Mapping[str, int]) -> dict[str, Any]:
    """Containers with machine code, with PTX alone, and a word for all; one with stubs alone has none."""
    word = of_fits(fits, sum(fits.values())) if fits else Serves.NONE
    runs = sum(fits.get(fit, 0) for fit in (Fit.NATIVE, Fit.SAME_MAJOR, Fit.FAMILY))
    return {"serves": str(word), "runs": runs, "jit": fits.get(Fit.JIT, 0)}


def _broken() -> dict[str, Any]:
    return {"serves": str(Serves.BROKEN), "runs": 0, "jit": 0}


def features(audit: Document | None, matrix: Document | None) -> list[dict[str, Any]]:
    """A row for each feature; a cell is None where nothing is known for its device."""
    if matrix:
        return [
            _feature(feature, [feature["fits"].get(sm) for sm in matrix["sms"]])
            for feature in matrix["features"]
        ]
    return [_feature(feature, [feature]) for feature in (audit or {}).get("features", ())]


def _feature(feature: Document, cells: list[Document | None]) -> dict[str, Any]:
    return {
        "feature": feature["feature"],
        "name": feature["name"],
        "says": feature["says"],
        "libraries": list(feature["libraries"]),
        "cells": [
            {"state": cell["state"], "reason": cell["reason"], "seconds": round(cell["jit_seconds"])}
            if cell
            else None
            for cell in cells
        ],
    }
