"""What a wheelhouse of a result costs, and whether it is what it says it is.

    python bench/wheelhouse.py RESULT [--folder DIR] [--published NAME …]

Exports the result, and a copy of it (hard links) from another folder, and compares both byte for byte. With
`--published` the published wheels of these packages are downloaded, and the repacked ones held to them.
Prints a JSON object: seconds and peak memory (bytes) of each export, bytes of the repacked wheels and of the
published ones that they stand for, whether both exports are the same, and for each package the files that
differ from the published ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from checkout import ROOT

from vllm_variants.export import downloads, packages, published
from vllm_variants.model import results


def export(result: Path, to: Path) -> dict[str, float]:
    """Export in a process of its own; seconds by the clock, and peak resident bytes."""
    started = time.monotonic()
    command = [sys.executable, "-m", "vllm_variants", "export", "--result", result, "--to", f"wheels:{to}"]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    seconds = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(seconds, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a tree."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def members(wheel: Path, stem: str) -> dict[str, str]:
    """The sha256 of every file in a wheel, under its name with `stem` taken out of dist-info and .data."""
    found = {}
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if not name.endswith("/"):
                with opened.open(name) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                found[name.replace(f"{stem}.", "*.")] = digest
    return found


def differences(result: Path, wheelhouse: Path, names: list[str], folder: Path) -> dict[str, object]:
    """For each package the files that differ between the published wheel and the repacked one."""
    read = results.read(result)
    found = {package.name: package for package in packages.of_result(read)}
    wheels = published.of_result(read, found.values())
    entries = json.loads((wheelhouse / "export.json").read_text())["wheels"]
    repacked = {entry["name"]: entry for entry in entries if entry["repacked"]}
    report: dict[str, object] = {}
    for name in names:
        python = read.manifest.facts["stack"]["python"]
        downloads.fetch([(found[name].spelled, wheels[name])], python, folder, folder)
        theirs = members(folder / wheels[name].file, "-".join(wheels[name].file.split("-")[:2]))
        file = repacked[name]["file"]
        ours = members(wheelhouse / file, "-".join(file.split("-")[:2]))
        (folder / wheels[name].file).unlink()
        report[name] = {
            "same": sum(ours.get(path) == digest for path, digest in theirs.items()),
            "changed": sorted(p for p, digest in theirs.items() if p in ours and ours[p] != digest),
            "only published": sorted(theirs.keys() - ours.keys()),
            "only repacked": sorted(ours.keys() - theirs.keys()),
        }
    return report


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--published", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wheelhouse.", dir=options.folder) as name:
        folder = Path(name)
        first = export(options.result, folder / "first")
        copy = folder / "copy of it"
        source = options.result.resolve()
        linked = subprocess.run(["cp", "-al", source, copy], check=False, capture_output=True).returncode == 0
        if not linked:  # another disk
            subprocess.run(["cp", "-a", source, copy], check=True)
        second = export(copy, folder / "second")
        (folder / "published").mkdir()
        print(
            json.dumps(
                {
                    "exports": [first, second],
                    "same": digests(folder / "first") == digests(folder / "second"),
                    **sizes(options.result, folder / "first"),
                    "published": differences(
                        options.result, folder / "first", options.published, folder / "published"
                    ),
                },
                indent=2,
            )
        )


def sizes(result: Path, wheelhouse: Path) -> dict[str, int]:
    """Bytes of the repacked wheels, of the published ones of the same packages, and of all the others."""
    read = results.read(result)
    wheels = published.of_result(read, packages.of_result(read))
    entries = json.loads((wheelhouse / "export.json").read_text())["wheels"]
    repacked = [entry for entry in entries if entry["repacked"]]
    return {
        "packages": len(entries),
        "repacked": len(repacked),
        "repacked_bytes": sum(entry["bytes"] for entry in repacked),
        "their_published_bytes": sum(wheels[entry["name"]].size for entry in repacked),
        "unchanged_bytes": sum(entry["bytes"] for entry in entries if not entry["repacked"]),
    }


if __name__ == "__main__":
    main()
