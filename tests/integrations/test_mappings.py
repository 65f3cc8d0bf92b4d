"""A process may have only so many memory mappings: caches of ever other lengths must not use them up."""

import sys

import pytest

from child import run_child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the host driver is Linux's")

# 64 extents, which are two mappings each: without reclaiming 500 caches would take 64,000.
CACHES = """
import collections, os, sys

def mappings():
    return sum(1 for _ in open("/proc/self/maps"))

import torch, transformers, vmm
from vmm.integrations.transformers import VmmCache

config = transformers.LlamaConfig(
    hidden_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4
)
states = torch.ones(1, 4, 3, 32)
limit = mappings() + 1200
os.environ["VMM_MAX_MAPPINGS"] = str(limit)
pool = vmm.Pool("512MiB")  # so that mappings run short, and not memory
alive = collections.deque(maxlen=ALIVE)
most = 0
for i in range(500):
    cache = VmmCache(config, max_tokens=32 * (i + 1), pool=pool, page_bytes=4096)
    for layer in range(8):
        keys, values = cache.update(states * i, states, layer)
    assert (keys == i).all()
    alive.append(cache)
    del cache, keys, values
    most = max(most, mappings())
assert most <= limit, (most, limit)
pool.check()
pool.trim()
alive.clear()
END
print("ends", flush=True)
"""


@pytest.mark.timeout(700)  # pytest's own, 300 s, would end the test before the child's
@pytest.mark.parametrize(("alive", "end"), [(0, "pool.close()"), (3, "")], ids=["in turn", "three alive"])
def test_caches_of_500_lengths_share_the_processes_mappings(alive, end):
    result = run_child(CACHES.replace("ALIVE", str(alive)).replace("END", end), timeout=600)
    assert (result.returncode, result.stdout.strip()) == (0, "ends"), result.stdout + result.stderr
