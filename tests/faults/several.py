"""Rounds of several at once: two slimmings, builds beside gcs, somebody who changes a library."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import invariants
from commands import Command, Ended, Strike
from invariants import Item, snapshot
from rounds import Arguments, Round
from whole import copy_whole, export_whole, finish_slim, gc_kept, nothing_else, stocked, store_whole
from worlds import OTHER_NAMES, RELEASES

from vllm_variants.errors import ExitCode


def stopped_at(this: Round, run: str, arguments: Arguments) -> Command:
    """Start a command that stands still (SIGSTOP) at a random call, or runs into its end."""
    known = this.world.template.runs[run]
    at = this.chance.randint(1, max(known.calls, 1))
    strike = Strike(f"signal:{int(signal.SIGSTOP)}:both", at, this.chance.random() < 0.5)
    command = this.world.start(*arguments, strike=strike)
    for _ in range(600):
        if command.wait(0.02) or command.stopped():
            break
    return command


def at_once(this: Round, first: Command, others: Sequence[Command]) -> list[Ended]:
    """Let the others run while `first` stands still, until they end or wait for it; then let it go on."""
    for _ in range(200):
        if all(other.wait(0) or other.waits_for_a_lock() for other in others):
            break
        others[0].wait(0.03)
    first.resume()
    return [this.note(command.finish()) for command in (first, *others)]


def _pair(this: Round, run: str, arguments: Arguments, others: Sequence[Arguments]) -> list[Ended]:
    """Run commands at once: the first stopped at a call, or all started within a moment."""
    chance = this.chance
    names = " × ".join(str(words[0]) for words in (arguments, *others))
    this.faults[names] += len(others)
    if this.world.template.shim and chance.random() < 0.7:
        first = stopped_at(this, run, arguments)
        return at_once(this, first, [this.world.start(*words) for words in others])
    usual = this.world.template.runs[run].seconds * this.pace
    commands = []
    for words in (arguments, *others):
        commands.append(this.world.start(*words))
        commands[-1].wait(chance.uniform(0, 0.15 * usual))
    return [this.note(command.finish()) for command in commands]


def two_slims(this: Round) -> None:
    """Two slimmings of one tree, file or copy: each says truly what it did, and all is old or new."""
    world, chance = this.world, this.chance
    before, reference = world.with_tree(), world.template.slimmed()
    cached, out = snapshot(world.area / "cached"), world.area / "out"
    kind = chance.choice(["tree", "native", "file", "copy"])
    name = "pkg/libthree.so"
    if kind == "tree":
        arguments = world.slim(jobs=chance.choice([1, 2]))
    elif kind == "native":
        arguments, reference = world.native(chance.choice([1, 2])), world.template.compiled()
    elif kind == "file":
        arguments = world.slim(world.tree / name)[:-2]
    else:
        arguments = world.slim(to=out)
    run = "slim" if kind == "tree" else kind
    ends = _pair(this, run, arguments, [arguments])
    now = snapshot(world.tree)
    done = any(ended.status == 0 for ended in ends)
    if kind == "copy":
        this.hold(invariants.equal(before, now, "the source"))
        if done and not out.exists():
            this.hold(["one says it is done, and there is no copy"])
        copy_whole(this, out, reference, [])
        nothing_else(this, {"tree", "cached", "links"}, leftovers=False)
    else:
        expected = {name: reference[name]} if kind == "file" else reference
        sentences = invariants.old_or_new(before, now, expected, leftovers=False, finished=done)
        this.hold(sentences, "after both")
    if not done:
        this.hold(["neither of two slimmings succeeded"])
    finish_slim(this, before, reference, cached, "native" if kind == "native" else "slim")


def two_exports(this: Round) -> None:
    """Two exports to one place: one is there, whole, and the other says so or found that it exists."""
    world = this.world
    entry = world.with_entry(RELEASES[0], link="result-exported")
    before = snapshot(entry)
    ends = _pair(this, "export", world.export(), [world.export()])
    if sorted(ended.status or 0 for ended in ends) != [ExitCode.OK, ExitCode.USAGE]:
        this.hold([f"two exports ended in {' and '.join(str(ended.status) for ended in ends)}"])
    export_whole(this, leftovers=False, done=True)
    this.hold(invariants.equal(before, snapshot(entry), "the result"))


def builds_and_gcs(this: Round) -> None:
    """Builds and gcs at once: all succeed, and every link is whole."""
    world, chance = this.world, this.chance
    state = chance.choice(["empty", "unlinked", "stocked"])
    if state == "unlinked":
        world.with_entry(RELEASES[0])
    linked = stocked(this) if state == "stocked" else set()
    other = world.area / "links2"
    other.mkdir()
    builds = [world.build(), world.build(links=other), world.build(RELEASES[1], other)]
    gcs: list[Arguments] = [["gc"]] * chance.randint(1, 2)
    first = chance.choice(["gc", "build", "gc"])
    if first == "gc":
        others = [*chance.sample(builds, chance.randint(0, 2)), *gcs]
        run, arguments = "gc", ["gc"]
    else:
        run = "build" if state != "unlinked" else "relink"
        arguments, others = world.build(), [*chance.sample(builds, chance.randint(0, 1)), *gcs]
    ends = _pair(this, run, arguments, others)
    for ended in ends:
        if ended.status != 0:
            this.hold([f"`{ended.command.split()[0]}` ended in {ended.status} beside others"])
    store_whole(this, leftovers=False)
    for folder in (world.links, other):
        for link in folder.iterdir():
            if link.is_symlink() and not (link / "bin" / "python").exists():
                this.hold([f"{folder.name}/{link.name} points to nothing"])
    gc_kept(this, linked)
    this.undisturbed("gc")
    store_whole(this, leftovers=False)
    gc_kept(this, linked)
    for words in (arguments, *others):
        if words[0] == "build":
            folder = Path(words[words.index("--links") + 1])
            if not any((path / "bin" / "python").exists() for path in folder.iterdir()):
                this.hold([f"a build that succeeded has no link in {folder.name}"])


def changed_meanwhile(this: Round) -> None:
    """Somebody replaces, truncates, removes or lengthens a library while it is slimmed."""
    world, chance = this.world, this.chance
    before, reference = world.with_tree(), world.template.slimmed()
    name = chance.choice(["lib/libone.so.1", "pkg/_real.so", "pkg/libthree.so", *OTHER_NAMES])
    path = world.tree / name
    how = chance.choice(["replaced", "replaced", "truncated", "removed", "lengthened"])
    if name in OTHER_NAMES and how in ("truncated", "lengthened"):
        how = "replaced"  # what is written to is written to under both names
    command = stopped_at(this, "slim", world.slim(jobs=chance.choice([1, 2])))
    changed: Item | None = None
    if how == "replaced":
        upgrade = world.root / "upgrade.so"
        shutil.copy(world.tree / "text", upgrade)
        upgrade.replace(path)
    elif how == "removed":
        path.unlink()
    else:
        path.chmod(0o755)
        os.truncate(path, path.stat().st_size // 2 if how == "truncated" else path.stat().st_size + 99)
    if how != "removed":
        changed = snapshot(world.tree)[name]
    this.faults[f"library {how} while it is slimmed"] += 1
    this.trail.append(f"{name} was {how}")
    command.resume()
    ended = this.note(command.finish())
    now = snapshot(world.tree)
    others = {key: item for key, item in before.items() if key != name}
    here = {key: item for key, item in now.items() if key != name}
    this.hold(invariants.old_or_new(others, here, reference, leftovers=False))
    found = now.get(name)
    renaming = ": rename" in ended.struck  # between its last look and the rename nobody can see it
    if how == "replaced" and changed and not (found and found.same(changed)) and not renaming:
        this.hold([f"{name} was replaced by somebody, and then lost: it is the old one, slimmed"])
    elif how == "removed" and found and not renaming:
        this.hold([f"{name} was removed by somebody, and is there again"])
