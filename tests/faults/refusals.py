"""Rounds of a disk that refuses: full, read-only, out of inodes, forbidden."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from contextlib import suppress

import invariants
from commands import Ended, Strike
from invariants import snapshot
from mounts import mount_tmpfs, remount_read_only, unmount
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
from worlds import RELEASES, WITH_PTX

ERRORS = (errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)


def refused(this: Round) -> None:
    """A call that changes a file fails, once or from then on: a sentence, and nothing half-done."""
    world, chance = this.world, this.chance
    number = chance.choice(ERRORS)
    run = chance.choice(["slim", "copy", "build", "build", "gc", "native", "export"])
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
    if run in ("slim", "copy", "native"):
        template = world.template
        before, reference = world.with_tree(), template.compiled() if run == "native" else template.slimmed()
        cached, out = snapshot(world.area / "cached"), world.area / "out"
        ended = disturb(world.native() if run == "native" else world.slim(to=out if run == "copy" else None))
        leftovers = forgiving(ended)
        expected = {} if run == "copy" else reference
        now = snapshot(world.tree)
        if run == "native":  # a compiler that could not be started leaves a PTX
            expected = {**expected, WITH_PTX: now.get(WITH_PTX, reference[WITH_PTX])}
        this.hold(invariants.old_or_new(before, now, expected, leftovers=leftovers))
        if run == "copy":
            linked = ": link" not in ended.struck
            copy_whole(this, out, reference, [], complete=ended.status == 0, one_file=linked)
            nothing_else(this, {"tree", "cached", "links"}, leftovers)
        finish_slim(this, before, reference, cached, "native" if run == "native" else "slim")
    elif run == "build":
        store_whole(this, forgiving(disturb(world.build())))
        finish_build(this)
    elif run == "export":
        entry = world.with_entry(RELEASES[0], link="result-exported")
        whole = snapshot(entry)
        ended = disturb(world.export())
        export_whole(this, forgiving(ended), done=ended.status == 0)
        this.undisturbed(*world.export())
        export_whole(this, leftovers=False, done=True)
        this.hold(invariants.equal(whole, snapshot(entry), "the result"))
    else:
        linked = stocked(this)
        disturb(["gc"])
        store_whole(this, leftovers=True)
        gc_kept(this, linked)
        this.undisturbed("gc")
        store_whole(this, leftovers=False)
        gc_kept(this, linked)


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

    _disturbed_once(this, chance.choice(["slim", "copy", "build", "native", "export"]), disturb)


def small_disk(this: Round) -> None:
    """A disk that becomes full, of bytes or of inodes, somewhere in the middle (a small tmpfs)."""
    world, chance = this.world, this.chance
    inodes = chance.random() < 0.4
    run = chance.choice(["slim", "copy", "build", "build", "native", "export"])
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
    run = chance.choice(["slim", "copy", "build", "gc", "audit", "export"])

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
    run = chance.choice(["slim", "copy", "build", "gc", "native", "export"])
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
