"""Ctrl-C is not lost when it comes while Python runs a callback that cannot raise."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, signal, sys, time, weakref
from vllm_variants import cli

class Thing: pass

def run():
    thing = Thing()
    # A callback of a weak reference: what it raises is "ignored" by Python.
    reference = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGINT), [None] * 9))
    del thing
    time.sleep(20)

cli._run = run
cli.main()
"""


def test_ctrl_c_within_a_callback_that_cannot_raise_ends_the_command_all_the_same() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=15, check=False
    )
    assert completed.returncode == 130
    assert "Traceback" not in completed.stderr and "ignored" not in completed.stderr
