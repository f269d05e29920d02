"""ptxas: which one it is, how it is called, and what its words mean when it refuses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vllm_variants.errors import MissingError, UnsupportedError
from vllm_variants.model.capability import Target
from vllm_variants.system import process

_VERSION = re.compile(r"\bV(\d+\.\d+\.\d+)\b")
_BUILD = re.compile(r"^Build (\S+)", re.MULTILINE)
_NEWER = re.compile(r"Unsupported \.version (\d+\.\d+); current version is '(\d+\.\d+)'")
_NO_TARGET = re.compile(r"Value '(sm_\w+)' is not defined for option 'gpu-name'")
_FATAL = re.compile(r"(?:line (\d+); )?(?:fatal|error)\s*:\s*(.*)")
_GENERAL = "Ptx assembly aborted due to errors"
_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|memory allocation fail", re.IGNORECASE)


@dataclass(frozen=True)
class Compiler:
    """A ptxas: where it is, its version (`12.9.86`) and build, and the program's sha256."""

    ptxas: Path
    version: str
    build: str
    digest: str

    @classmethod
    def at(cls, ptxas: Path) -> Self:
        """The ptxas at that path; `MissingError` or `UnsupportedError` where it is none, or cannot run."""
        try:
            with ptxas.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            completed = process.capture([ptxas, "--version"])
        except FileNotFoundError as error:
            if ptxas.exists():  # its loader is what is not there
                raise UnsupportedError(f"{ptxas} cannot run here: it needs glibc's loader") from error
            raise MissingError(f"there is no ptxas at {ptxas}") from error
        except OSError as error:
            raise UnsupportedError(f"{ptxas} cannot run on this machine: {error.strerror}") from error
        version, build = _VERSION.search(completed.stdout), _BUILD.search(completed.stdout)
        if completed.status or not version:
            raise UnsupportedError(f"{ptxas} is no ptxas: it does not say its version")
        return cls(ptxas, version[1], build[1] if build else "", digest)

    def command(self, target: Target, options: Sequence[str], text: Path, cubin: Path) -> list[str]:
        """How nvcc calls ptxas, with the options that a PTX's header holds behind it."""
        return [str(self.ptxas), f"-arch={target.sm}", "-m64", *options, str(text), "-o", str(cubin)]

    def environment(self, temporary: Path) -> dict[str, str]:
        """Nothing of ours but the path: a cubin depends on its PTX and its options alone."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TMPDIR": str(temporary)}

    def refusal(self, words: str, status: int) -> str:
        """Why a compilation failed, as a clause, from what ptxas wrote and its exit status."""
        if newer := _NEWER.search(words):
            return (
                f"its PTX is of version {newer[1]}, newer than ptxas {self.version} reads (up to {newer[2]})"
            )
        if unknown := _NO_TARGET.search(words):
            return f"ptxas {self.version} knows no {unknown[1]}"
        for line, reason in _FATAL.findall(words):
            if reason.strip() != _GENERAL:
                where = f" at line {line}" if line else ""
                return f"ptxas {self.version} refused its PTX{where}: {reason.strip()}"
        if status < 0:
            return f"ptxas {self.version} was ended by signal {-status}"
        return f"ptxas {self.version} failed (exit status {status})"

    def as_dict(self) -> dict[str, str]:
        """What a result's identity holds of the compiler."""
        return {"ptxas": self.version, "build": self.build, "sha256": self.digest}


def out_of_memory(words: str) -> bool:
    """Whether ptxas says that it had not enough memory."""
    return bool(_OUT_OF_MEMORY.search(words))
