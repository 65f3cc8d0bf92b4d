"""Running code in a child process, so that a signal is a result and not the end of the test run."""

import subprocess
import sys
import textwrap


def run_child(code: str, *, environment: dict[str, str] | None = None, timeout: float = 60):
    """The completed process of ``code``; returncode is -signal when a signal ended it."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
