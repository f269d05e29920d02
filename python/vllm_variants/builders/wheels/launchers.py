"""The programs in a result's `bin/`, made so that they work through links, anywhere, after a move."""

from __future__ import annotations

from pathlib import Path

# PYTHONPATH, PYTHONHOME and the user's site-packages would let the host's packages in.
_PYTHON = """\
#!/bin/sh
# {first}
here=$(dirname -- "$(readlink -f -- "$0")")
unset PYTHONPATH PYTHONHOME
PYTHONNOUSERSITE=1
# The {what} has its bytecode; nothing is written into it unless that is asked for (an empty value).
PYTHONDONTWRITEBYTECODE=${{PYTHONDONTWRITEBYTECODE-1}}
export PYTHONNOUSERSITE PYTHONDONTWRITEBYTECODE
{before}exec "$here/python{minor}" "$@"
"""
_FIRST = "Python of this result, and nothing of the host's site-packages."
_EXPECT = """\
if [ ! -x "$here/python{minor}" ]; then
  echo "error: no Python {minor} at $(readlink "$here/python{minor}"), where this result expects it" >&2
  echo "hint: ln -sfn \\"\\$(command -v python{minor})\\" '$here/python{minor}'" >&2
  exit 127
fi
"""


_OF_VENV = ("activate*", "deactivate*", "pydoc.bat")
"""Scripts of a virtual environment: a result is not activated, its programs are started by their paths."""


def program(minor: str, what: str, first: str, before: str) -> str:
    """The text of a `bin/python` that starts `python<minor>` beside it and keeps the host's packages out.

    `what` it belongs to and its `first` comment are for people; `before` are lines of sh that run first.
    """
    return _PYTHON.format(minor=minor, what=what, first=first, before=before)


def write(environment: Path, interpreter: Path, minor: str) -> None:
    """Replace the links in `environment/bin` by programs that keep the host out.

    `bin/python<minor>` is the link to `interpreter`; `python` and `python3` start it. Programs
    that wheels brought (`vllm`, `ray`, …) start `python` beside them (uv's relocatable scripts).
    Nothing else stays there.
    """
    folder = environment / "bin"
    for path in [path for pattern in _OF_VENV for path in folder.glob(pattern)]:
        path.unlink()
    for name in ("python", "python3", f"python{minor}"):
        (folder / name).unlink(missing_ok=True)
    (folder / f"python{minor}").symlink_to(interpreter)
    text = program(minor, "result", _FIRST, _EXPECT.format(minor=minor))
    for name in ("python", "python3"):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def expect_interpreter(environment: Path, interpreter: Path, minor: str) -> None:
    """Point an environment for another platform at the interpreter expected on its machine."""
    link = environment / "bin" / f"python{minor}"
    link.unlink()
    link.symlink_to(interpreter)
    config = environment / "pyvenv.cfg"
    lines = config.read_text(encoding="utf-8").splitlines()
    home = f"home = {interpreter.parent}"
    config.write_text("\n".join(home if line.startswith("home =") else line for line in lines) + "\n")
