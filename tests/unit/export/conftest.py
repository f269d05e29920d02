"""A result small enough to export in a test: two packages of this Python's version, one with a "library"."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.builders.wheels.records import encoded
from vllm_variants.errors import MissingError
from vllm_variants.export import interpreter, portable
from vllm_variants.export.interpreter import Runtime
from vllm_variants.machine import interpreters
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.results import MANIFEST

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"lib/python{MINOR}/site-packages"
SCRIPT = """\
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python' "$0" "$@"
' '''
import vllm
print(vllm.__file__)
"""


def write_package(site: Path, name: str, files: dict[str, bytes]) -> None:
    """Install a package: its files, and a dist-info with METADATA, a licence and RECORD."""
    info = f"{name}-1.0.dist-info"
    metadata = (
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\nLicense-File: LICENSE\n"
    )
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    texts = {
        "METADATA": metadata.encode(),
        "WHEEL": wheel.encode(),
        "licenses/LICENSE": b"Permission is granted.\n",
    }
    files = {**files, **{f"{info}/{path}": data for path, data in texts.items()}}
    for path, data in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
    rows = [f"{path},{encoded(hashlib.sha256(data))},{len(data)}" for path, data in files.items()]
    (site / info / "RECORD").write_text("\n".join([*rows, f"{info}/RECORD,,"]) + "\n")


def write_result(
    path: Path, short: str = "sm90", system: str = "", created: str = "2026-11-26T10:00:00Z"
) -> Path:
    """A result of the default release: `vllm` with device code for `short`, `idna` without any."""
    rows = matrix.load()
    variant, release = rows.parse(short).variant, rows.release(None)
    site = path / SITE
    kernel = f"code for {short}".encode() * 1000
    write_package(site, "vllm", {"vllm/__init__.py": b"", "vllm/_C.abi3.so": kernel})
    write_package(site, "idna", {"idna/__init__.py": b"VALUE = 1\n", "idna/link.py": b""})
    (site / "idna" / "link.py").unlink()
    (site / "idna" / "link.py").symlink_to("__init__.py")
    (path / "bin").mkdir()
    for name, text in {"python": "#!/bin/sh\n", "python3": "#!/bin/sh\n", "vllm": SCRIPT}.items():
        (path / "bin" / name).write_text(text)
        (path / "bin" / name).chmod(0o755)
    (path / "bin" / f"python{MINOR}").symlink_to(sys.executable)
    (path / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\n")
    (path / "lib64").symlink_to("lib")
    share = path / MANIFEST.parent
    share.mkdir(parents=True)
    slimmed = {"path": f"{SITE}/vllm/_C.abi3.so", "before": 99999, "after": len(kernel), "kept": "",
               "saved": {"images": 1}, "device_code": True}  # fmt: skip
    (share / "slim.json").write_text(json.dumps({"files": [slimmed]}))
    facts = {
        "schema": 1, "variant": variant.name(release), "short": variant.short, "sm": variant.capability.sm,
        "capability": str(variant.capability), "system": system or host_system(), "release": release.name,
        "stack": release.stack.as_dict(), "builder": "wheels", "python": f"{MINOR}.0", "tool": "0.1.0",
        "created": created, "lock": f"sha256:{'0' * 64}", "index": None,
        "packages": {"vllm": "1.0", "idna": "1.0"}, "bytes": {"installed": 100, "result": 50},
        "steps": [{"name": "slim", "status": "ran", "seconds": len(created) * 1.0}],
    }  # fmt: skip
    (path / MANIFEST).write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """This test run's own Python, made relocatable: once, since it takes seconds."""
    try:
        found = interpreters.find(MINOR, Path(sys.base_prefix) / "bin" / f"python{MINOR}")
        return interpreter.take(found, tmp_path_factory.mktemp("runtime") / "python", lambda line: None)
    except MissingError as error:
        pytest.skip(f"this Python cannot be made relocatable: {error}")


@pytest.fixture
def small_python(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A folder that stands for a relocatable Python: to write it takes no time."""
    folder = tmp_path_factory.mktemp("runtime") / "python"
    for path in (f"bin/python{MINOR}", f"lib/python{MINOR}/os.py", f"include/python{MINOR}/Python.h"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    (folder / "bin" / f"python{MINOR}").chmod(0o755)
    return Runtime(folder, MINOR, f"{MINOR}.0", (), "2.28", SITE)


def take(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have exports take this Python."""
    found = Interpreter(Path(sys.executable), runtime.version, "made before")
    monkeypatch.setattr(portable.interpreter, "chosen", lambda result, requested, say: found)
    monkeypatch.setattr(portable.interpreter, "take", lambda found, to, say: runtime)


@pytest.fixture
def made_before(small_python: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take a small folder for Python."""
    take(small_python, monkeypatch)


def write_base(folder: Path, change: Callable[[Any, Any], object] = lambda manifest, config: None) -> Path:
    """An image layout with one layer that has one file; `change` may break its manifest or configuration."""
    layer = folder.with_name("base.tar")
    (folder.with_name("hostname")).write_text("base")
    with tarfile.open(layer, "w") as archive:
        archive.add(folder.with_name("hostname"), "etc/issue")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[host_system().partition("-")[0]]
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    layers = [keep(layer.read_bytes(), "layer.v1.tar")]
    config: dict[str, Any] = {
        "os": "linux", "architecture": machine, "config": {"Env": ["PATH=/bin", "OF_BASE=1"]},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"]]},
    }  # fmt: skip
    manifest: dict[str, Any] = {"schemaVersion": 2, "layers": layers}
    change(manifest, config)
    manifest["config"] = keep(json.dumps(config).encode(), "config.v1+json")
    index = {"schemaVersion": 2, "manifests": [keep(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layer.unlink()
    folder.with_name("hostname").unlink()
    return folder


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A base image, as `--base` takes it."""
    return f"oci:{write_base(tmp_path / 'base')}"


def contents(folder: Path) -> dict[str, object]:
    """Every file and link in a folder with its bytes or target, and its mode."""
    return {
        str(path.relative_to(folder)): (str(path.readlink()), 0)
        if path.is_symlink()
        else (path.read_bytes(), path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
