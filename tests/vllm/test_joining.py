"""An engine joins a share whose memory another process holds, idle."""

import subprocess
import sys

import torch

from vmm.integrations.vllm.layout import Layout
from vmm.integrations.vllm.memory import WorkerMemory
from vmm.integrations.vllm.settings import Settings

MIB = 2**20
# Holds everything, and gives half back a while after it is asked to.
HOLDER = """
import time, vmm
pool = vmm.Pool("8MiB", share="full", minimum="1MiB")
blocks = pool.range("8MiB", 65536).blocks((0,), 65536, 128)
blocks.keep(list(range(128)))
print("full", flush=True)
while not pool.await_pressure(1.0):
    pass
time.sleep(0.3)
blocks.drop(list(range(64)), unmap=True)
pool.trim()
input()
"""


def test_it_waits_for_what_is_promised_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(tmp_path))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "full\n"
        settings = Settings(budget_bytes=8 * MIB, share="full", minimum_bytes=MIB, page_bytes=65536)
        layout = Layout(size=8 * MIB, starts=(0,), stride=65536, count=128)
        memory = WorkerMemory(settings, layout, torch.device("cpu"), 4)
        assert memory.figures()["mapped_bytes"] >= 65536
        memory.close()
    finally:
        holder.kill()
        holder.communicate()
