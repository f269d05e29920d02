"""The files that a pin changes: text edits, and all of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.errors import InputError, ResourceError
from vllm_variants.maintain import pins
from vllm_variants.model import matrix
from vllm_variants.nix.prefetch import Revision, Source, Versions
from vllm_variants.system import together

ROWS = matrix.load()
NEW = "f" * 40


def pin(name: str | None = None, torch: str = "2.9.1") -> pins.Pin:
    return pins.Pin(
        ROWS.default,
        Revision(NEW, "sha256-x", name),
        Source(1, Path("/")),
        Versions("0.13.0", torch, ("12.9",)),
    )


TABLE = """\
[release."0.13.0"] # the one
# nixpkgs = "commented"
nixpkgs   =   "{old}"   # a comment with # in it
torch = "2.9.1"

[release."0.11.2"]
nixpkgs = "{old}"
torch = "2.9.1"
"""


def test_only_the_releases_own_lines_change_and_comments_stay() -> None:
    text = TABLE.format(old="0" * 40)
    made = pins.edit_toml(text, pin(torch="2.10.0"))
    expected = text.replace(f'   "{"0" * 40}"   #', f'   "{NEW}"   #').replace("2.9.1", "2.10.0", 1)
    assert made == expected


NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,20}\Z")
COMMENTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


@given(NAMES, COMMENTS)
def test_naming_and_unnaming_a_pin_leaves_the_comment_as_it_was(name: str, comment: str) -> None:
    comment = comment.strip().lstrip("#").strip()
    if comment.startswith("at "):
        return
    text = f'[release."0.13.0"]\nnixpkgs = "{"0" * 40}"' + (f" # {comment}" if comment else "") + "\n"
    named = pins.edit_toml(text, pin(name))
    assert f"# at {name}" in named
    assert pins.edit_toml(named, pin()) == text.replace("0" * 40, NEW)


def test_the_committed_files_can_be_edited_and_nothing_else_of_them_changes() -> None:
    root = Path(__file__).resolve().parents[2]
    for release in ROWS.packaged.values():
        name = pins.input_name(ROWS, release)
        move = pins.Pin(release, *(getattr(pin(), part) for part in ("revision", "source", "versions")))
        for file, made in (
            ("variants.toml", pins.edit_toml((root / "variants.toml").read_text(), move)),
            ("flake.nix", pins.edit_flake((root / "flake.nix").read_text(), name, NEW)),
            ("flake.lock", pins.edit_lock((root / "flake.lock").read_text(), name, move)),
        ):
            old = (root / file).read_text().splitlines()
            changed = [new for before, new in zip(old, made.splitlines(), strict=True) if before != new]
            assert 1 <= len(changed) <= 4
            assert any(NEW in line for line in changed)


@pytest.mark.parametrize("text", ["{}", "no json", '{"nodes": {"root": {"inputs": {}}}}'])
def test_a_lock_without_the_input_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"flake\.lock has no node"):
        pins.edit_lock(text, "nixpkgs", pin())


def test_all_files_change_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths[:2]:
        path.write_text("old")
        path.chmod(0o640)
    real = Path.replace

    def fail_at_c(self: Path, target: Path) -> Path:
        if Path(target).name == "c":
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_c)
    with pytest.raises(ResourceError, match="disk is full"):
        together.write(dict.fromkeys(paths, "new"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert [p.read_text() for p in paths[:2]] == ["old", "old"]
    monkeypatch.undo()
    together.write(dict.fromkeys(paths, "new"))
    assert [p.read_text() for p in paths] == ["new"] * 3
    assert paths[0].stat().st_mode & 0o777 == 0o640
