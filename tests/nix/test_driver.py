"""nix/driver.sh on fake hosts: what of the host it offers to a program built by Nix, and how safely."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / "nix" / "driver.sh"
TRIPLE = f"{platform.machine()}-linux-gnu"
ABI = {"x86_64": "libc6,x86-64", "aarch64": "libc6,AArch64"}.get(platform.machine(), "")
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]

DRIVER = ("libcuda.so", "libcuda.so.1", "libcuda.so.580.65.06", "libnvidia-ml.so.1")
LOADED = ("libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4", "libnvidia-gpucomp.so.580.65.06")
FOREIGN = ("libc.so.6", "libstdc++.so.6", "libcudart.so.12", "libGL.so.1", "libcupti.so.12")

pytestmark = pytest.mark.skipif(not ABI, reason=f"no NVIDIA driver for {platform.machine()}")


@dataclass(frozen=True)
class Host:
    """A folder that stands for a host's root, and a person's home on it."""

    root: Path
    home: Path

    def have(self, folder: str, *libraries: str) -> Path:
        """Put libraries into one of the host's folders."""
        path = self.root / folder.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        for library in libraries:
            (path / library).touch()
        return path

    def cache(self, *lines: str) -> None:
        """Give the host a dynamic linker's cache of such lines."""
        text = "".join(f"\t{line}\n" for line in lines)
        program = self.have("/sbin") / "ldconfig"
        program.write_text(
            f"#!/bin/sh\n[ \"$1\" = -p ] && cat <<'END'\n1234 libs found in cache\n{text}END\n"
        )
        program.chmod(0o755)

    def start(self, shell: str = "sh", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script as a wrapper does, with no more than coreutils on PATH."""
        tools = {"PATH": "/usr/bin:/bin", "HOME": str(self.home)}
        command = [shutil.which(shell) or shell, str(SCRIPT), str(self.root)]
        return subprocess.run(command, env=tools | environment, capture_output=True, text=True, check=False)

    def offer(self, shell: str = "sh", **environment: str) -> Path | None:
        """The directory that is offered, or None. It never says anything else, and never fails."""
        done = self.start(shell, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return Path(done.stdout.removesuffix("\n")) if done.stdout else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    home.mkdir(mode=0o700)
    return Host(root, home)


def names(folder: Path | None) -> set[str]:
    assert folder is not None
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_host_without_a_driver_is_left_alone(host: Host, shell: str) -> None:
    host.have(f"/usr/lib/{TRIPLE}", *FOREIGN)
    assert host.offer(shell) is None
    assert list(host.home.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_debian_offers_the_driver_and_nothing_else(host: Host, shell: str) -> None:
    folder = host.have(f"/usr/lib/{TRIPLE}", *DRIVER, *LOADED, *FOREIGN)
    host.cache(
        f"libcudart.so.12 ({ABI}) => /usr/lib/{TRIPLE}/libcudart.so.12",
        "libcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1",
        f"libcuda.so.1 ({ABI}) => /usr/lib/{TRIPLE}/libcuda.so.1",
    )
    offered = host.offer(shell)
    assert names(offered) == {*DRIVER, *LOADED}
    assert offered is not None
    assert {path.readlink().parent for path in offered.iterdir()} == {folder}


def test_an_unusual_folder_is_found_in_the_linkers_cache(host: Host) -> None:
    host.have("/opt/driver/lib", *DRIVER)
    host.cache(f"libcuda.so.1 ({ABI}, OS ABI: Linux 3.2.0) => /opt/driver/lib/libcuda.so.1")
    assert names(host.offer()) == set(DRIVER)


def test_a_32_bit_driver_is_not_offered(host: Host) -> None:
    host.have("/usr/lib/i386-linux-gnu", *DRIVER)
    host.cache("libcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1")
    assert host.offer() is None


def test_a_cache_that_names_a_vanished_library_is_not_believed(host: Host) -> None:
    host.cache(f"libcuda.so.1 ({ABI}) => /usr/lib/{TRIPLE}/libcuda.so.1")
    assert host.offer() is None


@pytest.mark.parametrize(
    "folder", ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib64", "/usr/lib"]
)
def test_containers_and_other_distributions(host: Host, folder: str) -> None:
    host.have(folder, *DRIVER, *FOREIGN)
    assert names(host.offer()) == set(DRIVER)


def test_wsl_comes_before_a_driver_installed_there_by_mistake(host: Host) -> None:
    wsl = host.have("/usr/lib/wsl/lib", "libcuda.so.1", "libcuda.so.1.1", "libnvidia-ml.so.1", "libdxcore.so")
    host.have("/usr/lib/wsl/lib", "libd3d12.so")
    host.have(f"/usr/lib/{TRIPLE}", *DRIVER)
    host.cache(f"libcuda.so.1 ({ABI}) => /usr/lib/{TRIPLE}/libcuda.so.1")
    offered = host.offer()
    assert names(offered) == {"libcuda.so.1", "libcuda.so.1.1", "libnvidia-ml.so.1", "libdxcore.so"}
    assert offered is not None
    assert (offered / "libdxcore.so").readlink() == wsl / "libdxcore.so"


def test_nixos_needs_nothing(host: Host) -> None:
    host.have("/run/opengl-driver/lib", *DRIVER)
    host.have("/usr/lib64", *DRIVER)
    assert host.offer() is None


def test_a_driver_that_a_person_chose_stays_chosen(host: Host, tmp_path: Path) -> None:
    host.have("/usr/lib64", *DRIVER)
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "libcuda.so.1").touch()
    assert host.offer(LD_LIBRARY_PATH=f"/nowhere::{chosen}") is None
    assert host.offer(LD_LIBRARY_PATH="/nowhere:") is not None


def test_a_child_process_finds_what_its_parent_was_offered(host: Host) -> None:
    host.have("/usr/lib64", *DRIVER)
    offered = host.offer()
    assert host.offer(LD_LIBRARY_PATH=f"{offered}:/other") is None


def test_the_same_driver_is_the_same_directory_and_another_is_another(host: Host) -> None:
    folder = host.have("/usr/lib64", *DRIVER)
    first = host.offer()
    assert host.offer() == first
    (folder / "libcuda.so.580.65.06").rename(folder / "libcuda.so.590.10")
    second = host.offer()
    assert second != first
    assert "libcuda.so.590.10" in names(second)


def test_the_directory_is_the_persons_alone(host: Host) -> None:
    host.have("/usr/lib64", *DRIVER)
    offered = host.offer()
    assert offered is not None
    assert offered.parent == host.home / ".cache" / "vllm-variants-driver"
    for folder in (offered, offered.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(offered.parent) == {offered.name}


def test_starts_at_the_same_time_agree(host: Host) -> None:
    host.have("/usr/lib64", *DRIVER, *LOADED)
    with ThreadPoolExecutor(8) as pool:
        offered = set(pool.map(lambda _: host.offer(), range(16)))
    (one,) = offered
    assert names(one) == {*DRIVER, *LOADED}
    assert one is not None
    assert names(one.parent) == {one.name}


def private(offered: Path | None, temporary: Path) -> bool:
    """Whether a directory of its own was made for this start alone."""
    assert offered is not None
    assert names(offered) == set(DRIVER)
    return offered.parent == temporary and stat.S_IMODE(offered.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "unsafe",
    ["everyone may write to the cache", "another may write to ours", "ours is a link", "no home", "a colon"],
)
def test_without_a_safe_cache_each_start_has_a_directory_of_its_own(
    host: Host, tmp_path: Path, unsafe: str
) -> None:
    host.have("/usr/lib64", *DRIVER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    cache = host.home / ".cache"
    environment = {"TMPDIR": str(temporary)}
    if unsafe == "everyone may write to the cache":
        cache.mkdir()
        cache.chmod(0o777)
    elif unsafe == "another may write to ours":
        (cache / "vllm-variants-driver").mkdir(parents=True)
        (cache / "vllm-variants-driver").chmod(0o770)
    elif unsafe == "ours is a link":
        cache.mkdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (cache / "vllm-variants-driver").symlink_to(tmp_path / "elsewhere")
    elif unsafe == "no home":
        environment["HOME"] = ""
    else:
        environment["XDG_CACHE_HOME"] = str(tmp_path / "a:b")
    first, second = host.offer(**environment), host.offer(**environment)
    assert private(first, temporary)
    assert private(second, temporary)
    assert first != second


def test_a_cache_of_another_user_is_not_used(host: Host, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    host.have("/usr/lib64", *DRIVER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    cache = host.home / ".cache"
    cache.mkdir(mode=0o755)
    os.chown(cache, 12345, 12345)
    assert private(host.offer(TMPDIR=str(temporary)), temporary)


def test_where_nothing_can_be_written_nothing_is_offered(host: Host) -> None:
    host.have("/usr/lib64", *DRIVER)
    assert host.offer(HOME="/proc/nowhere", TMPDIR="/proc/nowhere") is None


def test_this_very_host_is_answered_quietly() -> None:
    """The real root, with the real dynamic linker's cache."""
    done = subprocess.run(["sh", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
