"""Ranges and their blocks from Python: what crosses, what is refused, and what a closed one does."""

import copy
import ctypes
import gc
import pickle
import threading
import time
from array import array

import numpy as np
import pytest
import torch

import vmm
from child import run_child

PAGE = 65536


@pytest.fixture
def made(pool):
    with pool.range(64 * PAGE) as made:
        yield made


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_blocks_get_memory_and_give_it_back(pool, made):
    blocks = made.blocks([0, 32 * PAGE], stride=PAGE // 2, count=64)
    blocks.keep([0, 1, 5])
    assert made.mapped_bytes == 4 * PAGE
    assert pool.stats().kept_bytes == 4 * PAGE
    assert blocks.kept_blocks == 3
    tensor = made.tensor(torch.float32)
    assert tensor.shape == (16 * PAGE,)
    assert tensor.data_ptr() == made.address
    assert tensor[: PAGE // 4].count_nonzero() == 0
    tensor[: PAGE // 8] = 1.5
    tensor[8 * PAGE : 8 * PAGE + 4] = 2.5
    assert ctypes.c_float.from_address(made.address + 32 * PAGE).value == 2.5
    blocks.drop([0, 1, 5])
    assert pool.stats().kept_bytes == 0
    assert made.mapped_bytes == 4 * PAGE
    blocks.keep([0])
    assert tensor[0] == 1.5
    blocks.drop([0], unmap=True)
    until(lambda: made.mapped_bytes == 2 * PAGE)
    blocks.keep([0])
    assert tensor[0] == 0


@pytest.mark.parametrize(
    "ids",
    [
        [3, 9],
        (3, 9),
        range(3, 10, 6),
        array("i", [3, 9]),
        memoryview(array("i", [3, 9])),
        np.array([3, 9], dtype=np.int32),
        [np.int64(3), np.int32(9)],
        torch.tensor([3, 9], dtype=torch.int32).numpy(),
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_ids_come_as_arrays_or_lists(made, ids):
    blocks = made.blocks([0], stride=PAGE, count=10)
    assert blocks.ready(ids) == b"\0\0"
    blocks.announce(ids)
    until(lambda: blocks.ready(ids) == b"\1\1")
    assert blocks.announced_blocks == 2
    assert blocks.keep_ready(ids) == [3, 9]
    blocks.keep(ids)
    assert (blocks.kept_blocks, blocks.announced_blocks) == (2, 0)
    blocks.drop(ids)
    assert blocks.kept_blocks == 0


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (3, "a int"),
        (None, "a NoneType"),
        ({3}, "a set"),
        ("3", "a str"),
        (b"\0\0\0\0", "format 'B'"),
        (np.array([3], dtype=np.int64), "format 'l'"),
        (np.array([3], dtype=np.uint32), "format 'I'"),
        (np.array([3.0], dtype=np.float32), "format 'f'"),
        (np.array([3], dtype=">i4"), "format '>i'"),
        (np.arange(8, dtype=np.int32)[::2], "not contiguous"),
        (torch.tensor([3], dtype=torch.int32), "a Tensor"),
        ([3.0], "3.0"),
        ([True], "True"),
        ([2**31], "2147483648"),
        ([2**70], str(2**70)),
    ],
)
def test_other_ids_are_refused(made, ids, found):
    blocks = made.blocks([0], stride=PAGE, count=10)
    for method in (blocks.keep, blocks.keep_ready, blocks.announce, blocks.drop, blocks.ready):
        with pytest.raises(vmm.InvalidArgument, match=r"^ids: found ") as caught:
            method(ids)
        assert found in str(caught.value)
    with pytest.raises(vmm.InvalidArgument, match=r"ids\[1\] is 10; expected 0 to 9"):
        blocks.keep([3, 10])
    assert blocks.kept_blocks == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([], PAGE, 1), "starts"),
        ((7, PAGE, 1), "starts"),
        (([0.0], PAGE, 1), r"starts\[0\]"),
        (([0, -1], PAGE, 1), r"starts\[1\]"),
        (([0, 64 * PAGE], PAGE, 1), r"starts\[1\]"),
        (([0], 0, 1), "stride"),
        (([0], PAGE, 65), "stride"),
        (([0], 2**62, 2**31 - 1), "stride"),
        (([0], PAGE, 0), "count"),
        (([0], PAGE, True), "count"),
        (([0], 1, 2**31), "count"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(made, arguments, named):
    with pytest.raises(vmm.InvalidArgument, match=rf"^{named}"):
        made.blocks(*arguments)


@pytest.mark.parametrize(("size", "page_bytes"), [(0, None), ("much", None), ("1TB", 3000), (2**61, None)])
def test_ranges_that_cannot_be_are_refused(pool, size, page_bytes):
    with pytest.raises(vmm.InvalidArgument):
        pool.range(size, page_bytes)


def test_a_size_is_rounded_up_to_pages(pool):
    with pool.range("100KB", zeroed=False) as made:
        assert (made.size_bytes, made.page_bytes) == (2 * PAGE, PAGE)
        assert "131072 bytes" in repr(made)
    assert repr(made) == "<vmm.Range closed>"


def test_a_tensor_of_a_range_is_not_copied_by_mistake(made):
    tensor = made.tensor(torch.bfloat16)
    assert tensor.dtype == torch.bfloat16
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(vmm.InvalidArgument, match="not mapped"):
            copied(tensor)
    with pytest.raises(vmm.InvalidArgument, match="dtype"):
        made.tensor("int8")


def test_to_keep_too_much_raises_and_changes_nothing(pool):
    with pool.range("1GiB") as made:
        blocks = made.blocks([0], stride=PAGE, count=2**14)
        blocks.keep([0])
        with pytest.raises(vmm.OutOfPages) as caught:
            blocks.keep(range(2048))
        assert caught.value.asked > caught.value.free
        assert blocks.kept_blocks == 1
        assert pool.stats().kept_bytes == PAGE


def test_what_is_dropped_waits_for_the_work_on_it(pool, made):
    blocks = made.blocks([0], stride=PAGE, count=64)
    blocks.keep([0, 1])
    shown = made.tensor()
    with vmm.Stream(pool) as stream:
        for _ in range(20):
            stream.copy(shown[:PAGE], shown[PAGE : 2 * PAGE])
        blocks.drop([0, 1], stream=stream, unmap=True)
        stream.synchronize()
    until(lambda: made.mapped_bytes == 0)
    with pytest.raises(vmm.InvalidArgument, match="stream"):
        blocks.drop([0], stream="no stream")


def test_a_warm_up_writes_into_one_page(pool, made):
    blocks = made.blocks([0, 32 * PAGE], stride=PAGE // 2, count=64)
    blocks.keep([0])
    shown = made.tensor()
    shown[: PAGE // 2] = 3
    with blocks.scratch(range(64)):
        shown[PAGE : 32 * PAGE] = 7
        assert (shown[33 * PAGE :] == 7).all()
        with pytest.raises(vmm.InvalidArgument, match="end the scratch first"):
            blocks.keep([2])
        assert pool.stats().created_bytes <= 2**20 * 2
    assert made.mapped_bytes == 2 * PAGE
    assert (shown[: PAGE // 2] == 3).all()
    blocks.keep([2])
    assert (shown[PAGE : PAGE + PAGE // 2] == 0).all()


def test_a_closed_range_says_so(pool):
    made = pool.range(8 * PAGE)
    blocks = made.blocks([0], stride=PAGE, count=8)
    blocks.keep([1])
    tensor = made.tensor()
    made.close()
    made.close()
    until(lambda: pool.stats().mapped_bytes == 0)
    for call in (blocks.keep, blocks.keep_ready, blocks.announce, blocks.drop, blocks.ready):
        with pytest.raises(vmm.Closed, match="this range is closed"):
            call([1])
    with pytest.raises(vmm.Closed, match="this range is closed"):
        made.tensor()
    with pytest.raises(vmm.Closed, match="this range is closed"):
        made.blocks([0], 1, 1)
    assert (blocks.kept_blocks, blocks.announced_blocks) == (0, 0)
    del tensor, blocks, made
    gc.collect()
    assert pool.stats().reservations_leased == 0


def test_a_closed_pool_says_so():
    pool = vmm.Pool("8MiB")
    made = pool.range(8 * PAGE)
    blocks = made.blocks([0], stride=PAGE, count=8)
    blocks.keep([1])
    pool.close()
    with pytest.raises(vmm.Closed):
        blocks.keep([2])
    with pytest.raises(vmm.Closed):
        pool.range(PAGE)
    assert blocks.kept_blocks == 1
    blocks.drop([1])
    assert pool.stats().created_bytes == 0


def test_threads_may_use_the_same_blocks(pool, made):
    blocks = made.blocks([0, 5 * PAGE + 100, 32 * PAGE], stride=PAGE // 3, count=80)
    failed = []

    def work(seed):
        random = np.random.default_rng(seed)
        try:
            for _ in range(150):
                ids = random.integers(0, 80, 5, dtype=np.int32)
                blocks.announce(ids)
                blocks.keep(ids)
                blocks.ready(ids)
                blocks.drop(ids, unmap=bool(random.integers(2)))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    blocks.drop(range(80))
    assert (blocks.kept_blocks, blocks.announced_blocks) == (0, 0)
    assert pool.stats().kept_bytes == 0
    pool.check()


def test_a_forked_child_is_told():
    result = run_child(
        """
        import os, vmm
        pool = vmm.Pool("8MiB")
        made = pool.range("1MiB")
        blocks = made.blocks([0], 65536, 16)
        blocks.keep([1])
        tensor = made.tensor()
        if (child := os.fork()) == 0:
            for call in (lambda: blocks.keep([1]), lambda: blocks.announce([2]), lambda: blocks.drop([1]),
                         lambda: blocks.ready([1]), lambda: made.blocks([0], 1, 1), made.close):
                try:
                    call()
                except vmm.Forked:
                    pass
                else:
                    os._exit(3)
            del blocks, tensor, made, call
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        blocks.keep([2])
        print("told")
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "told\n"


def test_nothing_of_it_needs_torch():
    result = run_child(
        """
        import sys, vmm
        with vmm.Pool("8MiB") as pool, pool.range("1MiB") as made:
            blocks = made.blocks([0], 65536, 16)
            blocks.keep([1])
            blocks.drop([1])
        print("torch" in sys.modules)
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"
