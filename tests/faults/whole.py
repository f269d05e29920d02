"""What must be whole after a fault: a slimmed tree, its copy, the store; each ends undisturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

import invariants
from invariants import OURS, Snapshot, snapshot
from rounds import Round
from worlds import OTHER_NAMES, RELEASES


def finish_slim(
    this: Round, before: Snapshot, reference: Snapshot, cached: Snapshot, run: str = "slim"
) -> None:
    """An undisturbed slimming (`native`: one that compiles) succeeds, leaves all new and nothing aside.

    A run that was killed between two names of one file leaves two files, and they stay two.
    """
    one_file = not invariants.one_inode(snapshot(this.world.tree), [OTHER_NAMES])
    ended = this.undisturbed(*(this.world.native() if run == "native" else this.world.slim()))
    if "is damaged" in ended.err:
        this.hold(["a cubin that was kept is damaged"])
    known = this.world.template.runs[run].seconds
    this.pace = min(max(0.7 * this.pace + 0.3 * ended.seconds / known, 0.3), 5.0)
    now = snapshot(this.world.tree)
    this.hold(invariants.old_or_new(before, now, reference, leftovers=False, finished=True), "afterwards")
    this.hold(invariants.one_inode(now, [OTHER_NAMES] if one_file else []), "afterwards")
    this.hold(invariants.equal(cached, snapshot(this.world.area / "cached"), "a name outside the tree"))


def copy_whole(
    this: Round,
    out: Path,
    reference: Snapshot,
    link: list[str],
    complete: bool = True,
    one_file: bool = True,
) -> None:
    """A copy that is there is whole; unless it must be `complete`, libraries in it may be old.

    `one_file`: names of one file are so in it; one is a copy where a link was refused.
    """
    if out.exists():
        copy = snapshot(out)
        if complete:
            this.hold(invariants.equal(reference, copy, "the copy"))
            this.hold(invariants.one_inode(copy, [OTHER_NAMES] if one_file else []))
        else:
            source = snapshot(this.world.tree)
            this.hold(invariants.old_or_new(source, copy, reference, leftovers=False), "the copy")
        shared = {item.inode for item in snapshot(this.world.tree).values() if item.kind == "file"}
        if not link and any(item.inode in shared for item in copy.values() if item.kind == "file"):
            this.hold(["the copy shares files with its source"])
        shutil.rmtree(out)


def export_whole(this: Round, leftovers: bool, done: bool = False) -> None:
    """A wheelhouse that is there is whole, and it is there when an export says so; removes it."""
    out = this.world.area / "out"
    if out.exists():
        this.hold(invariants.equal(this.world.template.exported(), snapshot(out), "the wheelhouse"))
        shutil.rmtree(out)
    elif done:
        this.hold(["an export that succeeded left no wheelhouse"])
    nothing_else(this, {"links", "data"}, leftovers)


def nothing_else(this: Round, names: set[str], leftovers: bool) -> None:
    """Beside the output stands nothing new (of ours: after SIGKILL only)."""
    for name in {path.name for path in this.world.area.iterdir()} - names:
        if not (leftovers and OURS.fullmatch(name)):
            this.hold([f"{name} was left beside the output"])


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


def gc_kept(this: Round, linked: set[str]) -> None:
    for name in linked - {path.name for path in (this.world.store / "store").glob("*")}:
        this.hold([f"gc removed {name}, which is linked"])
