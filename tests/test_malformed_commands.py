"""Malformed command lines and damaged descriptions end in a sentence, for a few of those that the script tries."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "reliability" / "malformed_commands.py"


def test_no_odd_word_or_description_ends_in_a_traceback():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "40", "--seed", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "40 malformed commands and files, 0 faults" in done.stdout
