"""The cache of cubins: shared, checked, never in the way."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_variants.fatbin.codecs import LZ4, ZSTD, Codec, Encoding
from vllm_variants.fatbin.native.cache import Cache, default_folder, key_of
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.model.capability import Target
from vllm_variants.system import atomic

KEY = "ab" * 32
CUBIN = b"\x7fELF machine code " * 500
PTXAS = Compiler(Path("ptxas"), "12.9.86", "build", "digest")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> Cache:
    return Cache(tmp_path / "cubins", note=notes.append)


def test_what_is_kept_comes_back_as_it_will_be_stored(cache: Cache, notes: list[str]) -> None:
    assert cache.get(KEY) is None
    stored = cache.put(KEY, CUBIN)

    kept = cache.get(KEY)
    assert kept and kept.cubin == CUBIN and kept.stored == stored
    assert stored.encoding == ZSTD
    assert notes == []


def test_the_key_is_made_of_all_that_decides_a_cubin() -> None:
    target = Target.parse("9.0")
    keys = [
        key_of(b"ptx", target, (), PTXAS),
        key_of(b"ptx2", target, (), PTXAS),
        key_of(b"ptx", Target.parse("9.0a"), (), PTXAS),
        key_of(b"ptx", target, ("-O2",), PTXAS),
        key_of(b"ptx", target, (), Compiler(PTXAS.ptxas, "12.9.87", "build", "digest")),
        key_of(b"ptx", target, (), Compiler(PTXAS.ptxas, "12.9.86", "build", "digest2")),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key_of(b"ptx", target, (), Compiler(Path("/elsewhere/ptxas"), *(
        PTXAS.version, PTXAS.build, PTXAS.digest
    )))  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_damaged_entry_is_said_and_never_believed(tmp_path: Path, data: st.DataObject) -> None:
    notes: list[str] = []
    cache = Cache(tmp_path / "cubins", note=notes.append)
    cache.put(KEY, CUBIN)
    path = cache.path(KEY)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)

    kept = cache.get(KEY)
    if kept is None:
        assert len(notes) == 1 and str(path) in notes[0] and "compiled again" in notes[0]
    else:  # the damage hit only what says how it was encoded
        assert kept.cubin == CUBIN


@pytest.mark.parametrize(
    "head",
    [b"", b"[]", b"null", b"{}", b"[" * 3000, b'{"schema": 1}', b"\xff\xfe", b'{"size": 1e400}'],
    ids=str,
)
def test_an_entry_with_another_head_is_said(cache: Cache, notes: list[str], head: bytes) -> None:
    cache.put(KEY, CUBIN)
    cache.path(KEY).write_bytes(head + b"\n" + CUBIN)
    assert cache.get(KEY) is None
    assert len(notes) == 1


def test_an_entry_that_claims_100_gb_is_refused(cache: Cache, notes: list[str]) -> None:
    cache.put(KEY, CUBIN)
    line, _, rest = cache.path(KEY).read_bytes().partition(b"\n")
    head = json.loads(line) | {"size": 100_000_000_000}
    cache.path(KEY).write_bytes(json.dumps(head).encode() + b"\n" + rest)
    assert cache.get(KEY) is None
    assert "claims 100000000000 bytes" in notes[0]


def test_the_entry_of_another_key_is_refused(cache: Cache, notes: list[str]) -> None:
    other = "cd" * 32
    cache.put(other, CUBIN)
    cache.path(KEY).parent.mkdir()
    cache.path(KEY).write_bytes(cache.path(other).read_bytes())
    assert cache.get(KEY) is None
    assert "another key's" in notes[0]


def test_a_pipe_a_folder_or_a_link_in_its_place_is_no_entry(cache: Cache, notes: list[str]) -> None:
    path = cache.path(KEY)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert cache.get(KEY) is None  # and does not wait for a writer
    path.unlink()
    path.mkdir()
    assert cache.get(KEY) is None
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert cache.get(KEY) is None
    assert notes and "damaged" in notes[0]


def test_an_entry_of_another_encoder_gives_the_cubin_but_not_its_bytes(cache: Cache) -> None:
    """Results must not depend on who filled the cache: only our own encoder's bytes are taken."""
    cache.put(KEY, CUBIN)
    line, _, rest = cache.path(KEY).read_bytes().partition(b"\n")
    head = json.loads(line) | {"encoder": "zstd 1.4.0 level 9"}
    cache.path(KEY).write_bytes(json.dumps(head).encode() + b"\n" + rest)
    kept = cache.get(KEY)
    assert kept and kept.cubin == CUBIN and kept.stored is None


def test_what_another_tuning_of_the_same_level_stored_is_stored_anew(tmp_path: Path) -> None:
    Cache(tmp_path, encoding=Encoding(Codec.ZSTD, ZSTD.level)).put(KEY, CUBIN)
    kept = Cache(tmp_path, encoding=ZSTD).get(KEY)
    assert kept and kept.cubin == CUBIN and kept.stored is None


def test_caches_of_other_encodings_share_entries(tmp_path: Path) -> None:
    Cache(tmp_path, encoding=LZ4).put(KEY, CUBIN)
    kept = Cache(tmp_path, encoding=ZSTD).get(KEY)
    assert kept and kept.cubin == CUBIN and kept.stored and kept.stored.encoding == LZ4


def test_a_cache_that_cannot_be_written_is_one_note(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cubins", note=notes.append)
    for number in range(3):
        assert cache.put(f"{number:064x}", CUBIN).size == len(CUBIN)
    assert len(notes) == 1 and "cannot be written" in notes[0] and "going on without it" in notes[0]


def test_a_cache_that_is_read_only_still_serves(
    cache: Cache, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a share of another user; root may write everywhere, so the refusals are made by hand."""

    def refused(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    cache.put(KEY, CUBIN)
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(atomic, "write", refused)
    kept = cache.get(KEY)
    assert kept and kept.cubin == CUBIN
    assert notes == []
    assert cache.put("ff" * 32, b"more").size == 4
    assert len(notes) == 1 and "Read-only file system" in notes[0]


def test_many_writers_and_readers_of_one_key_never_see_half(cache: Cache, notes: list[str]) -> None:
    stop = time.monotonic() + 1.0

    def write() -> None:
        while time.monotonic() < stop:
            cache.put(KEY, CUBIN)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        kept = cache.get(KEY)
        assert kept is None or kept.cubin == CUBIN
    for thread in threads:
        thread.join()
    assert notes == []
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [f"{KEY}.cubin"]


def test_its_size_is_known_and_what_was_not_used_goes(cache: Cache) -> None:
    keys = [f"{number:064x}" for number in range(4)]
    for key in keys:
        cache.put(key, CUBIN)
    assert cache.usage().count == 4
    assert cache.usage().bytes == sum(cache.path(key).stat().st_size for key in keys)
    long_ago = time.time() - 90 * 86400
    for key in keys:
        os.utime(cache.path(key), (long_ago, long_ago))
    assert cache.get(keys[0])  # a use counts

    assert cache.remove(unused_for=30 * 86400).count == 3
    assert cache.usage().count == 1
    assert cache.remove().count == 1
    assert list(cache.root.iterdir()) == []


def test_removal_takes_nothing_that_is_not_ours(cache: Cache) -> None:
    cache.put(KEY, CUBIN)
    mine = [cache.path(KEY).with_name("notes.cubin"), cache.root / "read me", cache.root / "zz" / "x"]
    mine[2].parent.mkdir()
    for path in mine:
        path.write_text("mine")
    left = cache.path(KEY).with_name(f".{KEY}.cubin.0123456789ab.vllm-variants-new")
    left.write_bytes(b"half a cubin of a killed writer")

    assert cache.remove().count == 1
    assert all(path.read_text() == "mine" for path in mine)
    assert not left.exists()


def test_the_folder_is_where_the_person_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_VARIANTS_CUBINS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vllm-variants" / "cubins"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_folder() == Path.home() / ".cache" / "vllm-variants" / "cubins"
    monkeypatch.setenv("VLLM_VARIANTS_CUBINS", str(tmp_path / "share"))
    assert default_folder() == tmp_path / "share"
