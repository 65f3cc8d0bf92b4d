"""Ends of processes: fork, exit and Ctrl-C, each in a child of its own."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from child import run_child

MAKE = """
import ctypes, os, sys, vmm
from vmm import _core
pool = vmm.Pool("8MiB")
lease = pool._core.reserve(page_bytes=65536, extent_bytes=1 << 20, extents=1)
growth = _core.Growth(pool._core, [(lease, 0, 1, 256)])
growth.advance(300)
ctypes.memset(lease.address, 7, 1000)
"""


def test_a_forked_child_is_told_and_harms_nobody():
    result = run_child(
        MAKE
        + textwrap.dedent("""
        import time
        time.sleep(0.1)  # the pager is asleep now, on a condition variable that the child must not touch
        child = os.fork()
        if child == 0:
            refused = 0
            for use in (pool.stats, pool.check, pool.trim, pool.close, lambda: growth.advance(2000),
                        lambda: pool._core.reserve(page_bytes=65536, extent_bytes=65536, extents=1),
                        lambda: lease.map([(0, 16)]), lambda: growth.truncate(1), lambda: lease.mapped_bytes,
                        lambda: lease.unkeep([(0, 1)]), lambda: growth.missing(400),
                        lambda: lease.missing([(0, 1)]), lambda: setattr(pool, "budget_bytes", "1MiB")):
                try:
                    use()
                except vmm.Forked as error:
                    refused += "before fork()" in str(error)
            repr(pool)
            fresh = vmm.default_pool()
            fresh._core.reserve(page_bytes=65536, extent_bytes=65536, extents=1).map([(0, 1)])
            del growth, lease, pool  # the parent's memory must survive this
            sys.exit(refused)
        _, status = os.waitpid(child, 0)
        growth.advance(2000)
        pool.check()
        print(os.waitstatus_to_exitcode(status), ctypes.string_at(lease.address + 999, 1), flush=True)
        """)
    )
    assert result.stdout == "13 b'\\x07'\n", result.stdout + result.stderr
    assert result.returncode == 0, result.stderr


def test_exit_with_live_tensors_and_a_running_pager():
    result = run_child(
        MAKE
        + textwrap.dedent("""
        import torch
        keep = torch.from_dlpack(
            lease.dlpack(offset_bytes=0, shape=(100,), strides=(1,), type_code=2, type_bits=32))
        vmm.keep_until_the_very_end = (keep, pool, growth)
        growth.advance(4096)
        print("done")
        """)
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_exit_by_exception_while_mapping():
    result = run_child(
        MAKE
        + textwrap.dedent("""
        import threading
        other = pool._core.reserve(page_bytes=65536, extent_bytes=1 << 22, extents=1)
        def churn():
            while True:
                other.map([(0, 60)])
                other.retire([(0, 60)])
        threading.Thread(target=churn, daemon=True).start()
        raise SystemExit(3)
        """)
    )
    assert result.returncode == 3, result.stderr


def test_ctrl_c_reaches_the_main_thread():
    code = MAKE + textwrap.dedent("""
        import time
        try:
            print("ready", flush=True)
            while True:
                growth.truncate(1); growth.advance(4000)
        except KeyboardInterrupt:
            pool.check()
            print("interrupted", flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "interrupted\n")


def test_importing_vmm_imports_neither_torch_nor_transformers():
    result = run_child(
        "import sys, vmm, vmm.cli; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    assert result.stdout == "set()\n", result.stderr


def test_a_process_at_its_mapping_limit_hears_of_it():
    """Fills the process's mappings with its own, then asks the driver for one page too many."""
    result = run_child("""
        import mmap, vmm
        from vmm import _core
        driver = _core.HostDriver("limit")
        limit = int(open("/proc/sys/vm/max_map_count").read())
        if limit > 300_000:
            print("MappingLimit skipped: the limit is too far"); raise SystemExit
        page = 4096
        arena = driver.reserve(2 * limit * page, page)
        try:
            for i in range(limit):  # every other page, so that no two merge
                entry = (arena + 2 * i * page, driver.create(page, 2 * i * page), page)
                driver.map([entry])
        except vmm.MappingLimit as error:
            print("MappingLimit", "max_map_count" in str(error))
        driver.unmap([(arena, 0, page)])
    """)
    assert result.stdout.startswith("MappingLimit"), result.stdout + result.stderr


def test_what_limits_the_mappings_is_named():
    """By the driver, and by the caches that are refused beforehand."""
    result = run_child("""
        import os
        import torch, transformers, vmm
        from vmm.integrations.transformers import VmmCache

        os.environ["VMM_MAX_MAPPINGS"] = str(sum(1 for _ in open("/proc/self/maps")) + 300)
        pool = vmm.Pool("64MiB")
        config = transformers.LlamaConfig(hidden_size=128, num_hidden_layers=8, num_attention_heads=4)
        lease = pool._core.reserve(page_bytes=4096, extent_bytes=8192, extents=1000)
        for make in (
            lambda: lease.map([(2 * i, 1) for i in range(1000)]),
            lambda: vmm.KVCache(1, 1, 64, max_tokens=64, max_sequences=2**20 // 64, pool=pool),
            lambda: VmmCache(config, pool=pool).update(*[torch.ones(2000, 4, 1, 32)] * 2, 0),
        ):
            try:
                make()
            except (vmm.MappingLimit, vmm.InvalidArgument) as error:
                print(type(error).__name__, "VMM_MAX_MAPPINGS" in str(error), "vm.max" in str(error))
    """)
    assert result.stdout.splitlines() == [
        "MappingLimit True False",
        "InvalidArgument True False",
        "InvalidArgument True False",
    ], result.stdout + result.stderr


@pytest.mark.parametrize("limit", ["abc", "0", "12GiB", "1e5"])
def test_a_limit_that_is_no_number_is_refused(limit):
    result = run_child(
        """
        import vmm
        for _ in range(2):
            try:
                vmm.Pool("1MiB")
            except vmm.InvalidArgument as error:
                print(error)
        """,
        environment={**os.environ, "VMM_MAX_MAPPINGS": limit},
    )
    expected = f"VMM_MAX_MAPPINGS is '{limit}'; expected a whole number of memory mappings, 1 or more"
    assert result.stdout.splitlines() == [expected] * 2, result.stderr
