"""The end of a process whose pools cannot be closed, or whose work never ends."""

import pytest

from child import run_child

WORK_THAT_NEVER_ENDS = """
import ctypes, sys
import vmm
from vmm import _core
from vmm import open_pools

open_pools._EXIT_PATIENCE_S = 0.2
pool = vmm.Pool("16MiB")
pool._core.close()
pool._core = _core.Pool(1 << 24, faults=True, pager_thread=PAGER)  # whose events can be held back
lease = pool._core.reserve(page_bytes=65536, extent_bytes=1 << 20)
lease.map([(0, 4)])
pool._core.hold_events(True)
pool._core.step(pool._core.create_stream())
pool._core.end(1)
lease.unkeep([(0, 4)])
"""


def test_work_that_never_ends_does_not_keep_the_process():
    for pager in ("True", "False"):
        for leased in ("del lease", ""):
            result = run_child(WORK_THAT_NEVER_ENDS.replace("PAGER", pager) + leased)
            assert result.returncode == 0, result.stderr
            assert result.stderr.count("did not end in time") == 1, result.stderr


@pytest.mark.parametrize(
    ("error", "stderr"),
    [
        ("RuntimeError", "sys.stderr"),
        ("KeyboardInterrupt", "sys.stderr"),
        ("SystemExit", "sys.stderr"),
        ("RuntimeError", "closed"),
        ("RuntimeError", "interrupted"),
        ("KeyboardInterrupt", "None"),
    ],
)
def test_whatever_happens_at_the_close_of_one_the_others_are_closed(error, stderr):
    result = run_child(f"""
        import io, sys
        import vmm
        from vmm import open_pools

        class Broken:
            in_child = False

            def __getattr__(self, name):
                raise {error}("nothing works here")

        class Interrupted:
            def write(self, text):
                raise KeyboardInterrupt

            def flush(self):
                pass

        made = [vmm.Pool("16MiB") for _ in range(6)]
        for pool in made[::2]:
            pool._core = Broken()
        closed = io.StringIO()
        closed.close()
        interrupted = Interrupted()
        sys.stderr = {stderr}
        open_pools._close_all()
        print([pool.closed for pool in made[1::2]])
    """)
    assert (result.returncode, result.stdout.strip()) == (0, "[True, True, True]"), result.stderr
    if stderr == "sys.stderr":
        assert result.stderr.count("closing cpu at exit") == 2 * 3  # and once more when the process ends


def test_a_pool_that_cannot_be_closed_does_not_keep_the_others_from_closing():
    result = run_child("""
        import vmm

        good = [vmm.Pool("16MiB") for _ in range(4)]
        bad = vmm.Pool("16MiB")

        class Broken:
            in_child = False

            def __getattr__(self, name):
                raise RuntimeError("nothing works here")

        bad._core = Broken()
        from vmm import open_pools
        open_pools._close_all()
        print([pool.closed for pool in good])
    """)
    assert (result.returncode, result.stdout.strip()) == (0, "[True, True, True, True]"), result.stderr
    assert "nothing works here" in result.stderr
