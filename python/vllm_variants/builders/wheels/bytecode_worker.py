"""Compile modules to bytecode; run by a result's own interpreter, by path, with its standard library alone.

Arguments: site-packages, and a file that lists modules in it, one a line. Each gets
`__pycache__/NAME.cpython-XY.pyc`, hash-based and unchecked: Python takes it without looking at the
source's time, which copying and unpacking change. The same source gives the same bytes wherever it
lies. What is not valid Python is passed.
"""

import importlib.util
import py_compile
import sys
import warnings
from pathlib import Path


def main(site: str, listing: str) -> None:
    """Compile what `listing` names."""
    warnings.simplefilter("ignore")
    for name in Path(listing).read_text(encoding="utf-8").splitlines():
        source = f"{site}/{name}"
        target = importlib.util.cache_from_source(source, optimization="")
        try:
            py_compile.compile(
                source,
                target,
                dfile=name,  # importing puts the real path in its place
                doraise=True,
                optimize=0,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except (py_compile.PyCompileError, ValueError, RecursionError):
            continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
