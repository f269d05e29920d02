"""Ctrl-C is not lost when it comes while Python runs a callback that cannot raise, or makes a class."""

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
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 130
    assert "Traceback" not in completed.stderr and "ignored" not in completed.stderr


CLASS = """
import os, signal
from vllm_variants import cli

class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT), [None] * 9

def run():
    class Made:  # Python 3.11 makes a RuntimeError of what comes in `__set_name__`
        field = Field()

cli._run = run
cli.main()
"""


def test_ctrl_c_while_a_class_is_made_is_no_traceback() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", CLASS], capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 130, completed.stderr
    assert completed.stderr == "interrupted: nothing half-done was left behind\n"


def test_an_error_that_is_no_interruption_is_not_taken_for_one() -> None:
    script = (
        "from vllm_variants import cli\ndef run(): raise RuntimeError('broken')\ncli._run = run\ncli.main()"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 1 and "RuntimeError: broken" in completed.stderr
