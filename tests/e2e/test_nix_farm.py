"""Beyond one store: remote builders, remote stores, a signed binary cache. All on this machine.

`ssh` is a script that runs Nix's daemon on a store of its own, so the protocol is the real one.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import SEEN, Farm, Run, farm

pytestmark = pytest.mark.nix

SSH = """#!/bin/sh
host=$1; shift
[ "$host" != -O ] || exit 1
while [ $# -gt 0 ]; do
  case $1 in --) shift; break ;; -oLocalCommand=*) echo started; shift ;; -*) shift ;; *) break ;; esac
done
[ $# -gt 0 ] || exit 0
echo "$host: $*" >> {calls}
NIX_CONFIG='{settings}' NIX_REMOTE='local?root={root}' exec sh -c "$*"
"""


@pytest.fixture
def here(tmp_path: Path) -> Farm:
    made = farm(tmp_path)
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a second store builds in a mount namespace, which is not allowed here")
    return made


@pytest.fixture
def far(here: Farm, tmp_path: Path) -> Path:
    """The root of a second store, reached as ssh-ng://farm."""
    root = tmp_path / "far"
    programs = tmp_path / "programs"
    programs.mkdir()
    interpreter = Path(here.model(fresh=False) / "interpreter").read_text().strip()
    seen = " ".join([SEEN, *{str(Path(p).parents[1]) for p in (interpreter, Path(interpreter).resolve())}])
    settings = f"extra-platforms = aarch64-linux\nsandbox-paths = {seen}\nsandbox = false\nsubstituters =\n"
    ssh = programs / "ssh"
    ssh.write_text(SSH.format(calls=tmp_path / "calls", root=root, settings=settings))
    ssh.chmod(0o755)
    here.environment["PATH"] = f"{programs}:{here.environment['PATH']}"
    here.environment["FAR_SETTINGS"] = seen
    return root


def test_a_remote_builder_builds_and_the_result_comes_here(here: Farm, far: Path) -> None:
    builders = "ssh-ng://farm x86_64-linux,aarch64-linux - 4 1 big-parallel"
    run = here.run(here.model(), "sm90", "sm90-arm64", "--builders", builders, "--max-jobs", "1")
    assert run.status == 0, run.err
    assert "sm90: building on ssh-ng://farm" in run.err
    assert run.facts["sm90-arm64"]["manifest"]["system"] == "aarch64-linux"
    for short in ("sm90", "sm90-arm64"):
        assert here.link(short).resolve().is_dir()
        assert (far / here.link(short).resolve().relative_to("/")).is_dir()
    assert "[12/12]" in here.log("sm90")


def test_a_failure_on_a_remote_builder_names_the_machine(here: Farm, far: Path) -> None:
    builders = "ssh-ng://farm x86_64-linux - 4 1 big-parallel"
    run = here.run(f"{here.model()}?dir=behaviour/failing", "sm89", "--builders", builders)
    assert run.status == 1
    assert "on ssh-ng://farm" in run.err
    assert "mma_m16n8k16" in run.err


def test_an_unreachable_builder_is_told(here: Farm, far: Path) -> None:
    (here.root / "programs" / "ssh").write_text("#!/bin/sh\necho 'no route to host' >&2; exit 255\n")
    run = here.run(here.model(), "sm90", "--store", "ssh-ng://farm")
    assert run.status == 6, run.err
    assert "could not be reached" in run.err


@pytest.mark.parametrize("store", ["ssh-ng://farm", "local?root={far}"])
def test_a_build_in_another_store_is_fetched_audited_and_linked(here: Farm, far: Path, store: str) -> None:
    seen = f"sandbox-paths={here.environment['FAR_SETTINGS']}"
    run = here.run(here.model(), "sm90", "--store", store.format(far=far), "--nix-option", seen)
    assert run.status == 0, run.err
    path = Path(run.facts["sm90"]["path"])
    assert here.link("sm90").resolve() == path
    assert path.is_dir()
    assert (far / path.relative_to("/")).is_dir()
    assert Path(run.facts["sm90"]["audit"]).exists()


@pytest.fixture
def daemon(here: Farm) -> Iterator[None]:
    """Nix as installed for many users: all calls go through a daemon of its own, on a socket of ours."""
    socket = here.root / "socket"
    program = shutil.which("nix-daemon", path=here.environment["PATH"])
    if not program:
        pytest.skip("there is no nix-daemon beside nix")
    env = {**here.environment, "NIX_DAEMON_SOCKET_PATH": str(socket)}
    serving = subprocess.Popen([program, "--daemon"], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    here.environment["NIX_REMOTE"] = f"unix://{socket}"
    yield
    serving.terminate()
    serving.wait(20)


@pytest.mark.usefixtures("daemon")
def test_a_daemon_tells_failures_at_once_too(here: Farm) -> None:
    run = here.run(f"{here.model()}?dir=behaviour/failing", "sm89", "sm90", "--max-jobs", "2")
    assert run.status == 1, run.err
    assert run.facts["sm90"]["status"] == "built"
    assert "sm89 failed at object 58 of 406 after" in run.err
    assert "mma_m16n8k16" in run.facts["sm89"]["reason"]
    assert "406/406" in here.log("sm90")


@pytest.fixture
def key(here: Farm) -> tuple[Path, str]:
    """A secret key's file, and its public key."""
    secret = here.nix("key", "generate-secret", "--key-name", "farm-1").stdout
    path = here.root / "secret"
    path.write_text(secret)
    completed = subprocess.run(
        ["nix", "key", "convert-secret-to-public"],
        input=secret, env=here.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return path, completed.stdout.strip()


def fetch(here: Farm, path: str, cache: str, public: str) -> int:
    """Copy a path out of a cache into a new store that trusts one key alone."""
    settings = f"require-sigs = true\ntrusted-public-keys = {public}\nexperimental-features = nix-command"
    completed = subprocess.run(
        ["nix", "copy", "--from", cache, "--to", f"local?root={here.root / 'fetched'}", path],
        env={**here.environment, "NIX_CONFIG": settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return completed.returncode


def test_an_audited_result_is_pushed_signed_and_another_store_takes_it(
    here: Farm, key: tuple[Path, str]
) -> None:
    secret, public = key
    cache = f"file://{here.root / 'cache'}"
    run = here.run(here.model(), "sm90", "--push", cache, "--signing-key", str(secret))
    assert run.status == 0, run.err
    fact = run.facts["sm90"]
    assert fact["pushed"] == cache
    assert str(secret) not in run.out + run.err
    assert fetch(here, fact["path"], cache, public) == 0
    assert (here.root / "fetched" / fact["path"].lstrip("/")).is_dir()


def test_without_a_signature_another_store_refuses_it(here: Farm, key: tuple[Path, str]) -> None:
    cache = f"file://{here.root / 'cache'}"
    run = here.run(here.model(), "sm90", "--push", cache)
    assert run.status == 0, run.err
    assert fetch(here, run.facts["sm90"]["path"], cache, key[1]) != 0


def test_what_the_cache_has_is_fetched_not_built(here: Farm, key: tuple[Path, str]) -> None:
    secret, public = key
    cache, model = f"file://{here.root / 'cache'}", here.model()
    path = here.run(model, "sm90", "--push", cache, "--signing-key", str(secret)).facts["sm90"]["path"]
    here.link("sm90").unlink()
    assert here.nix("store", "delete", path).returncode == 0
    options = ["--nix-option", f"substituters={cache}", "--nix-option", f"trusted-public-keys={public}"]
    run = here.run(model, "sm90", *options)
    assert run.status == 0, run.err
    assert run.facts["sm90"]["how"] == "fetched"


def test_a_push_over_ssh_is_signed_and_refused_without(here: Farm, far: Path, key: tuple[Path, str]) -> None:
    secret, public = key
    script = here.root / "programs" / "ssh"
    trusting = f"require-sigs = true\ntrusted-public-keys = {public}\n"
    script.write_text(script.read_text().replace("NIX_CONFIG='", f"NIX_CONFIG='{trusting}"))
    model = here.model()
    unsigned = here.run(model, "sm90", "--push", "ssh-ng://farm")
    assert unsigned.status == 1
    assert "wants a signature that it trusts" in unsigned.err
    assert "--signing-key" in unsigned.err
    assert here.link("sm90").exists()
    run = here.run(model, "sm90", "--push", "ssh-ng://farm", "--signing-key", str(secret))
    assert run.status == 0, run.err
    completed = here.nix("path-info", "--sigs", "--store", f"local?root={far}", run.facts["sm90"]["path"])
    assert "farm-1:" in completed.stdout


def test_a_push_that_fails_keeps_the_link_and_is_no_success(here: Farm) -> None:
    (here.root / "file").write_text("")
    run: Run = here.run(here.model(), "sm90", "--push", f"file://{here.root / 'file'}/cache")
    assert run.status != 0
    assert "push" in run.err
    assert here.link("sm90").exists()


def test_what_failed_its_audit_is_not_pushed(here: Farm) -> None:
    from source_model import MODEL

    run = here.run(MODEL, "sm90", "--push", f"file://{here.root / 'cache'}")
    assert run.status == 5
    assert not (here.root / "cache").exists()


def test_the_hydra_jobset_builds_the_same_derivations(here: Farm) -> None:
    model = here.model(fresh=False)
    options = ["--no-write-lock-file", "--override-input", "nixpkgs", f"path:{model}"]
    names = "set: builtins.mapAttrs (_: v: v.drvPath) { inherit (set) sm90 sm100; }"

    def derivations(attribute: str) -> str:
        reference = f"path:{here.checkout}#{attribute}"
        completed = here.nix("eval", "--json", reference, "--apply", names, *options)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    jobs = derivations("hydraJobs.packages.x86_64-linux")
    assert jobs == derivations('legacyPackages.x86_64-linux.releases."0.13.0"')
