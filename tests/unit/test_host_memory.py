"""Which cgroup limits bind this process."""

import pytest

from vmm import host_memory

V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """A /sys/fs/cgroup of our own: limit(folder, names, limit, used), own(/proc/self/cgroup's lines)."""
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\n")

    class Cgroups:
        @staticmethod
        def own(*lines):
            (tmp_path / "own").write_text("".join(f"{line}\n" for line in lines))

        @staticmethod
        def limit(folder, names, limit, used):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, (limit, used), strict=True):
                (tmp_path / folder / name).write_text(f"{value}\n")

    return Cgroups


def left():
    return [limit.left_bytes for limit in host_memory.cgroup_limits()]


def test_without_cgroups_the_machine_decides(cgroups):
    assert left() == []
    assert host_memory.machine_memory() == (2000 * 1024, 1000 * 1024)
    assert host_memory.available_bytes() == 1000 * 1024


def test_a_limit_around_the_own_cgroup_binds_too(cgroups):
    cgroups.own("0::/slice/job")
    cgroups.limit("slice", V2, 5000, 4000)
    cgroups.limit("slice/job", V2, 9000, 100)
    cgroups.limit("slice/other", V2, 10, 0)
    assert left() == [8900, 1000]
    assert host_memory.available_bytes() == 1000


def test_no_limit_is_none(cgroups):
    cgroups.own("4:memory:/job", "0::/job")
    cgroups.limit("job", V2, "max", 4000)
    cgroups.limit("memory/job", V1, 9223372036854771712, 4000)
    assert left() == []


def test_version_1_has_a_path_of_its_own(cgroups):
    cgroups.own("5:cpu,memory:/job", "0::/")
    cgroups.limit("memory/job", V1, 700, 200)
    assert left() == [500]


def test_a_container_told_the_path_on_its_host(cgroups):
    cgroups.own("0::/docker/1234")
    cgroups.limit(".", V2, 300, 400)
    assert left() == [-100]
    assert host_memory.available_bytes() == 0
