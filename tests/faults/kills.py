"""Rounds of kills: SIGKILL, SIGTERM and Ctrl-C, at one exact call or after a random time."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import invariants
from commands import Ended, Strike
from invariants import Item, Snapshot, snapshot
from rounds import Arguments, Round
from whole import (
    copy_whole,
    export_whole,
    finish_build,
    finish_slim,
    gc_kept,
    nothing_else,
    stocked,
    store_whole,
)
from worlds import RELEASES, WITH_PTX, World


def killed(this: Round, run: str, arguments: Arguments, **options: object) -> Ended:
    """Run a command and kill it: at one exact call, or after a random part of its usual time."""
    chance, known = this.chance, this.world.template.runs[run]
    signum = chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [4, 2, 3])[0]
    whom = {
        signal.SIGKILL: ("main", "group", "both", "self"),
        signal.SIGTERM: ("main", "group", "both"),
        signal.SIGINT: ("main", "group", "both"),
    }
    to = chance.choice(whom[signum])
    exact = this.world.template.shim and known.calls and chance.random() < 0.6
    if exact:
        strike = Strike(
            f"signal:{int(signum)}:{to}",
            chance.randint(1, max(int(0.9 * known.calls), 1)),
            chance.random() < 0.5,
        )
        ended = this.world.start(*arguments, strike=strike, **options).finish()  # type: ignore[arg-type]
        if ended.struck:
            ended.sent.append(int(signum))
    else:
        usual = known.seconds * this.pace
        early = chance.random() < 0.15  # mostly once Python has started and work has begun
        delay = chance.uniform(0.0 if early else 0.4 * usual, 1.1 * usual)
        command = this.world.start(*arguments, **options)  # type: ignore[arg-type]
        command.wait(delay)
        command.send(int(signum), group=to != "main")
        this.trail.append(f"signal {int(signum)} to {to} after {delay:.3f} s")
        if chance.random() < 0.2:  # impatience
            command.wait(again := chance.uniform(0.0, 0.3) * this.pace)
            if command.send(int(signum), group=to != "main"):
                this.trail.append(f"and again {again:.3f} s later")
        ended = command.finish()
    if ended.sent:
        this.faults[f"{signum.name} of {run}"] += 1
    return this.note(ended)


def may_leave(ended: Ended) -> bool:
    """Whether leftovers are allowed: nobody can clean up after SIGKILL, nor before Python has started."""
    return signal.SIGKILL in ended.sent or (ended.status or 0) < 0


def kill_slim(this: Round) -> None:
    """Kill slimming a tree in place, several times, then let it finish."""
    world = this.world
    _kill_in_place(this, "slim", world.slim(jobs=this.chance.choice([1, 2, 2, 3])), world.template.slimmed())


def kill_native(this: Round) -> None:
    """Kill compilers at work, and what waits for them: no cubin is half kept, no compiler goes on."""
    world = this.world
    _kill_in_place(this, "native", world.native(this.chance.choice([1, 2])), world.template.compiled())


def _kill_in_place(this: Round, run: str, arguments: Arguments, reference: Snapshot) -> None:
    world = this.world
    before = world.with_tree()
    cached = snapshot(world.area / "cached")
    leftovers = False
    for _ in range(this.chance.randint(2, 4)):
        ended = killed(this, run, arguments)
        leftovers |= may_leave(ended)
        now = snapshot(world.tree)
        # A compiler that was killed leaves a PTX; the last run compiles it.
        new = reference if run == "slim" else {**reference, WITH_PTX: now.get(WITH_PTX, reference[WITH_PTX])}
        this.hold(invariants.old_or_new(before, now, new, leftovers=leftovers, finished=ended.status == 0))
        this.hold(invariants.equal(cached, snapshot(world.area / "cached"), "a name outside the tree"))
        if ended.status == 0:
            break  # there is nothing more to disturb
    finish_slim(this, before, reference, cached, run)


def kill_copy(this: Round) -> None:
    """Kill slimming a tree to a copy: it is there whole or not at all, and the source never changes."""
    world, chance = this.world, this.chance
    before, reference = world.with_tree(), world.template.slimmed()
    out = world.area / "out"
    precious = world.area / ".out.slimming"  # somebody's, though it is named as ours may be
    precious.mkdir()
    (precious / "mine").write_text("precious")
    link = ["--link"] if chance.random() < 0.3 else []
    arguments = [*world.slim(to=out, jobs=chance.choice([1, 2])), *link]
    leftovers = False  # of a run that was killed, while those after it had no time to sweep
    for _ in range(chance.randint(1, 3)):
        ended = killed(this, "copy", arguments)
        leftovers |= may_leave(ended)
        this.hold(invariants.equal(before, snapshot(world.tree), "the source"))
        copy_whole(this, out, reference, link, complete=ended.status in (0, 130))
        nothing_else(this, {"tree", "cached", "links", "out", ".out.slimming"}, leftovers=leftovers)
    this.undisturbed(*arguments)
    if not out.exists():
        this.hold(["an undisturbed run left no copy"])
    copy_whole(this, out, reference, link)
    this.hold(invariants.equal(before, snapshot(world.tree), "the source"))
    if not (precious / "mine").exists():
        this.hold(["somebody's folder .out.slimming is gone"])
    nothing_else(this, {"tree", "cached", "links", ".out.slimming"}, leftovers=True)


def kill_file(this: Round) -> None:
    """Kill slimming one library, in place or to a new file."""
    world, chance = this.world, this.chance
    before, slimmed = world.with_tree(), world.template.slimmed()
    name = chance.choice(["lib/libone.so.1", "pkg/_real.so", "pkg/libthree.so"])
    to = chance.choice([None, world.area / "new.so"])
    reference = {key: item for key, item in slimmed.items() if key == name} if to is None else {}
    arguments = world.slim(world.tree / name, to)[:-2]  # --jobs means nothing for one file
    leftovers = False
    for _ in range(chance.randint(1, 3)):
        ended = killed(this, "file", arguments)
        leftovers |= may_leave(ended)
        this.hold(invariants.old_or_new(before, snapshot(world.tree), reference, leftovers=leftovers))
        _new_file_whole(this, to, slimmed[name])
        if ended.status == 0:
            break
    this.undisturbed(*arguments)
    _new_file_whole(this, to, slimmed[name])
    now = snapshot(world.tree)
    this.hold(invariants.old_or_new(before, now, reference, leftovers=leftovers, finished=True))


def _new_file_whole(this: Round, to: Path | None, whole: Item) -> None:
    if to and to.exists():
        found = snapshot(to.parent)[to.name]
        if not found.same(whole):
            this.hold([f"{to.name} is not whole"])
        to.unlink()


def kill_build(this: Round) -> None:
    """Kill builds in stores of all states: no link but to a whole entry, and no half entry."""
    world, chance = this.world, this.chance
    state = chance.choice(["empty", "empty", "other", "unlinked", "elsewhere"])
    if state == "other":
        world.with_entry(RELEASES[1], link="result-vllm-python312-cuda12_9-sm90")
    elif state in ("unlinked", "elsewhere"):
        world.with_entry(RELEASES[0], link="elsewhere" if state == "elsewhere" else "")
    (world.links / "result-notes").write_text("precious")
    this.trail.append(f"store: {state}")
    leftovers = False
    for _ in range(chance.randint(1, 3)):
        run = "relink" if any((world.store / "store").glob("*-0.13.0")) else "build"
        ended = killed(this, run, world.build())
        leftovers |= may_leave(ended)
        store_whole(this, leftovers)
        if chance.random() < 0.3:
            linked = _linked(world)
            this.undisturbed("gc")
            if _linked(world) != linked:
                this.hold(["gc removed what a link points to"])
            store_whole(this, leftovers)
    finish_build(this)


def _linked(world: World) -> set[str]:
    return {path.name for path in world.links.iterdir() if path.is_symlink() and path.exists()}


def kill_export(this: Round) -> None:
    """Kill an export: its wheelhouse is there whole or not at all, and the result stays as it was."""
    world, leftovers = this.world, False
    entry = world.with_entry(RELEASES[0], link="result-exported")
    before = snapshot(entry)
    for _ in range(this.chance.randint(1, 3)):
        ended = killed(this, "export", world.export())
        leftovers |= may_leave(ended)
        export_whole(this, leftovers, done=ended.status == 0)
        this.hold(invariants.equal(before, snapshot(entry), "the result"))
    ended = this.undisturbed(*world.export())
    export_whole(this, leftovers=False, done=True)
    this.hold(invariants.equal(before, snapshot(entry), "the result"))


def kill_audit(this: Round) -> None:
    """Kill audits of a tree, a result and wheels: nothing changes, nothing is left."""
    world, chance = this.world, this.chance
    world.with_tree()
    entry = world.with_entry(RELEASES[0], link="result-exported")
    shutil.copytree(world.template.wheels, world.area / "wheels")
    before = snapshot(world.area)
    target = chance.choice([world.tree, entry, world.area / "wheels", world.links / "result-exported"])
    words = chance.choice([[], ["--json"], ["--sarif", world.area / "audit.sarif"]])
    for _ in range(chance.randint(1, 3)):
        ended = killed(this, "audit", ["audit", target, "--sm", "sm90", *words])
        now = snapshot(world.area)
        here = {name: item for name, item in now.items() if name != "audit.sarif"}
        this.hold(invariants.old_or_new(before, here, {}, leftovers=may_leave(ended)))
        _report_whole(this, world.area / "audit.sarif")
        for name in here.keys() - before.keys():
            (world.area / name).unlink()


def _report_whole(this: Round, path: Path) -> None:
    if path.exists():
        try:
            json.loads(path.read_text())
        except ValueError:
            this.hold([f"{path.name} is half a report"])
        path.unlink()


def kill_gc(this: Round) -> None:
    """Kill gc: what is linked stays whole, what is not is whole or gone."""
    world, linked = this.world, stocked(this)
    for _ in range(this.chance.randint(1, 3)):
        killed(this, "gc", ["gc"])
        store_whole(this, leftovers=True)
        gc_kept(this, linked)
    this.undisturbed("gc")
    store_whole(this, leftovers=False)
    gc_kept(this, linked)
    if left := {path.name for path in (world.store / "store").glob("*")} - linked:
        this.hold([f"gc left {name}, which nothing links to" for name in left])
