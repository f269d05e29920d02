"""Rounds of odd things: files that are no libraries, strangers in the store, damaged entries."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import invariants
from commands import Ended
from invariants import snapshot
from rounds import Round
from whole import finish_build, finish_slim, gc_kept, stocked, store_whole
from worlds import RELEASES, World


def odd_tree(this: Round) -> None:
    """Odd files in a tree, and odd arguments: a sentence or the right answer, never harm."""
    world, chance = this.world, this.chance
    before, reference = world.with_tree(), world.template.slimmed()
    cached = snapshot(world.area / "cached")
    names = chance.sample(sorted(_ODD), chance.randint(1, 4))
    for name in names:
        _ODD[name](world.tree)
    this.faults["odd files"] += len(names)
    this.trail.append(f"odd: {', '.join(names)}")
    sprinkled = snapshot(world.tree)
    odd = {key: item for key, item in sprinkled.items() if key not in before}
    command, slims_all = chance.choice(["slim", "audit", "copy", "one"]), False
    if command == "slim":
        this.note(bounded(world, *world.slim()))
    elif command == "copy":
        this.note(bounded(world, *world.slim(to=world.area / "out")))
        shutil.rmtree(world.area / "out", ignore_errors=True)
    elif command == "audit":
        this.note(bounded(world, "audit", world.tree, "--sm", "sm90"))
    else:
        target = world.tree / chance.choice(sorted(odd) or ["text"])
        words = ["audit", target] if chance.random() < 0.5 else world.slim(target)
        slims_all = words[0] == "slim" and target.resolve() == world.tree.resolve()
        this.note(bounded(world, *words))
    expected = reference if command == "slim" or slims_all else {}
    now = snapshot(world.tree)
    this.hold(
        invariants.old_or_new(
            before, {k: i for k, i in now.items() if k not in odd}, expected, leftovers=False
        )
    )
    kept = {key: item for key, item in now.items() if key in odd}
    if command in ("audit", "copy"):
        this.hold(invariants.equal(odd, kept, "an odd file"))
    else:
        this.hold([f"the odd file {key!r} is gone" for key in odd.keys() - kept.keys()])
    for key in sorted(odd, reverse=True):
        path = world.tree / key
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    finish_slim(this, before, reference, cached)


def bounded(world: World, *arguments: str | Path) -> Ended:
    """Run a command that may not take more than 3 GB of memory, nor 30 s."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    return world.start(*arguments, before=limit).finish(30)


def _sparse(tree: Path, size: int) -> None:
    path = tree / f"sparse-{size}.so"
    path.write_bytes((tree / "lib" / "libtwo.so").read_bytes()[:4096])
    os.truncate(path, size)


def _socket(tree: Path) -> None:
    here = os.getcwd()  # noqa: PTH109 (a socket's path must be short)
    os.chdir(tree)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.so")
    os.chdir(here)


def _cut_copy(tree: Path, name: str, data: Callable[[bytes], bytes]) -> None:
    (tree / name).write_bytes(data((tree / "lib" / "libtwo.so").read_bytes()))


_ODD: dict[str, Callable[[Path], object]] = {
    "fifo": lambda tree: os.mkfifo(tree / "fifo.so"),
    "socket": _socket,
    "a link to itself": lambda tree: (tree / "loop.so").symlink_to("loop.so"),
    "a link to /dev/zero": lambda tree: (tree / "zero.so").symlink_to("/dev/zero"),
    "a link to the tree": lambda tree: (tree / "up").symlink_to("."),
    "a link to a tty": lambda tree: (tree / "tty.so").symlink_to("/dev/tty"),
    "a folder as a library": lambda tree: (tree / "folder.so").mkdir(),
    "a folder named as ours": lambda tree: (tree / "lib" / ".libone.so.1.slimming").mkdir(),
    "no bytes": lambda tree: (tree / "empty.so").write_bytes(b""),
    "one byte": lambda tree: (tree / "byte.so").write_bytes(b"\x7f"),
    "a magic only": lambda tree: (tree / "magic.so").write_bytes(b"\x7fELF"),
    "300 MB of nothing": lambda tree: _sparse(tree, 300_000_000),
    "100 GB of nothing": lambda tree: _sparse(tree, 100_000_000_000),
    "a name that is no text": lambda tree: Path(os.fsdecode(os.fsencode(tree) + b"/\xff\xfe.so")).write_bytes(
        (tree / "lib" / "libtwo.so").read_bytes()[:100_000]
    ),
    "a name of two lines": lambda tree: (tree / "two\nlines.so").write_bytes(b"\x7fELF" * 999),
    "a long name": lambda tree: _cut_copy(tree, "n" * 252 + ".so", lambda data: data[:70_000]),
    "a zip without end": lambda tree: (tree / "cut.whl").write_bytes(b"PK\x03\x04" * 3000),
    "a library with a zip behind": lambda tree: _cut_copy(
        tree, "zip.so", lambda data: data + b"PK\x05\x06" + bytes(18)
    ),
    "32 bits": lambda tree: _cut_copy(tree, "old.so", lambda data: data[:4] + b"\x01" + data[5:]),
    "big-endian": lambda tree: _cut_copy(tree, "big.so", lambda data: data[:5] + b"\x02" + data[6:]),
    "many sections": lambda tree: _cut_copy(
        tree, "many.so", lambda data: data[:60] + b"\xff\xff" + data[62:]
    ),
}  # fmt: skip


def odd_store(this: Round) -> None:
    """Odd things in the store's folders: they stay or are swept, and nothing linked is harmed."""
    world, chance = this.world, this.chance
    linked = stocked(this)
    (world.store / "locks").mkdir(parents=True, exist_ok=True)
    (world.store / "building").mkdir(parents=True, exist_ok=True)
    (world.store / "links").mkdir(parents=True, exist_ok=True)
    names = chance.sample(sorted(_ODD_STORE), chance.randint(1, 3))
    for name in names:
        _ODD_STORE[name](world.store)
    this.faults["odd things in the store"] += len(names)
    this.trail.append(f"odd: {', '.join(names)}")
    ignored = frozenset({"file", "loop", "folder", "dangling"})
    for words in chance.sample([["gc"], ["list", "--results"], world.build()], 3):
        this.note(bounded(world, *words))
        gc_kept(this, linked)
    store_whole(this, leftovers=True, ignored=ignored)


_ODD_STORE: dict[str, Callable[[Path], object]] = {
    "a file in links": lambda store: (store / "links" / "file").write_text("mine"),
    "a folder in links": lambda store: (store / "links" / "folder").mkdir(),
    "a loop in links": lambda store: (store / "links" / "loop").symlink_to("loop"),
    "a file in store": lambda store: (store / "store" / "file").write_text("mine"),
    "a loop in store": lambda store: (store / "store" / "loop").symlink_to("loop"),
    "a dangling link in store": lambda store: (store / "store" / "dangling").symlink_to("absent"),
    "an empty folder in store": lambda store: (store / "store" / "folder").mkdir(),
    "a file in building": lambda store: (store / "building" / "file").write_text("mine"),
    "a loop in building": lambda store: (store / "building" / "loop").symlink_to("loop"),
    "a folder in building without a dot": lambda store: (store / "building" / "nodot").mkdir(),
    "a folder in locks": lambda store: (store / "locks" / "folder").mkdir(),
}


def damaged_entry(this: Round) -> None:
    """A result that was damaged is built anew by the command that one would try: build."""
    world, chance = this.world, this.chance
    entry = world.with_entry(RELEASES[0], link=chance.choice(["", "result-vllm-python312-cuda12_9-sm90"]))
    manifest = entry / "share" / "vllm-variants" / "manifest.json"
    python = entry / "bin" / "python"
    facts = json.loads(manifest.read_text())
    damages: dict[str, Callable[[], object]] = {
        "no manifest": manifest.unlink,
        "an empty manifest": lambda: manifest.write_bytes(b""),
        "half a manifest": lambda: manifest.write_bytes(manifest.read_bytes()[:200]),
        "a manifest of zeros": lambda: manifest.write_bytes(bytes(manifest.stat().st_size)),
        "a deep manifest": lambda: manifest.write_text("[" * 100_000),
        "a manifest that is a list": lambda: manifest.write_text("[]"),
        "a manifest without a release": lambda: manifest.write_text(
            json.dumps({**facts, "release": None, "schema": 0})
        ),
        "a capability that is a number": lambda: manifest.write_text(json.dumps({**facts, "capability": 9})),
        "bytes that are null": lambda: manifest.write_text(json.dumps({**facts, "bytes": None})),
        "a manifest that is no text": lambda: manifest.write_bytes(b"\xff\xfe{}"),
        "no python": python.unlink,
        "a python that cannot run": lambda: python.chmod(0o644),
        "no bin": lambda: shutil.rmtree(entry / "bin"),
        "nothing in it": lambda: [shutil.rmtree(entry), entry.mkdir()],
    }
    what = chance.choice(sorted(damages))
    damages[what]()
    this.faults["damaged entry"] += 1
    this.trail.append(f"damage: {what}")
    this.note(world.run("list", "--results"))
    if chance.random() < 0.3:
        this.note(world.run("gc"))
    if what == "bytes that are null":  # whole but for its sizes: it need not be built anew
        this.undisturbed(*world.build())
    else:
        finish_build(this)
