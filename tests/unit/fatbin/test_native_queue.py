"""The queue of compilers: what fails is one sentence, what is done stays done, nobody is left running."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from compiling import job, misbehaving, ptx_text

from vllm_variants.errors import InputError, MissingError, ResourceError, UnsupportedError
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.queue import Compiled, Failed, Job, Limits, Progress, compile_all
from vllm_variants.fatbin.source import Malformed

PLENTY = Limits(4, lambda: 10**12)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cubins")


def by_name(outcomes: list[Compiled | Failed]) -> dict[str, Compiled | Failed]:
    return {outcome.job.name: outcome for outcome in outcomes}


def test_cubins_come_out_and_the_second_time_from_the_cache(
    compiler: Compiler, cache: Cache, tmp_path: Path
) -> None:
    jobs = [
        job(ptx_text("a"), name="1"),
        job(ptx_text("b"), target="8.9", name="2"),
        job(ptx_text("c", target="sm_90a"), target="9.0a", name="3"),
    ]
    first = by_name(list(compile_all(jobs, compiler, cache, PLENTY, folder=tmp_path)))
    assert all(isinstance(outcome, Compiled) and not outcome.cached for outcome in first.values())
    assert all(isinstance(outcome, Compiled) and outcome.peak > 1_000_000 for outcome in first.values())

    broken = replace(compiler, ptxas=tmp_path / "no ptxas at all")
    again = by_name(list(compile_all(jobs, broken, cache, PLENTY, folder=tmp_path)))
    for name, outcome in again.items():
        before = first[name]
        assert isinstance(outcome, Compiled) and isinstance(before, Compiled)
        assert outcome.cached and outcome.cubin == before.cubin and outcome.stored == before.stored
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cubins"]  # nothing temporary is left


def test_a_refused_ptx_is_one_sentence_and_the_others_go_on(compiler: Compiler, cache: Cache) -> None:
    def lost() -> bytes:
        raise Malformed("a.so", 64, "the 8.0 image cannot be decompressed")

    jobs = [
        job(ptx_text(), name="good"),
        job(ptx_text().replace(b"fma.rn", b"fma.xx"), name="wrong"),
        job(ptx_text(version="9.3"), name="newer"),
        job(ptx_text(), target="99.0", name="unknown"),
        job(ptx_text(target="sm_90a"), target="9.0", name="specific"),
        job(b"garbage", name="garbage"),
        Job("lost", 9, job(b"").target, (), lost),
    ]
    ended = by_name(list(compile_all(jobs, compiler, cache, PLENTY)))

    assert isinstance(ended.pop("good"), Compiled)
    reasons = {name: outcome.reason for name, outcome in ended.items() if isinstance(outcome, Failed)}
    version = compiler.version
    assert reasons["wrong"].startswith(f"ptxas {version} refused its PTX at line ")
    assert reasons["newer"] == f"its PTX is of version 9.3, newer than ptxas {version} reads (up to 8.8)"
    assert reasons["unknown"] == f"ptxas {version} knows no sm_990"
    assert "'sm_90a' cannot be compiled for architecture 'sm_90'" in reasons["specific"]
    assert reasons["garbage"].startswith("it is no PTX")
    assert "cannot be decompressed" in reasons["lost"]
    assert all("\n" not in reason for reason in reasons.values())


def test_the_same_ptx_is_compiled_once_for_all_who_want_it(
    compiler: Compiler, cache: Cache, tmp_path: Path
) -> None:
    counting = misbehaving(compiler, tmp_path, f'echo >> "{tmp_path}/runs"')
    jobs = [job(ptx_text(), name=name) for name in ("a", "b", "c")]
    ended = by_name(list(compile_all(jobs, counting, cache, PLENTY)))
    assert len(ended) == 3
    assert (tmp_path / "runs").read_text().count("\n") == 1
    assert [outcome.seconds > 0 for outcome in ended.values() if isinstance(outcome, Compiled)] == [
        True, False, False,
    ]  # fmt: skip


def test_the_largest_starts_first(compiler: Compiler, cache: Cache, tmp_path: Path) -> None:
    noting = misbehaving(compiler, tmp_path, f'wc -c < "$text" >> "{tmp_path}/order"')
    sizes = (3, 9, 1, 7)
    jobs = [job(ptx_text(f"k{n}", comment="x" * 1000 * n), name=str(n)) for n in sizes]
    list(compile_all(jobs, noting, cache, Limits(1, lambda: 10**12)))
    order = [int(line) for line in (tmp_path / "order").read_text().split()]
    assert order == sorted(order, reverse=True)
    assert len(order) == 4


def test_no_more_run_at_once_than_cores_and_memory_allow(
    compiler: Compiler, cache: Cache, tmp_path: Path
) -> None:
    watching = misbehaving(
        compiler,
        tmp_path,
        f"""
        touch "{tmp_path}/run.$$"; ls "{tmp_path}" | grep -c '^run[.]' >> "{tmp_path}/at-once"; sleep 0.2
        "$real" "$@"; status=$?; rm "{tmp_path}/run.$$"; exit $status
        """,
    )

    def most(limits: Limits, kernel: str) -> int:
        jobs = [job(ptx_text(f"{kernel}{n}"), name=str(n)) for n in range(5)]
        assert all(isinstance(o, Compiled) for o in compile_all(jobs, watching, cache, limits))
        counts = [int(line) for line in (tmp_path / "at-once").read_text().split()]
        (tmp_path / "at-once").unlink()
        return max(counts)

    assert most(Limits(3, lambda: 10**12), "a") == 3
    assert most(Limits(3, lambda: 0), "b") == 1  # no memory: one after the other, but all of them


def test_a_compiler_killed_for_memory_is_tried_alone_once_more(
    compiler: Compiler, cache: Cache, tmp_path: Path
) -> None:
    once = misbehaving(
        compiler,
        tmp_path,
        f"""
        if grep -q large "$text" && mkdir "{tmp_path}/killed" 2>/dev/null; then kill -9 $$; fi
        if grep -q large "$text"; then ls "{tmp_path}" | grep -c '^run[.]' > "{tmp_path}/beside"; fi
        touch "{tmp_path}/run.$$"; sleep 0.3; "$real" "$@"; s=$?; rm "{tmp_path}/run.$$"; exit $s
        """,
    )
    jobs = [job(ptx_text(name, comment=name), name=name) for name in ("large", "a", "b", "c")]
    ended = by_name(list(compile_all(jobs, once, cache, PLENTY)))
    assert all(isinstance(outcome, Compiled) for outcome in ended.values())
    assert (tmp_path / "beside").read_text().strip() == "0"


@pytest.mark.parametrize("end", ["kill -9 $$", "echo 'ptxas fatal : Memory allocation failure' >&2; exit 1"])
def test_a_compiler_killed_for_memory_twice_is_said(
    compiler: Compiler, cache: Cache, tmp_path: Path, end: str
) -> None:
    never = misbehaving(compiler, tmp_path, f'if grep -q large "$text"; then {end}; fi')
    jobs = [job(ptx_text("large"), name="large"), job(ptx_text("a"), name="a")]
    ended = by_name(list(compile_all(jobs, never, cache, PLENTY)))
    assert isinstance(ended["a"], Compiled)
    large = ended["large"]
    assert isinstance(large, Failed)
    assert re.search(
        r"killed twice, most likely for want of memory: it needs about 0\.[1-9] GB", large.reason
    )


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exit 0", "left no cubin"),
        ("exit 3", "failed (exit status 3)"),
        ("kill -SEGV $$", "was ended by signal 11"),
        ('for word; do last=$word; done; echo > "$last"; exit 0', "cannot be used: it is no ELF file"),
        (
            'exec "$real" -arch=sm_80 "$text" -o "${text%.ptx}.cubin"',
            "cannot be used: it is for 8.0, not 9.0",
        ),
    ],
)
def test_a_compiler_that_misbehaves_is_said(
    compiler: Compiler, cache: Cache, tmp_path: Path, behaviour: str, words: str
) -> None:
    (outcome,) = compile_all([job(ptx_text())], misbehaving(compiler, tmp_path, behaviour), cache, PLENTY)
    assert isinstance(outcome, Failed)
    assert words in outcome.reason
    assert cache.usage().count == 0


def test_a_cached_cubin_that_is_another_ones_is_compiled_again(compiler: Compiler, tmp_path: Path) -> None:
    notes: list[str] = []
    cache = Cache(tmp_path / "cubins", note=notes.append)
    first, second = (
        outcome
        for outcome in compile_all(
            [job(ptx_text("a"), name="a"), job(ptx_text("b"), name="b")], compiler, cache, PLENTY
        )
        if isinstance(outcome, Compiled)
    )
    cache.put(first.key, second.cubin)  # whole, and a lie

    (again,) = compile_all([first.job], compiler, cache, PLENTY)
    assert isinstance(again, Compiled)
    assert (again.cached, again.cubin) == (False, first.cubin)
    assert len(notes) == 1 and "is wrong (it lacks 1 of 1 kernels" in notes[0]


def test_text_that_changes_meanwhile_is_not_kept_under_the_key_of_what_it_was(
    compiler: Compiler, tmp_path: Path
) -> None:
    cache, text = Cache(tmp_path / "cubins"), ptx_text("a")
    other = text.replace(b"fma.rn.f32", b"fma.rz.f32")  # the same kernels, another result
    reads = iter([text, other])
    changing = replace(job(text), read=lambda: next(reads))
    (outcome,) = compile_all([changing], compiler, cache, PLENTY)
    assert isinstance(outcome, Failed) and "somebody changed it" in outcome.reason
    assert cache.usage().count == 0


def test_text_that_is_gone_meanwhile_is_one_sentence_and_the_others_go_on(
    compiler: Compiler, tmp_path: Path
) -> None:
    text = ptx_text("a", comment="x" * 9000)  # the largest comes first

    def reads() -> Iterator[bytes]:
        yield text
        raise InputError("it is gone")

    gone = reads()
    jobs = [replace(job(text), read=lambda: next(gone)), job(ptx_text("b"))]
    first, second = compile_all(jobs, compiler, Cache(tmp_path / "cubins"), PLENTY)
    assert isinstance(first, Failed) and first.reason == "it is gone"
    assert isinstance(second, Compiled)


def test_progress_says_how_far_it_is(compiler: Compiler, cache: Cache) -> None:
    jobs = [job(ptx_text(f"k{n}"), name=str(n)) for n in range(3)] + [job(b"garbage", name="bad")]
    list(compile_all(jobs[:1], compiler, cache, PLENTY))
    told: list[Progress] = []
    list(compile_all(jobs, compiler, cache, Limits(1, lambda: 10**12), progress=told.append))

    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    last = told[-1]
    assert (last.done, last.total, last.cached, last.failed) == (4, 4, 1, 1)
    assert last.bytes_done == last.bytes_total == sum(j.size for j in jobs)
    assert last.sentence() == "4 of 4 compiled, 1 from the cache, 1 failed, 0 of 0 MB of PTX"
    assert any(progress.running for progress in told)
    assert "about 5 min left" in replace(last, done=1, remaining=300.0).sentence()


def test_a_full_disk_is_one_error_and_leaves_nothing(
    compiler: Compiler, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ResourceError, match="the disk is full"):
        list(compile_all([job(ptx_text())], compiler, cache, PLENTY, folder=work))
    assert list(work.iterdir()) == []


PROGRAM = """
import sys
from pathlib import Path
from compiling import job, misbehaving, ptx_text
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.queue import Limits, compile_all
folder = Path(sys.argv[1])
compiler = misbehaving(Compiler.at(Path(sys.argv[2])), folder, '''
if grep -q slow "$text"; then echo $$ > "$TMPDIR/../../pid"; exec sleep 1000; fi
''')
jobs = [job(ptx_text(name), name=name) for name in ("slow", "a", "b")]
for outcome in compile_all(jobs, compiler, Cache(folder / "cubins"), Limits(2, lambda: 10**12),
                           folder=folder / "work"):
    print(outcome.job.name, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_who_is_stopped_loses_only_what_was_under_way_and_leaves_no_compiler(
    compiler: Compiler, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "work").mkdir()
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), os.environ["PYTHONPATH"]])
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(compiler.ptxas)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    assert program.stdout
    assert sorted(program.stdout.readline().strip() for _ in range(2)) == ["a", "b"]
    slow = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{slow}").exists()

    program.send_signal(number)
    program.wait(timeout=20)
    deadline = time.monotonic() + 10
    while _runs(slow) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(slow)
    assert Cache(tmp_path / "cubins").usage().count == 2
    if number == signal.SIGINT:
        assert list((tmp_path / "work").iterdir()) == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_who_stops_reading_leaves_nothing(compiler: Compiler, cache: Cache, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    slow = misbehaving(compiler, tmp_path, 'if grep -q slow "$text"; then exec sleep 1000; fi')
    jobs = [job(ptx_text(name), name=name) for name in ("slow", "a")]
    outcomes = compile_all(jobs, slow, cache, PLENTY, folder=work)
    assert next(outcomes).job.name == "a"
    outcomes.close()  # type: ignore[attr-defined]
    assert list(work.iterdir()) == []


def test_what_is_no_ptxas_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no ptxas at"):
        Compiler.at(tmp_path / "ptxas")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(UnsupportedError, match="cannot run on this machine: Permission denied"):
        Compiler.at(script)
    script.chmod(0o755)
    with pytest.raises(UnsupportedError, match="is no ptxas: it does not say its version"):
        Compiler.at(script)
    script.write_bytes(b"\x7fELF" + bytes(60))
    with pytest.raises(UnsupportedError, match="Exec format error"):
        Compiler.at(script)
    script.write_text("#!/no/such/loader\n")
    with pytest.raises(UnsupportedError, match="needs glibc's loader"):
        Compiler.at(script)


def test_the_compiler_says_who_it_is(compiler: Compiler) -> None:
    assert compiler.version == "12.9.86"
    assert compiler.as_dict() == {
        "ptxas": "12.9.86",
        "build": compiler.build,
        "sha256": compiler.digest,
    }
    assert compiler.build.startswith("cuda_12.9.r12.9/compiler.")
