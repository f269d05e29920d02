"""Where everything is in the store's folder, and by which name it is known to be the store's own."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import ResourceError
from vllm_variants.system import atomic

_ENTRY = re.compile(r"[0-9a-f]{16}-.+-(?P<short>sm\d+(-arm64)?)-(?P<release>.+)")
_BUILDING = re.compile(r"(?P<entry>[0-9a-f]{16}-.+)\.[^.]+")
_REMEMBERED = re.compile(r"[0-9a-f]{24}")


def variant_and_release(entry: str) -> tuple[str, str]:
    """The variant's short name and the release that an entry's name says; two empty texts for another."""
    match = _ENTRY.fullmatch(entry)
    return (match["short"], match["release"]) if match else ("", "")


@dataclass(frozen=True)
class StoreFolders:
    """The folders of a store under `root`. Methods raise `ResourceError` where the disk refuses."""

    root: Path

    def entry(self, name: str) -> Path:
        """Where the entry of that name is, or will be."""
        return self.root / "store" / name

    def lock(self, name: str) -> Path:
        """The lock file of an entry, or of the links; its folder is made."""
        return self.made("locks") / name

    def entries(self) -> list[Path]:
        """Everything in store/ that has an entry's name, in the order of names."""
        return [path for path in self._children("store") if _ENTRY.fullmatch(path.name)]

    def leftovers(self) -> list[tuple[Path, str]]:
        """What lies in building/, each with the name of the entry that it was made for."""
        matches = [(path, _BUILDING.fullmatch(path.name)) for path in self._children("building")]
        return [(path, match["entry"]) for path, match in matches if match]

    def remembered_links(self) -> list[Path]:
        """What has the name of a remembered link in links/."""
        return [path for path in self._children("links") if _REMEMBERED.fullmatch(path.name)]

    def unfinished_links(self) -> list[Path]:
        """What a process that was killed while it remembered a link may have left in links/."""
        return [path for path in self._children("links") if atomic.leftover_target(path)]

    def foreign(self) -> list[Path]:
        """What somebody else put into store/, building/ or links/: it has no name of ours."""
        ours = {
            *self.entries(),
            *(path for path, _ in self.leftovers()),
            *(path for path in self.remembered_links() if path.is_symlink()),
        }
        present = [path for name in ("store", "building", "links") for path in self._children(name)]
        return [path for path in present if path not in ours and not atomic.leftover_target(path)]

    def aside(self, entry: str) -> Path:
        """A new name in building/ for something of that entry; its folder is made."""
        return self.made("building") / f"{entry}.{secrets.token_hex(4)}"

    def set_aside(self, path: Path, entry: str) -> Path | None:
        """Move what is at `path` out of sight, to building/ (hold the entry's lock).

        Returns where it is now, None where nothing was. Raises `OSError` where it cannot be moved.
        """
        aside = self.aside(entry)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        return aside

    def made(self, name: str) -> Path:
        """The folder of that name, made where it was not there."""
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the store's folder {folder} cannot be made: {error.strerror}",
                hint="set XDG_DATA_HOME to a folder that you can write to",
            ) from error
        return folder

    def _children(self, name: str) -> list[Path]:
        """What is in one of the folders, in the order of names; nothing where there is none yet."""
        folder = self.root / name
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(
                f"the store's folder {folder} cannot be read: {error.strerror}",
                hint="set XDG_DATA_HOME to a folder of your own",
            ) from error
