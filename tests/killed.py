"""For scripts whose children are killed."""

#: Source for the start of such a script, because its processes are forked from one without pytest.
KILLED = """
import os, random, signal, time, traceback

def killed(work, most_seconds, waits):
    \"\"\"Kills a process that does ``work(told)``, at most so many seconds after it was made or, where this
    ``waits``, after it has first written to ``told``. Returns what it has written.\"\"\"
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(heard)
            work(told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(told)
    first = os.read(heard, 1) if waits else b""
    assert first == b"." or not waits, "it ended by itself"
    time.sleep(random.uniform(0, most_seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it had ended by itself: {status}"
    written = first + os.read(heard, 1 << 16)
    os.close(heard)
    return written
"""
