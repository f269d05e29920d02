"""A report's document as one HTML file: nothing is fetched, and what it shows works without scripts too.

The tables are written by the template, the charts drawn by ECharts from the same document, which the file
holds as JSON. Names of files may come from anybody: the template escapes them, the JSON has no sign that ends
a script, and the page's policy (Content-Security-Policy) runs only the two scripts whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from vllm_variants.errors import readable
from vllm_variants.model.capability import Capability
from vllm_variants.system.text import duration, size
from vllm_variants.verify.reports import call_time

_HERE = Path(__file__).parent
_SITE_PACKAGES = "site-packages/"
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""Signs that mean something to a reader of HTML or of old JavaScript, as JSON writes them otherwise."""


def page(document: Mapping[str, Any]) -> str:
    """The HTML file of a report's document, as text that UTF-8 can hold.

    A document that lacks something, or has something else in its place, raises what Python raises.
    """
    library = (_HERE / "vendor" / "echarts.min.js").read_text(encoding="utf-8")
    script = (_HERE / "page" / "report.js").read_text(encoding="utf-8")
    template = _environment().get_template("report.html")
    try:
        html = template.render(
            report=document,
            style=_style(),
            library=library,
            script=script,
            policy=" ".join(f"'sha256-{_digest(text)}'" for text in (library, script)),
            embedded=embedded(document),
        )
    except jinja2.UndefinedError as error:
        raise LookupError(str(error)) from error
    return html.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files that are no UTF-8


def _style() -> str:
    """The style sheet, with the dark colours where a person chose them and where their system has them."""
    style, dark = ((_HERE / "page" / name).read_text(encoding="utf-8") for name in ("report.css", "dark.css"))
    chosen = f':root[data-theme="dark"] {{ {dark} }}\n'
    by_system = f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}\n'
    return style + chosen + by_system


def embedded(document: Mapping[str, Any]) -> str:
    """A document as JSON that may stand inside a script element."""
    return json.dumps(document, separators=(",", ":")).translate(_UNSAFE)


def _digest(text: str) -> str:
    """Of a script as Content-Security-Policy names it (CSP Level 3, "Hash usage for elements")."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size,
        "duration": duration,
        "milliseconds": call_time,
        "short": _short,
        "breakable": _breakable,
        "file": _file,
        "readable": readable,
        "percent": _percent,
        "sm": _sm,
        "log_share": _log_share,
        "figure": _figure,
    }
    return environment


def _short(path: str) -> str:
    """`vllm/_C.abi3.so` of a path in a result."""
    return readable(path.rpartition(_SITE_PACKAGES)[2])


def _breakable(text: str) -> markupsafe.Markup:
    """A name that lines may break in where a part of it ends."""
    parts = re.split(r"(?<=[/_.-])(?=[^/_.-])", text)
    return markupsafe.Markup("<wbr>").join(parts)


def _file(path: str) -> str:
    return readable(path.rpartition("/")[2])


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def _sm(capability: str) -> str:
    return Capability.parse(capability).sm


def _figure(value: float | str) -> str:
    """An error or a tolerance, which may be `nan` as text."""
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:.2g}"


def _log_share(milliseconds: float) -> float:
    """How long a bar is for a time, 0 to 100: from a microsecond to twenty minutes, each tenfold as long."""
    return round(min(100.0, max(1.0, 100 * math.log10(max(milliseconds, 1e-3) / 1e-3) / 9.1)), 1)
