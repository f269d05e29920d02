"""What uv is told: the person's way to the packages, and nothing that is about other work of theirs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import toy_index
from toy_index import ToyIndex

from vllm_variants import data
from vllm_variants.builders.wheels import locks
from vllm_variants.builders.wheels.builder import Wheels
from vllm_variants.errors import Error, InputError, MissingError
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.store import Store
from vllm_variants.system import uv

MATRIX = matrix.load()
HOST = host_system()
MINOR = MATRIX.default.stack.python

try:
    interpreters.find(MINOR)
except MissingError as absent:
    pytest.skip(f"the builder needs Python {MINOR}: {absent.message}", allow_module_level=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyIndex:
    return toy_index.make(tmp_path / "index", monkeypatch)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of somebody's, to stand in."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def build(links: Path) -> Result:
    links.mkdir(exist_ok=True)
    variant = MATRIX.parse("9.0", system=HOST).variant
    request = Request(variant, MATRIX.default, links, slim=False, bytecode="none")
    return Wheels(Store.default()).build(request, lambda text: None)


def require_whole(result: Result) -> None:
    """The lock's packages are in the result, as files of its own, and no bytecode that uv made."""
    site = result.path / "lib" / f"python{MINOR}" / "site-packages"
    assert result.manifest.facts["packages"] == {"torch": "2.9.1", "vllm": "0.13.0"}
    files = [path for path in site.rglob("*") if not path.is_dir()]
    assert files and not [path for path in files if path.is_symlink()]
    assert not list(site.rglob("*.pyc"))


FOREIGN = {
    "pyproject.toml": """\
[project]
name = "theirs"
version = "1"
[tool.uv]
constraint-dependencies = ["torch==1"]
override-dependencies = ["torch==1"]
exclude-newer = "2000-01-01T00:00:00Z"
no-binary = true
[tool.uv.pip]
target = "elsewhere"
link-mode = "symlink"
compile-bytecode = true
""",
    "uv.toml": """\
constraint-dependencies = ["torch==1"]
link-mode = "symlink"
[pip]
prefix = "elsewhere"
no-binary = ["torch"]
index-url = "http://127.0.0.1:9/simple"
""",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("above", [False, True])
def test_the_settings_of_the_folder_one_stands_in_do_not_count(
    name: str, above: bool, index: ToyIndex, project: Path, tmp_path: Path
) -> None:
    (project / name if not above else tmp_path / name).write_text(FOREIGN[name])
    before = sorted(tmp_path.rglob("elsewhere*"))
    require_whole(build(tmp_path / "here"))
    assert sorted(tmp_path.rglob("elsewhere*")) == before
    assert [path.name for path in project.iterdir()] == ([] if above else [name])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UV_LINK_MODE", "symlink"),
        ("UV_CONSTRAINT", "torch==1"),
        ("UV_EXCLUDE_NEWER", "2000-01-01"),
        ("UV_COMPILE_BYTECODE", "1"),
        ("UV_TORCH_BACKEND", "cpu"),
        ("UV_VENV_SEED", "1"),
    ],
)
def test_variables_about_other_work_do_not_count(
    variable: str, value: str, index: ToyIndex, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "==" in value:
        (tmp_path / "requirements.txt").write_text(value)
        value = str(tmp_path / "requirements.txt")
    monkeypatch.setenv(variable, value)
    require_whole(build(tmp_path / "here"))
    assert list(project.iterdir()) == []


def test_a_wrong_hash_is_refused_whatever_the_variables_say(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = index.lock(MATRIX.default, HOST)
    lock.write_text(lock.read_text()[:-9] + "00000000\n")
    monkeypatch.setenv("UV_NO_VERIFY_HASHES", "1")
    with pytest.raises(Error, match="wrong hash"):
        build(tmp_path / "here")


def test_a_result_outlives_uvs_cache(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_LINK_MODE", "symlink")
    result = build(tmp_path / "here")
    shutil.rmtree(index.root / "uv-cache")
    require_whole(result)


def test_files_are_shared_with_uvs_cache_by_hard_links(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_LINK_MODE", "copy")
    result = build(tmp_path / "here")
    assert (
        result.path / "lib" / f"python{MINOR}" / "site-packages" / "torch" / "__init__.py"
    ).stat().st_nlink > 1


def test_files_are_copied_where_no_hard_link_can_be(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev/shm")
    if not (other.is_dir() and os.access(other, os.W_OK)) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    cache = other / f"vllm-variants-test-{os.getpid()}"
    monkeypatch.setenv("UV_CACHE_DIR", str(cache))
    try:
        require_whole(build(tmp_path / "here"))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@pytest.mark.parametrize("how", ["person", "machine", "named", "pip"])
def test_the_index_of_uvs_own_settings_counts_and_their_target_does_not(
    how: str, index: ToyIndex, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror in ~/.config/uv/uv.toml is how a company's machines reach packages at all."""
    address = index.serve()
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "person"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))
    place = f'index-url = "{address}"\n' if how == "pip" else ""
    whole = f'[[index]]\nname = "ours"\nurl = "{address}"\ndefault = true\n' if how != "pip" else ""
    text = f'link-mode = "symlink"\n{whole}[pip]\n{place}target = "elsewhere"\n'
    file = tmp_path / ("person" if how == "pip" else how) / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    if how == "named":
        monkeypatch.setenv("UV_CONFIG_FILE", str(file))
    require_whole(build(tmp_path / "here"))
    assert list(project.iterdir()) == []


def handed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, person: str, machine: str = ""
) -> dict[str, object]:
    """The settings that uv gets of these two files."""
    for name, text in (("person", person), ("machine", machine)):
        file = tmp_path / name / "uv" / "uv.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.delenv("UV_CONFIG_FILE", raising=False)
    monkeypatch.delenv("UV_NO_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "person"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))
    fake = tmp_path / "uv"
    fake.write_text(
        '#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; [ "$1" = --config-file ] && cat "$2"; done; exit 0\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("VLLM_VARIANTS_UV", str(fake))
    import tomllib

    return tomllib.loads(uv.run(["pip", "sync"]).stdout)


def test_the_persons_settings_come_before_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = 'cache-dir = "/cache"\nfind-links = ["wheels"]\n[[index]]\nurl = "https://first"\n'
    machine = 'cache-dir = "/other"\noffline = true\n[[index]]\nurl = "https://second"\n'
    person += "[pip]\nno-index = true\n"
    machine += "[pip]\nno-index = false\n"
    assert handed(tmp_path, monkeypatch, person, machine) == {
        "cache-dir": "/cache",
        "offline": True,
        "find-links": [str(tmp_path / "person" / "uv" / "wheels")],
        "index": [{"url": "https://first"}, {"url": "https://second"}],
        "pip": {"no-index": True},
    }


def test_settings_that_are_not_about_the_way_to_packages_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handed(tmp_path, monkeypatch, 'link-mode = "copy"\n[pip]\ntarget = "x"\n') == {}


def test_settings_that_are_no_toml_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"uv\.toml:1: not valid TOML"):
        handed(tmp_path, monkeypatch, "[[[")


def test_no_settings_are_read_where_a_person_forbids_it(
    index: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = index.root / "config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[[[")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    require_whole(build(tmp_path / "here"))


@pytest.mark.parametrize("kind", ["absent", "forbidden", "folder"])
def test_a_uv_that_cannot_be_started_is_missing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "uv"
    if kind == "folder":
        program.mkdir()
    elif kind == "forbidden":
        program.write_text("")
        program.chmod(0o600)
    monkeypatch.setenv("VLLM_VARIANTS_UV", str(program))
    with pytest.raises(MissingError, match="uv cannot be started") as caught:
        uv.run(["--version"])
    assert "VLLM_VARIANTS_UV" in str(caught.value)


def test_credentials_and_proxies_reach_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {
        "UV_INDEX_OURS_USERNAME": "me",
        "UV_HTTP_TIMEOUT": "9",
        "UV_CONCURRENT_DOWNLOADS": "2",
        "UV_INSECURE_HOST": "host",
        "UV_CACHE_DIR": "/cache",
        "HTTPS_PROXY": "http://proxy",
        "SSL_CERT_FILE": "/cert",
        "NETRC": "/netrc",
    }
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    assert uv.environment().items() >= kept.items()


def test_a_lock_is_made_of_its_inputs_wherever_one_stands(
    index: ToyIndex, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = MATRIX.default
    lock = index.root / "locks" / f"{release.name}-{locks.platform_of(HOST)}.txt"
    lock.unlink()
    (lock.parent / f"{release.name}.in").write_text(f"vllm=={release.name}\ntorch\n")
    (lock.parent / "cuda12.9-torch2.9.1.overrides").write_text("torch==2.9.1\n")
    monkeypatch.setattr(data, "checkout", lambda: index.root)
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2000-01-01")
    (project / "pyproject.toml").write_text(FOREIGN["pyproject.toml"])
    assert locks.remake(release, HOST) == lock
    text = lock.read_text()
    assert f"vllm=={release.name} " in text and "--hash=sha256:" in text


@pytest.mark.parametrize(
    "name",
    [
        "UV_TARGET",
        "UV_PREFIX",
        "UV_BUILD_CONSTRAINT",
        "UV_OVERRIDE",
        "UV_NO_BINARY",
        "UV_SYSTEM_PYTHON",
        "UV_PYTHON",
        "UV_PROJECT_ENVIRONMENT",
        "UV_NO_VERIFY_HASHES",
        "VIRTUAL_ENV",
    ],
)
def test_uv_does_not_see_variables_that_it_reads_for_other_commands_or_may_read_one_day(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "elsewhere")
    assert name not in uv.environment()
