"""What exports cost and give: time, peak memory, bytes, and what images of several variants share.

    python bench/export.py result-vllm-python312-cuda12_9-sm90 [result-…-sm89] --work /tmp/bench
    python bench/export.py RESULT --levels 1,3,6,9,12,19      # bytes and seconds of zstd's levels

Each export runs in a process of its own; peak memory is that of the largest process. Images share what has
one digest, so a registry or a node keeps it once: with two results the share of a pair is measured, and
that of all ten variants is computed from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIANTS = 10
FORMS = {
    "folder": "folder:{}",
    "tar.zst": "tar.zst:{}.tar.zst",
    "oci": "oci:{}",
    "oci-archive": "oci-archive:{}.tar",
}


def exported(results: Sequence[Path], to: str, options: Sequence[str]) -> dict[str, Any]:
    """Run one export; its document, with `seconds` and `peak` (bytes)."""
    named = [word for path in results for word in ("--result", str(path))]
    command = [sys.executable, "-m", "vllm_variants", "export", *named, "--to", to, "--json", *options]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # of this process and those that it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)  # the command has said why
    document: dict[str, Any] = json.loads(told)
    peak = usage.ru_maxrss * 1024
    return {**document, "seconds": round(time.monotonic() - started, 1), "peak": peak}


def sharing(images: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Bytes of images one by one, and in one store of blobs; those of `VARIANTS` such images in one store."""
    blobs = [{layer["digest"]: layer["bytes"] for layer in image["layers"]} for image in images]
    store = {digest: size for image in blobs for digest, size in image.items()}
    common = set.intersection(*map(set, blobs))
    shared = sum(store[digest] for digest in common)
    own = [sum(size for digest, size in image.items() if digest not in common) for image in blobs]
    each = sum(own) // len(own)
    return {
        "apart": sum(sum(image.values()) for image in blobs),
        "store": sum(store.values()),
        "shared": shared,
        "own": each,
        f"store_of_{VARIANTS}": shared + VARIANTS * each,
        f"apart_of_{VARIANTS}": VARIANTS * (shared + each),
    }


def levels(result: Path, which: Sequence[int]) -> list[dict[str, object]]:
    """Bytes and seconds of the packages of a result at each level of zstd, with two threads."""
    from vllm_variants.export import tarring
    from vllm_variants.export.tarring import Compression, Packed
    from vllm_variants.export.tree import scanned

    entries = [entry for entry in scanned(result / "lib", "lib") if entry.size]
    found = []
    for level in which:
        tarring.ZSTD_LEVEL = level
        started = time.monotonic()
        with Path(os.devnull).open("wb") as nowhere:
            packed = Packed(nowhere, Compression.ZSTD)
            with tarring.writing(packed) as writer:
                tarring.add_tree(writer, entries)
            packed.finish()
        found.append({"level": level, "bytes": packed.size, "seconds": round(time.monotonic() - started, 1)})
        print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, help="a folder with room for the largest export")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--base", help="as of export")
    parser.add_argument("--python", help="as of export")
    parser.add_argument("--levels", help="measure these levels of zstd instead")
    arguments = parser.parse_args()
    if arguments.levels:
        print(json.dumps(levels(arguments.results[0], [int(level) for level in arguments.levels.split(",")])))
        return
    named = {"--python": arguments.python, "--base": arguments.base}
    facts: dict[str, Any] = {}
    for form in arguments.forms.split(","):
        options = [word for name, value in named.items() if value for word in (name, value)]
        several = form in ("oci", "oci-archive")
        if not several and arguments.base:
            options = options[: 2 * bool(arguments.python)]
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            results = arguments.results if several else arguments.results[:1]
            made = exported(results, FORMS[form].format(Path(folder, "made")), options)
            facts[form] = {name: made[name] for name in ("bytes", "seconds", "peak")}
            if several:
                facts[form]["images"] = {
                    image["tag"]: sum(layer["bytes"] for layer in image["layers"]) for image in made["images"]
                }
                facts[form]["layers"] = max(len(image["layers"]) for image in made["images"])
            if several and len(results) > 1:
                facts[form]["sharing"] = sharing(made["images"])
            shutil.rmtree(Path(folder), ignore_errors=True)
            Path(folder).mkdir(exist_ok=True)
        print(form, json.dumps(facts[form]), file=sys.stderr)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
