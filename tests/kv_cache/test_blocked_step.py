"""No call waits for a lock with the GIL, which would stop every other thread of the interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "blocked_step.py"


@pytest.mark.host_only
def test_everything_can_be_asked_while_a_step_is_in_the_driver():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-3000:]}"
