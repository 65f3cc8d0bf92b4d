"""Disks that are full or fail while a cache is saved, or read again."""

import errno
import os
import resource

import pytest
from saved_cache import ids, intact, written

from vmm import InvalidArgument, KVCache, OutOfPages, Pool
from vmm.kv_cache import saved_file


def test_a_file_is_replaced_as_a_whole_or_not_at_all(cache, saved):
    before = saved.read_bytes()
    with pytest.raises(OutOfPages), Pool("64KiB") as pool:
        KVCache.restore(saved, pool=pool, model="tiny")
    idle = written(cache, ids(20_000, 900), 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # a disk that is full
    try:
        with pytest.raises(OSError, match="large"):
            cache.save(saved, {"idle": idle})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]
    report = cache.save(saved, {"idle": idle})
    assert saved.stat().st_size == report.bytes
    assert saved.stat().st_mode & 0o777 == 0o600


class FailingFile:
    """A file of which one call fails, as on a disk that fails."""

    def __init__(self, file, fails):
        self._file, self._fails = file, fails

    def __getattr__(self, name):
        attribute = getattr(self._file, name)
        if name not in {"write", "flush", "read", "seek", "tell"}:
            return attribute

        def call(*arguments):
            self._fails(name)
            return attribute(*arguments)

        return call


class Nth:
    """Fails the n-th time, and counts."""

    def __init__(self, n):
        self.n, self.calls = n, 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.n:
            raise OSError(errno.EIO, "Input/output error")


def with_failing_calls(monkeypatch, fails):
    """The n-th call fails of those that touch the disk."""

    def opened(*arguments):
        return FailingFile(open(*arguments), fails)

    monkeypatch.setattr(saved_file, "open", opened, raising=False)
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(saved_file.os, name, lambda *given, real=real: (fails(), real(*given)))


def test_whatever_call_fails_the_older_file_is_whole_or_the_newer_one(cache, saved, monkeypatch):
    before = saved.read_bytes()
    idle = written(cache, ids(30_000, 300), 3)
    failed = 0
    for n in range(1, 1000):
        saved.write_bytes(before)
        fails, error = Nth(n), None
        with monkeypatch.context() as patch:
            with_failing_calls(patch, fails)
            try:
                cache.save(saved, {"idle": idle})
            except OSError as raised:
                error = raised
        assert [each.name for each in saved.parent.iterdir()] == [saved.name]
        if error is None or saved.read_bytes() != before:  # zipfile does without what it can do without
            again, by_name = KVCache.restore(saved, budget="1MiB")
            assert intact(by_name["idle"], 3)
            again.close()
        failed += error is not None
        if fails.calls < n:
            break
    assert fails.calls < n
    assert failed > 20


def test_a_file_that_cannot_be_read_makes_nothing(saved, monkeypatch):
    refused = 0
    with Pool("1MiB") as pool:
        for n in range(1, 1000):
            fails = Nth(n)
            with monkeypatch.context() as patch:
                with_failing_calls(patch, fails)
                try:
                    again, by_name = KVCache.restore(saved, pool=pool, model="tiny")
                except (OSError, InvalidArgument):  # zipfile may say that there is no archive
                    refused += 1
                    continue
            assert intact(by_name["idle"], 1)
            again.close()
            if fails.calls < n:
                break
    assert fails.calls < n
    assert refused > 10
