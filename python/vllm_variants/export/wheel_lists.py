"""What a wheelhouse says of its wheels: a hash-locked requirements.txt, a page of links, their sources.

The page is for web servers, and for uv: of the files in a folder it knows no hashes before it has read them,
and so prefers a published wheel, whose hash the index tells, to a variant wheel that fits better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from vllm_variants import __version__
from vllm_variants.export.canonical_zip import WrittenWheel
from vllm_variants.export.options import Options
from vllm_variants.export.packages import Package
from vllm_variants.export.published import PublishedWheel
from vllm_variants.export.repack import Repack
from vllm_variants.model.results import Manifest

PAGE = "index.html"
Kept = Sequence[tuple[Package, PublishedWheel]]
"""The packages that stay as they were published."""


@dataclass(frozen=True)
class Repacked:
    """A wheel that was made of a package, and the file that it is."""

    repack: Repack
    written: WrittenWheel


def requirements(manifest: Manifest, wheels: Sequence[Repacked], kept: Kept, options: Options) -> str:
    """A requirements file with one version of every package and the hashes of its wheels.

    Of variant wheels every one is listed, and the published one, which an installer takes where none fits.
    """
    hashes: dict[str, set[str]] = {}
    for wheel in wheels:
        line = f"{wheel.repack.package.name}=={wheel.repack.version}"
        hashes.setdefault(line, set()).add(wheel.written.sha256)
        if options.variants:
            hashes[line].add(wheel.repack.published.sha256)
    for package, published in kept:
        hashes[f"{package.name}=={package.version}"] = {published.sha256}
    lines = [*_head(manifest, wheels, options), f"--find-links {PAGE if options.variants else '.'}"]
    lines += ["--no-index"] if options.all_wheels else []
    for line in sorted(hashes):
        lines.append(" \\\n    ".join([line, *(f"--hash=sha256:{found}" for found in sorted(hashes[line]))]))
    return "\n".join(lines) + "\n"


def page(files: Mapping[str, str]) -> str:
    """Links to files of the wheelhouse, by name with their sha256, as the simple repository API has them."""
    links = [
        f'<a href="{quote(name)}#sha256={digest}">{escape(name)}</a><br>'
        for name, digest in sorted(files.items())
    ]
    return "\n".join(["<!DOCTYPE html>", "<title>Wheels</title>", *links]) + "\n"


def _head(manifest: Manifest, wheels: Sequence[Repacked], options: Options) -> list[str]:
    names = sorted({wheel.repack.manifest.capability.sm for wheel in wheels}) or [manifest.capability.sm]
    flag = " --preview-features wheel-variants" if options.variants else ""
    lines = [
        f"# vLLM {manifest.release} for {', '.join(names)}, Python {manifest.facts['stack']['python']}, "
        f"{manifest.system}; made by vllm-variants {__version__}",
        f"#   uv pip sync --require-hashes{flag} requirements.txt",
    ]
    if not options.variants:
        lines.append("#   pip install --require-hashes -r requirements.txt")
    return lines


def facts(wheels: Sequence[Repacked], kept: Kept, options: Options) -> dict[str, object]:
    """What the manifest says of every wheel: its hash, and the published wheel that it was made of or is."""
    entries = [
        {
            "name": wheel.repack.package.name,
            "version": wheel.repack.version,
            "file": wheel.written.file,
            "sha256": wheel.written.sha256,
            "bytes": wheel.written.size,
            "repacked": True,
            "source": {"file": wheel.repack.published.file, "sha256": wheel.repack.published.sha256},
        }
        for wheel in wheels
    ]
    entries += [
        {
            "name": package.name,
            "version": package.version,
            "file": published.file,
            "sha256": published.sha256,
            "bytes": published.size,
            "repacked": False,
            "source": {"file": published.file, "sha256": published.sha256},
        }
        for package, published in kept
    ]
    order = sorted(entries, key=lambda entry: (str(entry["name"]), str(entry["file"])))
    return {"variants": options.variants, "complete": options.all_wheels, "wheels": order}
