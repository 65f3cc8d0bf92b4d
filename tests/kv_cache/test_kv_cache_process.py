"""The end of the process, and its children."""

import pytest

from child import run_child

BEGIN = """
import os, torch, vmm
cache = vmm.KVCache(1, 1, 64, torch.float32, max_tokens=100, max_sequences=2, budget="1MiB")
sequence = cache.open(50)
def step(length):
    cache.step(torch.tensor([sequence.slot], dtype=torch.int32), torch.tensor([length], dtype=torch.int32))
step(50)
k, v = sequence.kv(0)
"""


@pytest.mark.parametrize("kept", ["cache, sequence, k", "cache", "k", "sequence"])
def test_a_process_ends_with_an_epoch_open(kept):
    names = {"cache", "sequence", "k", "v"} - set(kept.split(", "))
    result = run_child(f"{BEGIN}\ndel {', '.join(sorted(names))}, step" if names else BEGIN)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_a_forked_child_is_told():
    result = run_child(f"""{BEGIN}
def told(work):
    try:
        work()
    except vmm.Forked:
        return True
child = os.fork()
if child == 0:
    works = [cache.open, lambda: step(51), cache.end, lambda: sequence.truncate(1), sequence.close]
    fine = all(told(work) for work in works)
    del cache, sequence
    os._exit(0 if fine else 1)
assert os.waitpid(child, 0)[1] == 0
k.fill_(1)
step(60)
assert sequence.kv(0)[0][:50].eq(1).all()
sequence.close()
cache.close()
""")
    assert result.returncode == 0, result.stderr
