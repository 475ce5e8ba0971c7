"""No operation mixes the processor's tensors with an accelerator's: `tests/pretended_device.py`, in a process of its own.

A device has to be named before the first backward pass of a process, so it cannot be pretended among other tests.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_everything_is_computed_where_the_model_is():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/pretended_device.py"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
