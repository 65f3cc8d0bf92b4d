"""Forks and ends of a process that uses the GPU."""

import os
import subprocess
import sys
import textwrap

from gpu_device import DEVICE, on_device, pattern, pool_of, raised, tensor_of

import vmm


@on_device
def test_a_forked_child_is_told():
    with pool_of(8) as pool:
        t = tensor_of(pool, 4)
        values = pattern(1, 20, t.shape[2])
        t.append(values)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for use in (lambda: t[:, :5], lambda: t.append(values), pool.stats, pool.trim):
                    raised(vmm.Forked, use)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert t[:, :20].eq(values).all()


def _ended(code: str) -> subprocess.CompletedProcess:
    preamble = f"import torch, vmm\nDEVICE = {DEVICE!r}\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", preamble + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@on_device
def test_a_process_ends_with_everything_alive():
    ended = _ended("""
        pool = vmm.Pool("64MiB", device=DEVICE)
        t = vmm.KVTensor(1, 1000, 64, pool=pool, device=DEVICE)
        t.append(torch.ones(1, 100, 64, device=DEVICE))
        kept = t[:, :50]
        keeper = [pool, t, kept]
        keeper.append(keeper)
        print(float(kept.sum()))
    """)
    assert (ended.returncode, ended.stdout) == (0, "3200.0\n"), ended.stderr


@on_device
def test_a_process_ends_while_work_is_under_way():
    ended = _ended("""
        t = vmm.KVTensor(1, 1000, 4096, device=DEVICE, pool=vmm.Pool("64MiB", device=DEVICE))
        t.append(torch.ones(1, 500, 4096, device=DEVICE))
        if t.is_cuda:
            torch.cuda._sleep(500_000_000)
        t[:, :500].add_(1)
        del t
        print("done")
    """)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
