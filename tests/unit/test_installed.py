"""An installation that is not whole is not taken for one, whatever uv's exit status says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.builders.wheels import installed
from vllm_variants.builders.wheels.installed import require_whole
from vllm_variants.errors import ResourceError


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nrelocatable = true\n")
    info = site(tmp_path) / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (site(tmp_path) / "toy.py").write_text("x = 1\n")
    (info / "RECORD").write_text("toy.py,sha256=x,6\ntoy-1.0.dist-info/RECORD,,\n")
    return tmp_path


def site(environment: Path) -> Path:
    return environment / "lib"


def test_a_whole_environment_is_accepted(environment: Path) -> None:
    require_whole(environment, site(environment))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings empty": (lambda e: (e / "pyvenv.cfg").write_text(""), "home"),
    "settings gone": (lambda e: (e / "pyvenv.cfg").unlink(), "home"),
    "not relocatable": (lambda e: (e / "pyvenv.cfg").write_text("home = /usr/bin\n"), "relocatable"),
    "record empty": (lambda e: (e / "lib/toy-1.0.dist-info/RECORD").write_text(""), "RECORD"),
    "record gone": (lambda e: (e / "lib/toy-1.0.dist-info/RECORD").unlink(), "RECORD"),
    "record cut": (lambda e: (e / "lib/toy-1.0.dist-info/RECORD").write_text("toy.py,sha2"), "toy.py"),
    "file gone": (lambda e: (e / "lib/toy.py").unlink(), "toy.py"),
    "file cut": (lambda e: (e / "lib/toy.py").write_text("x"), "toy.py"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_uv_did_not_write_is_found(environment: Path, damage: str) -> None:
    break_it, named = DAMAGES[damage]
    break_it(environment)
    with pytest.raises(ResourceError, match=named):
        require_whole(environment, site(environment))


def test_a_path_of_two_packages_is_as_one_of_them_recorded(environment: Path) -> None:
    other = site(environment) / "other-1.0.dist-info"
    other.mkdir()
    (other / "RECORD").write_text("toy.py,sha256=y,9\n")
    require_whole(environment, site(environment))

    (site(environment) / "toy.py").write_text("x")
    with pytest.raises(ResourceError, match=r"toy\.py"):
        require_whole(environment, site(environment))


def test_a_published_file_that_its_wheel_misrecords_is_whole(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = (b"patched later\n", b"patched for another C library\n")
    published = {("toy-1.0", "toy.py"): {hashlib.sha256(wheel).hexdigest() for wheel in wheels}}
    monkeypatch.setattr(installed, "_published", lambda: published)
    for wheel in wheels:
        (site(environment) / "toy.py").write_bytes(wheel)
        require_whole(environment, site(environment))

    (site(environment) / "toy.py").write_text("patched badly\n")
    with pytest.raises(ResourceError, match=r"toy\.py"):
        require_whole(environment, site(environment))


def test_what_is_misrecorded_is_locked_and_has_a_whole_hash() -> None:
    locks = "".join(path.read_text() for path in (data.root() / "locks").glob("[0-9]*.txt"))
    for (package, path), digests in installed._published().items():
        assert f"{package.replace('-', '==')} " in locks, path
        assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
