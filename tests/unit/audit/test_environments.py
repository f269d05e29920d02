"""Environments as people have them: venvs, conda prefixes, interpreters, and folders beside them."""

from __future__ import annotations

import json
import os
import sys
import time
import venv
from pathlib import Path

import pytest
from making import cubin, library, section

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.targets import environments, identify
from vllm_variants.audit.targets.environments import active, read_python
from vllm_variants.audit.targets.found import Found, Kind
from vllm_variants.errors import InputError, MissingError, UsageError

CODE = section([cubin("sm_90")])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def packages(prefix: Path) -> Path:
    """The site-packages of an environment, with a vLLM of one library."""
    (folder,) = prefix.glob("lib/python3*/site-packages")
    (folder / "vllm").mkdir()
    library(folder / "vllm" / "_C.abi3.so", CODE)
    (folder / "vllm-0.13.0+cu129.dist-info").mkdir()
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A real virtual environment, of the Python that runs the tests."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    packages(tmp_path / "env")
    return tmp_path / "env"


def paths(found: Found) -> list[str]:
    return [each.path for each in found.libraries]


def quiet(name: str) -> None:
    pass


LIBRARY = f"lib/python3.{sys.version_info.minor}/site-packages/vllm/_C.abi3.so"


def test_a_virtual_environment_is_read_whole_and_knows_its_vllm(environment: Path) -> None:
    found = identify.read(environment)
    assert (found.kind, found.release, paths(found)) == (Kind.ENVIRONMENT, "0.13.0", [LIBRARY])
    assert found.notes == ()


def test_an_interpreter_says_where_it_imports_from(environment: Path) -> None:
    by_python = read_python(environment / "bin" / "python", quiet, fresh=True)
    assert by_python == identify.read(environment)


def test_what_it_imports_from_outside_is_read_too_where_it_is_asked(environment: Path) -> None:
    """With the system's packages the prefix is not all: the interpreter names the other folders."""
    configuration = environment / "pyvenv.cfg"
    text = configuration.read_text().replace(
        "include-system-site-packages = false", "include-system-site-packages = true"
    )
    configuration.write_text(text)
    (note,) = identify.read(environment).notes
    assert "also uses the system's packages" in note
    found = read_python(environment / "bin" / "python", quiet, fresh=True)
    assert found.release == "0.13.0"
    assert f"{environment.resolve()}/{LIBRARY}" in [str(Path(path).resolve()) for path in paths(found)]


def test_a_conda_prefix_is_an_environment_without_its_downloads_and_other_environments(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "conda"
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    packages(prefix)
    for other in ("pkgs/libcublas-12/lib", "envs/other/lib"):
        (prefix / other).mkdir(parents=True)
        library(prefix / other / "libother.so", CODE)
    library(prefix / "lib" / "libcublas.so.12", CODE)
    found = identify.read(prefix)
    assert (found.kind, found.release) == (Kind.ENVIRONMENT, "0.13.0")
    assert paths(found) == ["lib/libcublas.so.12", "lib/python3.12/site-packages/vllm/_C.abi3.so"]


def test_folders_that_a_pth_file_adds_are_mentioned(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (folder,) = environment.glob("lib/python3*/site-packages")
    (folder / "editable.pth").write_text(f"{tmp_path / 'checkout'}\nimport sys\n# text\nvllm\n/nowhere\n")
    (note,) = identify.read(environment).notes
    assert note.startswith(f"editable.pth adds {(tmp_path / 'checkout').resolve()}, which was not read")


def test_a_wheelhouse_is_read_wheel_by_wheel(tmp_path: Path, environment: Path) -> None:
    import zipfile

    house = tmp_path / "house"
    house.mkdir()
    for name in ("vllm-0.13.0-cp38-abi3-manylinux_2_31_x86_64.whl", "other-1-py3-none-any.whl"):
        with zipfile.ZipFile(house / name, "w") as wheel:
            wheel.write(environment / LIBRARY, f"{name.partition('-')[0]}/_C.abi3.so")
    found = identify.read(house)
    assert (found.kind, found.release) == (Kind.WHEELHOUSE, "0.13.0")
    assert [path.partition(".whl/")[2] for path in paths(found)] == ["other/_C.abi3.so", "vllm/_C.abi3.so"]


# ── which one, where none is named ──


def test_the_activated_environment_comes_before_the_one_in_the_folder(tmp_path: Path) -> None:
    here = tmp_path / "project" / "below"
    (tmp_path / "project" / ".venv").mkdir(parents=True)
    (tmp_path / "project" / ".venv" / "pyvenv.cfg").write_text("")
    here.mkdir()
    assert active({}, here) == tmp_path / "project" / ".venv"
    assert active({"CONDA_PREFIX": "/opt/conda"}, here) == Path("/opt/conda")
    assert active({"CONDA_PREFIX": "/opt/conda", "VIRTUAL_ENV": "/v"}, here) == Path("/v")
    with pytest.raises(MissingError, match="no environment is activated"):
        active({"VIRTUAL_ENV": ""}, Path("/"))


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, MissingError), ("#!/bin/sh\necho 7\n", InputError), ("#!/bin/sh\nexit 1\n", InputError)],
)
def test_a_program_that_is_no_python_is_refused(tmp_path: Path, text: str | None, error: type) -> None:
    program = tmp_path / "python"
    if text is not None:
        program.write_text(text)
        program.chmod(0o755)
    with pytest.raises(error, match="python"):
        read_python(program, quiet, fresh=True)


def test_a_second_look_reads_no_library(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_variants.audit.cache._SETTLING", -1.0)
    first = environments.read_environment(environment, quiet, fresh=False)
    assert environments.read_environment(environment, pytest.fail, fresh=False) == first
    read: list[str] = []
    assert environments.read_environment(environment, read.append, fresh=True) == first
    assert read == [LIBRARY]


def test_a_folder_may_have_any_name(environment: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / os.fsdecode(b"odd-\xff\n")
    environment.rename(elsewhere)
    read: list[str] = []
    environments.read_environment(elsewhere, read.append, fresh=False)
    assert read == [LIBRARY]


def test_what_changed_just_before_an_audit_is_not_kept_however_long_that_takes(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = (environment / LIBRARY).stat()
    for began, kept in ((status.st_ctime + 1, None), (status.st_ctime + 3, [])):
        monkeypatch.setattr(time, "time", lambda now=began: now)
        cache = Cache(environment)
        monkeypatch.setattr(time, "time", lambda: status.st_ctime + 100)
        cache.keep(LIBRARY, status, [])
        cache.save()
        assert Cache(environment).get(LIBRARY, status) == kept


def test_an_image_of_an_environment_remembers_what_was_read(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another host its files have other inodes and times to the second: what a layer keeps is enough."""
    import shutil

    monkeypatch.setattr("vllm_variants.audit.cache._SETTLING", -1.0)
    first = identify.read(environment, remember=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    there = tmp_path / "host" / "env"
    shutil.copytree(environment, there, symlinks=True)
    os.utime(there / LIBRARY, (0, int((environment / LIBRARY).stat().st_mtime)))
    assert environments.read_environment(there, pytest.fail, fresh=False).libraries == first.libraries

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    library(there / LIBRARY, section([cubin("sm_75")], [cubin("sm_80")]))
    (changed,) = identify.read(there).libraries
    assert len(changed.containers) == 2, "another size: it is read"


def test_a_memory_of_other_code_or_of_no_form_is_not_used(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vllm_variants.audit.cache._SETTLING", -1.0)
    identify.read(environment, remember=True)
    memory = environment / "share" / "vllm-variants" / "audited.json"
    document = json.loads(memory.read_text())
    assert next(iter(document["files"])).endswith(LIBRARY)
    for number, other in enumerate(
        (
            {**document, "code": "0"},
            {**document, "files": []},
            {"files": {}},
            [],
            {**document, "files": {"x": 1}},
        )
    ):
        memory.write_text(json.dumps(other))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        read: list[str] = []
        environments.read_environment(environment, read.append, fresh=False)
        assert read == [LIBRARY]


def test_only_an_environment_can_remember(tmp_path: Path) -> None:
    library(tmp_path / "made.so", CODE)
    with pytest.raises(UsageError, match="is no environment"):
        identify.read(tmp_path, remember=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made.so"]
