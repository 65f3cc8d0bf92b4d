"""Pools that share a budget with other processes: arguments, figures, files, forks."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vmm
from child import run_child

MIB = 2**20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(tmp_path))
    return tmp_path


def test_a_pool_alone_in_its_share_is_as_any_pool():
    with vmm.Pool("64MiB", share="a", minimum="8MiB", priority=3) as pool:
        stats = pool.stats()
        assert stats.budget_bytes == pool.budget_bytes == 64 * MIB
        assert stats.granted_bytes == 8 * MIB
        assert stats.wanted_bytes == stats.pressure_bytes == pool.pressure_bytes == 0
        assert pool.warm("64MiB") == 64 * MIB
        assert pool.stats().granted_bytes == 64 * MIB
        pool.check()


def test_without_a_share_all_of_the_budget_is_granted():
    with vmm.Pool("64MiB") as pool:
        stats = pool.stats()
        assert (stats.granted_bytes, stats.wanted_bytes, stats.pressure_bytes) == (64 * MIB, 0, 0)
        assert pool.pressure_bytes == 0
        with pytest.raises(vmm.InvalidArgument, match="has no share"):
            pool.await_pressure(0)


def test_leases_say_who_has_what():
    assert vmm.leases() == vmm.leases("a") == []
    with vmm.Pool("64MiB", share="a", minimum="8MiB", priority=-3) as pool, vmm.Pool("32MiB", share="b"):
        pool.warm("16MiB")
        mine, other = vmm.leases()
        assert (mine.share, other.share) == ("a", "b")
        assert mine.pid == os.getpid()
        assert mine.command == Path("/proc/self/comm").read_text().strip()
        assert (mine.minimum, mine.maximum, mine.priority) == (8 * MIB, 64 * MIB, -3)
        assert (mine.grant, mine.wanted, mine.asked) == (16 * MIB, 0, 0)
        assert vmm.leases("b") == [other]
    assert vmm.leases() == []


def test_pools_of_one_process_have_one_part():
    with vmm.Pool("64MiB", share="a") as one, vmm.Pool("64MiB", share="a") as other:
        assert len(vmm.leases("a")) == 1
        one.warm("48MiB")
        assert other.warm("32MiB") == 16 * MIB
        with pytest.raises(vmm.InvalidArgument, match="already"):
            vmm.Pool("32MiB", share="a")
    with vmm.Pool("32MiB", share="a"):  # nobody is in it any more
        pass


def test_a_pool_leaves_its_share_when_its_memory_is_given_back(folder):
    pool = vmm.Pool("64MiB", share="a")
    tensor = vmm.KVTensor(4, 1024, pool=pool)
    tensor[:] = 1
    pool.close()
    assert len(vmm.leases("a")) == 1
    del tensor
    for _ in range(200):
        if not vmm.leases("a"):
            break
        threading.Event().wait(0.02)
    assert vmm.leases("a") == []
    assert not list(folder.iterdir())


def test_a_changed_budget_is_in_the_table():
    with vmm.Pool("64MiB", share="a", minimum="8MiB") as pool:
        pool.budget_bytes = "32MiB"
        assert vmm.leases("a")[0].maximum == pool.budget_bytes == 32 * MIB
        with pytest.raises(vmm.InvalidArgument, match="minimum"):
            pool.budget_bytes = "4MiB"
        assert pool.budget_bytes == 32 * MIB
        pool.warm("32MiB")
        pool.budget_bytes = "16MiB"  # 16 MiB lie free, and are given back
        for _ in range(200):
            if pool.stats().created_bytes <= 16 * MIB:
                break
            threading.Event().wait(0.02)
        assert pool.stats().created_bytes <= 16 * MIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": "a/b"}, "share"),
        ({"share": ""}, "share"),
        ({"share": ".."}, "share"),
        ({"share": "x" * 65}, "share"),
        ({"share": 7}, "share"),
        ({"share": "a", "minimum": "65MiB"}, "minimum"),
        ({"share": "a", "minimum": -1}, "minimum"),
        ({"share": "a", "minimum": False}, "minimum"),
        ({"share": "a", "priority": 1001}, "priority"),
        ({"share": "a", "priority": 0.5}, "priority"),
        ({"minimum": "1MiB"}, "minimum"),
        ({"priority": 1}, "priority"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_made(folder, arguments, message):
    with pytest.raises(vmm.InvalidArgument, match=f"^{message} is"):
        vmm.Pool("64MiB", **arguments)
    assert not list(folder.iterdir())


def test_a_share_that_cannot_be_written_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", str(folder / "none"))
    with pytest.raises(vmm.DriverError, match="No such file"):
        vmm.Pool("64MiB", share="a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_share_is_refused(folder):
    with vmm.Pool("64MiB", share="a"):
        (file,) = folder.iterdir()
    file.write_bytes(b"")
    os.chown(file, 12345, -1)
    with pytest.raises(vmm.InvalidArgument, match=f"{file.name}.*user"):
        vmm.Pool("64MiB", share="a")
    assert file.stat().st_size == 0


def test_a_share_needs_a_directory_that_can_be_written(monkeypatch):
    monkeypatch.setenv("VMM_SHARE_DIR", "/sys")  # read-only, also for root
    with pytest.raises(vmm.DriverError, match="/sys/vmm-share-a"):
        vmm.Pool("64MiB", share="a")


def test_noise_is_replaced_with_a_warning_or_refused(folder, caplog):
    path = folder / "vmm-share-a"
    path.write_bytes(b"noise")
    assert vmm.leases() == []
    with pytest.raises(vmm.InvalidArgument, match="vmm-share-a"):
        vmm.leases("a")
    with vmm.Pool("64MiB", share="a") as pool:
        pool.stats()
        assert "replaced" in caplog.text
        path.write_bytes(b"noise")
        child = run_child("import vmm; vmm.Pool('64MiB', share='a')")
        assert child.returncode != 0
        assert "delete the file" in child.stderr


@pytest.mark.host_only
def test_failing_to_make_a_pool_leaves_the_share(folder):
    with pytest.raises(vmm.Error):
        vmm.Pool("64MiB", share="a", device="cuda:63")
    assert vmm.leases("a") == []


def test_await_pressure_ends_when_the_pool_is_closed():
    pool = vmm.Pool("64MiB", share="a")
    assert pool.await_pressure(0.01) == 0
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(pool.await_pressure(60)))
    waiting.start()
    pool.close()
    waiting.join(10)
    assert answers == [0]
    with pytest.raises(vmm.InvalidArgument, match="timeout_s"):
        pool.await_pressure(-1)


def test_a_forked_child_has_no_part_and_can_take_its_own():
    child = run_child(
        """
        import os, vmm
        parent = vmm.Pool('64MiB', share='a')
        parent.warm('8MiB')
        pid = os.fork()
        if pid == 0:
            try:
                parent.pressure_bytes
            except vmm.Forked:
                with vmm.Pool('64MiB', share='a') as own:
                    own.warm('8MiB')
                    os._exit(len(vmm.leases('a')))
            os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert len(vmm.leases('a')) == 1
        """
    )
    assert child.returncode == 0, child.stderr


def vmm_leases(*arguments):
    command = [sys.executable, "-m", "vmm", "leases", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_shows_the_table():
    assert "No process" in vmm_leases().stdout
    with vmm.Pool("64MiB", share="a", minimum="8MiB"):
        shown = vmm_leases("a").stdout
        assert str(os.getpid()) in shown
        assert "64.0 MiB" in shown
        (lease,) = json.loads(vmm_leases("--json").stdout)
        assert lease["minimum"] == 8 * MIB
        assert lease["share"] == "a"
    bad = vmm_leases("a/b")
    assert bad.returncode == 1
    assert "share is 'a/b'" in bad.stderr
