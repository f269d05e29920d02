"""The rounds of the fault suite: one function a kind of fault, each drawn whole from its seed.

A round makes a world, disturbs the real command line in it, checks every invariant after each fault,
and ends with an undisturbed run that must succeed and leave everything whole.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import invariants
from commands import Command, Ended, Strike
from invariants import OURS, Item, Snapshot, snapshot
from lying_index import LIES, Behaviour
from mounts import mount_tmpfs, remount_read_only, unmount
from worlds import OTHER_NAMES, RELEASES, World

Arguments = Sequence[str | Path]


@dataclass
class Round:
    """One round: its world, its chance, and what came of it. `pace` is how slow this machine is now."""

    world: World
    chance: random.Random
    pace: float = 1.0
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    def note(self, ended: Ended, succeeds: bool = False) -> Ended:
        """Record how a command ended, with what is broken about that."""
        struck = f"; {ended.struck}" if ended.struck else ""
        self.trail.append(f"{ended.command} → {ended.status} ({ended.seconds:.2f} s{struck})")
        self.hold(invariants.ended_well(ended, succeeds), ended.command)
        if ended.err.strip():
            self.trail.append("    " + ended.err.strip()[-3000:].replace("\n", "\n    "))
        return ended

    def hold(self, sentences: Sequence[str], when: str = "") -> None:
        """Record broken invariants."""
        self.broken += [f"{when}: {sentence}" if when else sentence for sentence in sentences]

    def keep_area(self) -> None:
        """Copy the world's area, before its small disk goes away, when an invariant is broken."""
        if self.broken:
            shutil.copytree(self.world.area, self.world.root / "area-kept", symlinks=True)

    def undisturbed(self, *arguments: str | Path) -> Ended:
        """Run a command that must succeed."""
        return self.note(self.world.run(*arguments), succeeds=True)


# ── kills ────────────────────────────────────────────────────────────────────────────────────


def killed(this: Round, run: str, arguments: Arguments, **options: object) -> Ended:
    """Run a command and kill it: at one exact call, or after a random part of its usual time."""
    chance, known = this.chance, this.world.template.runs[run]
    signum = chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [4, 2, 3])[0]
    whom = {
        signal.SIGKILL: ("main", "group", "self"),
        signal.SIGTERM: ("main", "group"),
        signal.SIGINT: ("group",),
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
        ended = command.finish()
        this.trail.append(f"signal {int(signum)} to {to} after {delay:.3f} s")
    if ended.sent:
        this.faults[f"{signum.name} of {arguments[0]}"] += 1
    return this.note(ended)


def may_leave(ended: Ended) -> bool:
    """Whether leftovers are allowed: nobody can clean up after SIGKILL, nor before Python has started."""
    return signal.SIGKILL in ended.sent or (ended.status or 0) < 0


def kill_slim(this: Round) -> None:
    """Kill slimming a tree in place, several times, then let it finish."""
    world, jobs = this.world, this.chance.choice([1, 2, 2, 3])
    before, reference = world.with_tree(), world.template.slimmed()
    cached = snapshot(world.area / "cached")
    leftovers = False
    for _ in range(this.chance.randint(2, 4)):
        ended = killed(this, "slim", world.slim(jobs=jobs))
        leftovers |= may_leave(ended)
        now = snapshot(world.tree)
        this.hold(
            invariants.old_or_new(before, now, reference, leftovers=leftovers, finished=ended.status == 0)
        )
        this.hold(invariants.equal(cached, snapshot(world.area / "cached"), "a name outside the tree"))
        if ended.status == 0:
            break  # there is nothing more to disturb
    finish_slim(this, before, reference, cached)


def finish_slim(this: Round, before: Snapshot, reference: Snapshot, cached: Snapshot) -> None:
    """An undisturbed slimming succeeds, leaves all new and nothing aside.

    A run that was killed between two names of one file leaves two files, and they stay two.
    """
    one_file = not invariants.one_inode(snapshot(this.world.tree), [OTHER_NAMES])
    ended = this.undisturbed(*this.world.slim())
    known = this.world.template.runs["slim"].seconds
    this.pace = min(max(0.7 * this.pace + 0.3 * ended.seconds / known, 0.3), 5.0)
    now = snapshot(this.world.tree)
    this.hold(invariants.old_or_new(before, now, reference, leftovers=False, finished=True), "afterwards")
    this.hold(invariants.one_inode(now, [OTHER_NAMES] if one_file else []), "afterwards")
    this.hold(invariants.equal(cached, snapshot(this.world.area / "cached"), "a name outside the tree"))


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
    for _ in range(chance.randint(1, 3)):
        ended = killed(this, "copy", arguments)
        this.hold(invariants.equal(before, snapshot(world.tree), "the source"))
        _copy_whole(this, out, reference, link, complete=ended.status in (0, 130))
        _nothing_else(this, {"tree", "cached", "links", "out", ".out.slimming"}, leftovers=may_leave(ended))
    this.undisturbed(*arguments)
    if not out.exists():
        this.hold(["an undisturbed run left no copy"])
    _copy_whole(this, out, reference, link)
    this.hold(invariants.equal(before, snapshot(world.tree), "the source"))
    if not (precious / "mine").exists():
        this.hold(["somebody's folder .out.slimming is gone"])
    _nothing_else(this, {"tree", "cached", "links", ".out.slimming"}, leftovers=True)


def _copy_whole(this: Round, out: Path, reference: Snapshot, link: list[str], complete: bool = True) -> None:
    """A copy that is there is whole; unless it must be `complete`, libraries in it may be old."""
    if out.exists():
        copy = snapshot(out)
        if complete:
            this.hold(invariants.equal(reference, copy, "the copy"))
            this.hold(invariants.one_inode(copy, [OTHER_NAMES]))
        else:
            source = snapshot(this.world.tree)
            this.hold(invariants.old_or_new(source, copy, reference, leftovers=False), "the copy")
        shared = {item.inode for item in snapshot(this.world.tree).values() if item.kind == "file"}
        if not link and any(item.inode in shared for item in copy.values() if item.kind == "file"):
            this.hold(["the copy shares files with its source"])
        shutil.rmtree(out)


def _nothing_else(this: Round, names: set[str], leftovers: bool) -> None:
    """Beside the output stands nothing new (of ours: after SIGKILL only)."""
    for name in {path.name for path in this.world.area.iterdir()} - names:
        if not (leftovers and OURS.fullmatch(name)):
            this.hold([f"{name} was left beside the output"])


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


def store_whole(this: Round, leftovers: bool, ignored: frozenset[str] = frozenset()) -> None:
    """Every entry is whole, every link points to one, and nothing else is in sight."""
    world, template = this.world, this.world.template
    for entry in (world.store / "store").glob("*"):
        release = next((r for r in RELEASES if entry.name.endswith(f"-{r}")), None)
        if entry.name in ignored:
            continue
        if release is None:
            this.hold([f"{entry.name} is in the store"])
            continue
        reference = template.whole_entry(release)
        this.hold(invariants.entry_whole(entry, reference, template.volatile))
    for link in world.links.iterdir():
        if link.is_symlink() and not OURS.fullmatch(link.name):
            target = link.resolve()
            if not (
                target.parent == (world.store / "store").resolve() and (target / "bin" / "python").exists()
            ):
                this.hold([f"the link {link.name} points to nothing whole: {link.readlink()}"])
        elif not (link.name == "result-notes" or (leftovers and OURS.fullmatch(link.name))):
            this.hold([f"{link.name} was left among the links"])
    building = list((world.store / "building").glob("*"))
    if building and not leftovers:
        this.hold([f"building/{path.name} was left" for path in building])


def finish_build(this: Round) -> None:
    """An undisturbed build succeeds; then gc keeps what is linked and leaves nothing else."""
    world = this.world
    this.undisturbed(*world.build())
    this.undisturbed("gc")
    store_whole(this, leftovers=False)
    link = world.links / "result-vllm-python312-cuda12_9-sm90"
    if not (link.is_symlink() and link.exists()):
        this.hold(["an undisturbed build left no link"])
    linked = {path.resolve().name for path in world.links.iterdir() if path.is_symlink()}
    for path in (world.store / "store").glob("*"):
        if path.name not in linked:
            this.hold([f"gc left {path.name}, which nothing links to"])


def stocked(this: Round) -> set[str]:
    """Fill a store with entries, linked and not, and with what killed runs left; the linked ones' names."""
    world, chance, linked = this.world, this.chance, set()
    for number in range(chance.randint(2, 5)):
        release = chance.choice(RELEASES)
        name = f"{number:016x}-vllm-python312-cuda12_9-sm90-{release}"
        link = f"result-{number}" if chance.random() < 0.5 else ""
        world.with_entry(release, name, link)
        if link:
            linked.add(name)
    dead = f"{9:016x}-vllm-python312-cuda12_9-sm90-0.13.0"
    for ending in ("abcdefgh", "removing"):
        if chance.random() < 0.5:
            left = world.store / "building" / f"{dead}.{ending}"
            shutil.copytree(world.template.entry(RELEASES[0]), left, symlinks=True)
    (world.links / "result-notes").write_text("precious")
    return linked


def kill_gc(this: Round) -> None:
    """Kill gc: what is linked stays whole, what is not is whole or gone."""
    world, linked = this.world, stocked(this)
    for _ in range(this.chance.randint(1, 3)):
        killed(this, "gc", ["gc"])
        store_whole(this, leftovers=True)
        _gc_kept(this, linked)
    this.undisturbed("gc")
    store_whole(this, leftovers=False)
    _gc_kept(this, linked)
    if left := {path.name for path in (world.store / "store").glob("*")} - linked:
        this.hold([f"gc left {name}, which nothing links to" for name in left])


def _gc_kept(this: Round, linked: set[str]) -> None:
    for name in linked - {path.name for path in (this.world.store / "store").glob("*")}:
        this.hold([f"gc removed {name}, which is linked"])


# ── a disk that refuses ──────────────────────────────────────────────────────────────────────

ERRORS = (errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)


def refused(this: Round) -> None:
    """A call that changes a file fails, once or from then on: a sentence, and nothing half-done."""
    world, chance = this.world, this.chance
    number = chance.choice(ERRORS)
    run = chance.choice(["slim", "copy", "build", "build", "gc"])
    onwards = number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    strike = Strike(
        f"errno:{number}" + (":onwards" if onwards else ""),
        chance.randint(1, max(world.template.runs[run].calls, 1)),
    )

    def disturb(arguments: Arguments) -> Ended:
        ended = world.start(*arguments, strike=strike).finish()
        if ended.struck:
            this.faults[f"{errno.errorcode[number]} in {arguments[0]}"] += 1
        this.trail.append(str(strike))
        return this.note(ended)

    _disturbed_once(
        this,
        run,
        disturb,
        forgiving=lambda ended: any(word in ended.struck for word in ("unlink", "rmdir", "rename")),
    )


def _disturbed_once(
    this: Round,
    run: str,
    disturb: Callable[[Arguments], Ended],
    forgiving: Callable[[Ended], bool] = lambda ended: False,
) -> None:
    """Disturb one command with `disturb`, check, and run it undisturbed; `forgiving`: leftovers may be."""
    world = this.world
    if run in ("slim", "copy"):
        before, reference = world.with_tree(), world.template.slimmed()
        cached, out = snapshot(world.area / "cached"), world.area / "out"
        ended = disturb(world.slim(to=out if run == "copy" else None))
        leftovers = forgiving(ended)
        expected = reference if run == "slim" else {}
        this.hold(invariants.old_or_new(before, snapshot(world.tree), expected, leftovers=leftovers))
        if run == "copy":
            _copy_whole(this, out, reference, [], complete=ended.status == 0)
            _nothing_else(this, {"tree", "cached", "links"}, leftovers)
        finish_slim(this, before, reference, cached)
    elif run == "build":
        store_whole(this, forgiving(disturb(world.build())))
        finish_build(this)
    else:
        linked = stocked(this)
        disturb(["gc"])
        store_whole(this, leftovers=True)
        _gc_kept(this, linked)
        this.undisturbed("gc")
        store_whole(this, leftovers=False)
        _gc_kept(this, linked)


def small_files(this: Round) -> None:
    """No file may grow beyond a limit (RLIMIT_FSIZE), an honest full disk without being root."""
    world, chance = this.world, this.chance
    limit = int(2 ** chance.uniform(6, 19))

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def disturb(arguments: Arguments) -> Ended:
        this.faults[f"RLIMIT_FSIZE in {arguments[0]}"] += 1
        this.trail.append(f"files of at most {limit} bytes")
        command = world.start(*arguments, before=lower)
        return this.note(command.finish())

    _disturbed_once(this, chance.choice(["slim", "copy", "build"]), disturb)


def small_disk(this: Round) -> None:
    """A disk that becomes full, of bytes or of inodes, somewhere in the middle (a small tmpfs)."""
    world, chance = this.world, this.chance
    inodes = chance.random() < 0.4
    run = chance.choice(["slim", "copy", "build", "build"])
    mount_tmpfs(world.area, "size=64m")
    try:
        (world.area / "links").mkdir()

        def disturb(arguments: Arguments) -> Ended:
            used = os.statvfs(world.area)
            if inodes:
                taken = used.f_files - used.f_ffree
                room = f"nr_inodes={taken + chance.randint(0, 40)}"
            else:
                taken = (used.f_blocks - used.f_bfree) * used.f_frsize
                room = f"size={taken + int(chance.uniform(0, 2_500_000))}"
            mount_tmpfs(world.area, f"remount,{room}")
            this.faults[f"{'no inodes' if inodes else 'full disk'} in {arguments[0]}"] += 1
            this.trail.append(f"tmpfs with {room}, {taken} taken")
            ended = this.note(world.run(*arguments))
            mount_tmpfs(world.area, "remount,size=64m,nr_inodes=0")
            return ended

        _disturbed_once(this, run, disturb)
    finally:
        this.keep_area()
        unmount(world.area)


def read_only(this: Round) -> None:
    """Folders that cannot be written to, files and folders that cannot be read (without root's powers)."""
    world, chance = this.world, this.chance
    run = chance.choice(["slim", "copy", "build", "gc", "audit"])

    def disturb(arguments: Arguments) -> Ended:
        # A name of a file with other names would pass its mode on to them.
        choices = [
            path
            for path in world.area.rglob("*")
            if not path.is_symlink() and (path.is_dir() or path.stat().st_nlink == 1)
        ]
        choices = [path for path in choices if path.is_dir() or run != "build"]
        chosen = chance.sample(sorted(choices), min(len(choices), chance.randint(1, 3)))
        modes = [(path, path.stat().st_mode & 0o7777) for path in chosen]
        for path, mode in reversed(modes):
            new = mode & chance.choice([0o555, 0o555, 0o333, 0o000])
            path.chmod(new)
            this.trail.append(f"mode {new:o}: {path.relative_to(world.area)}")
        this.faults[f"refused by modes in {arguments[0]}"] += len(modes)
        ended = this.note(world.start(*arguments, before=without_powers).finish())
        for path, mode in modes:
            copied = world.area / "out" / path.relative_to(world.tree) if world.tree in path.parents else path
            for each in (path, copied):  # a copy has the modes that its source had
                with suppress(FileNotFoundError, NotADirectoryError):
                    each.chmod(mode)
        return ended

    if run == "audit":
        before = world.with_tree()
        disturb(["audit", world.tree, "--sm", "sm90"])
        this.hold(invariants.equal(before, snapshot(world.tree), "the audited tree"))
    else:
        if run == "build":
            for folder in ("store", "building", "locks", "links"):
                (world.store / folder).mkdir(parents=True, exist_ok=True)
        _disturbed_once(this, run, disturb, forgiving=lambda ended: True)


def without_powers() -> None:
    """Take root's power over modes away from what this process becomes; nothing for others."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def read_only_disk(this: Round) -> None:
    """A disk that became read-only: nothing changes, and a sentence says so."""
    world, chance = this.world, this.chance
    run = chance.choice(["slim", "copy", "build", "gc"])
    mount_tmpfs(world.area, "size=64m")
    try:
        (world.area / "links").mkdir()

        def disturb(arguments: Arguments) -> Ended:
            remount_read_only(world.area)
            this.faults[f"read-only disk in {arguments[0]}"] += 1
            ended = this.note(world.run(*arguments))
            if ended.status == 0 and run != "gc":
                this.hold([f"`{arguments[0]}` claims success on a read-only disk"])
            mount_tmpfs(world.area, "remount,rw")
            return ended

        _disturbed_once(this, run, disturb)
    finally:
        this.keep_area()
        unmount(world.area)


# ── several at once ──────────────────────────────────────────────────────────────────────────


def stopped_at(this: Round, run: str, arguments: Arguments) -> Command:
    """Start a command that stands still (SIGSTOP) at a random call, or runs into its end."""
    known = this.world.template.runs[run]
    at = this.chance.randint(1, max(known.calls, 1))
    strike = Strike(f"signal:{int(signal.SIGSTOP)}:group", at, this.chance.random() < 0.5)
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
    if first.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(first.process.pid, signal.SIGCONT)
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
    kind = chance.choice(["tree", "file", "copy"])
    name = "pkg/libthree.so"
    if kind == "tree":
        arguments = world.slim(jobs=chance.choice([1, 2]))
    elif kind == "file":
        arguments = world.slim(world.tree / name)[:-2]
    else:
        arguments = world.slim(to=out)
    run = {"tree": "slim", "file": "file", "copy": "copy"}[kind]
    ends = _pair(this, run, arguments, [arguments])
    now = snapshot(world.tree)
    done = any(ended.status == 0 for ended in ends)
    if kind == "copy":
        this.hold(invariants.equal(before, now, "the source"))
        if done and not out.exists():
            this.hold(["one says it is done, and there is no copy"])
        _copy_whole(this, out, reference, [])
        _nothing_else(this, {"tree", "cached", "links"}, leftovers=False)
    else:
        expected = reference if kind == "tree" else {name: reference[name]}
        sentences = invariants.old_or_new(before, now, expected, leftovers=False, finished=done)
        this.hold(sentences, "after both")
    if not done:
        this.hold(["neither of two slimmings succeeded"])
    finish_slim(this, before, reference, cached)


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
    _gc_kept(this, linked)
    this.undisturbed("gc")
    store_whole(this, leftovers=False)
    _gc_kept(this, linked)
    for words in (arguments, *others):
        if words[0] == "build":
            folder = Path(words[words.index("--links") + 1])
            if not any((path / "bin" / "python").exists() for path in folder.iterdir()):
                this.hold([f"a build that succeeded has no link in {folder.name}"])


def changed_meanwhile(this: Round) -> None:
    """Somebody replaces, truncates, removes or lengthens a library while it is slimmed."""
    world, chance = this.world, this.chance
    before, reference = world.with_tree(), world.template.slimmed()
    name = chance.choice(["lib/libone.so.1", "pkg/_real.so", "pkg/libthree.so"])
    path = world.tree / name
    how = chance.choice(["replaced", "replaced", "truncated", "removed", "lengthened"])
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
    if command.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGCONT)
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


# ── odd things ───────────────────────────────────────────────────────────────────────────────


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
    command = chance.choice(["slim", "audit", "copy", "one"])
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
        this.note(bounded(world, *words))
    expected = reference if command == "slim" else {}
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
        _gc_kept(this, linked)
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


# ── the index ────────────────────────────────────────────────────────────────────────────────


def lying_index(this: Round) -> None:
    """An index that lies, stalls and cuts: never a link to what is not whole; then a good one succeeds."""
    world, chance = this.world, this.chance
    lies = tuple(chance.sample(LIES, chance.choice([1, 1, 2, 4])))
    cold = World(world.template, world.root, world.index, world.root / "uv-cache")
    for _ in range(chance.randint(1, 2)):
        behaviour = Behaviour(str(chance.random()), chance.choice([0.3, 0.6, 1.0]), lies)
        world.index.behaviour = behaviour
        arguments = cold.build()
        command = cold.start(*arguments, env={"UV_HTTP_TIMEOUT": "1", "UV_HTTP_RETRIES": "0"})
        if "stalled" in lies and chance.random() < 0.5:
            command.wait(chance.uniform(0.4, 2.0) * this.pace)
            signum = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
            command.send(int(signum), group=signum is signal.SIGINT)
        ended = this.note(command.finish())
        this.trail.append(f"the index lied: {dict(behaviour.told)}")
        world.index.behaviour = Behaviour()
        for lie, count in behaviour.told.items():
            this.faults[f"index: {lie}"] += count
        store_whole(this, leftovers=may_leave(ended))
        if ended.status and (world.links / "result-vllm-python312-cuda12_9-sm90").exists() and not ended.sent:
            this.hold(["a build that failed has a link"])
    this_world, this.world = this.world, cold
    finish_build(this)
    this.world = this_world


@dataclass(frozen=True)
class Kind:
    """A kind of round: its function, its share among rounds, and what it needs."""

    play: Callable[[Round], None]
    share: int
    needs: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "kill-slim": Kind(kill_slim, 5),
    "kill-copy": Kind(kill_copy, 3),
    "kill-file": Kind(kill_file, 2),
    "kill-build": Kind(kill_build, 5),
    "kill-gc": Kind(kill_gc, 3),
    "refused-call": Kind(refused, 4, frozenset({"shim"})),
    "small-files": Kind(small_files, 1),
    "small-disk": Kind(small_disk, 3, frozenset({"mount"})),
    "read-only-disk": Kind(read_only_disk, 1, frozenset({"mount"})),
    "refused-by-modes": Kind(read_only, 2),
    "two-slims": Kind(two_slims, 3),
    "builds-and-gcs": Kind(builds_and_gcs, 3),
    "changed-meanwhile": Kind(changed_meanwhile, 2, frozenset({"shim"})),
    "odd-tree": Kind(odd_tree, 2),
    "odd-store": Kind(odd_store, 1),
    "damaged-entry": Kind(damaged_entry, 1),
    "lying-index": Kind(lying_index, 4),
}
"""Native compiling comes as one more kind when there is a command for it: kill it as `kill-slim` does."""
