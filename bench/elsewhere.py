"""Whether an export runs elsewhere: a folder in a bare Debian, an image as its own user. Needs root.

    python bench/elsewhere.py folder result-vllm-python312-cuda12_9-sm90 --suite trixie --work /var/tmp
    python bench/elsewhere.py image oci:image:0.13.0-sm90 --work /var/tmp
    python bench/elsewhere.py installed .venv          # any environment with vLLM, for comparison

The folder is exported, moved to a path with a space, mounted read-only into a root that mmdebstrap made of
another release of Debian, and started by a user without a name. The image is unpacked by buildah and
started with its own user and environment. Each is asked to import vLLM and for `vllm serve --help`, on
no driver and on a simulated one (simulated_driver.c). Prints one JSON object; what failed has its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

USER = "4321:4321"
"""A user and a group that no machine knows."""
IMPORT = "import vllm, torch, sys; print(vllm.__version__, torch.__version__, sys.prefix)"
QUESTIONS = {
    "import": "{bin}python -c " + shlex.quote(IMPORT),
    "serve --help": "{bin}vllm serve --help",
    "serve --help, simulated driver": "LD_LIBRARY_PATH={driver} {bin}vllm serve --help",
    "--version, simulated driver": "LD_LIBRARY_PATH={driver} {bin}vllm --version",
}


def run(*command: str | Path) -> None:
    """Run a program that must succeed; its output is for people."""
    subprocess.run([*map(str, command)], check=True, stdout=sys.stderr)


def _is_of_program(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("Error: exit status")  # that is buildah's


def answers(start: Sequence[str], folder: str, driver: str) -> dict[str, object]:
    """What each question gives: the exit code, the seconds and the last line."""
    found: dict[str, object] = {}
    for name, line in QUESTIONS.items():
        text = line.format(bin=shlex.quote(folder) if folder else "", driver=driver)
        started = time.monotonic()
        completed = subprocess.run(
            [*start, "sh", "-c", f"cd /tmp && {text}"], capture_output=True, text=True, check=False
        )
        lines = [line for line in (completed.stdout + completed.stderr).splitlines() if _is_of_program(line)]
        seconds = round(time.monotonic() - started, 1)
        found[name] = {
            "exit": completed.returncode,
            "seconds": seconds,
            "last": lines[-1],
            "lines": len(lines),
        }
    return found


def make_driver(folder: Path) -> None:
    """Compile the simulated driver into a folder."""
    source = Path(__file__).with_name("simulated_driver.c")
    folder.mkdir(parents=True)
    for part, name in (("NVML", "libnvidia-ml.so.1"), ("CUDA", "libcuda.so.1")):
        run("gcc", "-w", "-shared", "-fPIC", f"-D{part}", "-o", folder / name, source)


@contextmanager
def mounted(source: Path, target: Path, *options: str) -> Iterator[None]:
    """A bind mount, until the block ends."""
    target.mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", source, target)
    try:
        if options:
            run("mount", "-o", ",".join(("remount", "bind", *options)), target)
        yield
    finally:
        run("umount", target)


def place_of(start: Sequence[str], words: str) -> str:
    """What the system that `start` enters says of itself: `words` of a shell that has read its os-release."""
    told = subprocess.run(
        [*start, "sh", "-c", f". /etc/os-release; echo {words}"], capture_output=True, text=True, check=True
    )
    return told.stdout.strip()


def folder(result: Path, work: Path, suite: str) -> dict[str, object]:
    """Export a result as a folder, and ask in a bare root of a Debian suite."""
    root, moved = work / "root", work / "moved there"
    run("mmdebstrap", "--quiet", "--variant=minbase", suite, root)
    run(
        sys.executable, "-m", "vllm_variants", "export", "--result", result, "--to", f"folder:{work / 'made'}"
    )
    (work / "made").rename(moved)
    make_driver(root / "opt" / "driver")
    start = ["chroot", f"--userspec={USER}", str(root), "env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp/home"]
    place = root / "srv" / "another place"
    with (
        mounted(moved, place, "ro"),
        mounted(Path("/dev"), root / "dev"),
        mounted(Path("/proc"), root / "proc"),
    ):
        return {
            "in": place_of(start, "$PRETTY_NAME"),
            **answers(start, "/srv/another place/bin/", "/opt/driver"),
        }


def image(layout: str, work: Path) -> dict[str, object]:
    """Unpack an image with buildah, and ask in it with the user and the environment that it names."""
    storage = ["--storage-driver", "overlay", "--root", str(work / "storage"), "--runroot", str(work / "run")]
    buildah = ["buildah", *storage]
    path, _, tag = layout.removeprefix("oci:").rpartition(":")
    (work / "image").symlink_to(Path(path).absolute())  # buildah makes a name of the path: in lower case
    run(*buildah, "from", "--name", "taken", f"oci:{work / 'image'}:{tag}")
    driver = work / "driver"
    make_driver(driver)
    try:
        start = [
            *buildah,
            "run",
            "--isolation",
            "chroot",
            "--volume",
            f"{driver}:/opt/driver:ro",
            "taken",
            "--",
        ]
        return {"in": place_of(start, "$PRETTY_NAME, $(id)"), **answers(start, "", "/opt/driver")}
    finally:
        run(*buildah, "rm", "taken")


def main() -> None:
    """Ask, and print the answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["folder", "image", "installed"])
    parser.add_argument("source")
    parser.add_argument("--suite", default="trixie")
    parser.add_argument("--work", type=Path, help="a folder with room for what is unpacked")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        work.chmod(0o755)
        if arguments.what == "folder":
            found = folder(Path(arguments.source), work, arguments.suite)
        elif arguments.what == "image":
            found = image(arguments.source, work)
        else:
            make_driver(work / "driver")
            start = ["env", "-i", f"PATH={os.environ['PATH']}", f"HOME={work}"]
            found = answers(start, f"{Path(arguments.source).absolute()}/bin/", str(work / "driver"))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
