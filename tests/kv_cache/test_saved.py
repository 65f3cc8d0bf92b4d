"""Caches that are written to a file and made again from it."""

import errno
import fcntl
import json
import os
import resource
import zipfile

import pytest
import torch
from cuda_standin import ON_CUDA

from vmm import Closed, InvalidArgument, KVCache, OutOfPages, Pool
from vmm.kv_cache import saved_file
from vmm.testing import settle

SHAPE = {"layers": 2, "kv_heads": 2, "head_dim": 16, "dtype": torch.float32}
SIZES = {"max_tokens": 2000, "max_sequences": 8}
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4


def written(cache, tokens, number, salt=None, commit=True):
    """An open sequence with these tokens, whose K and V tell which they are."""
    sequence = cache.open(tokens=tokens, salt=salt)
    had = sequence.length
    for length in (max(had, len(tokens) - 3), len(tokens)):
        cache.step({sequence: length})
    for layer in range(len(cache._shapes)):
        for which, kv in enumerate(sequence.kv(layer)):
            first = sequence.length - len(kv)
            new = max(had - first, 0)
            kv[new:] = expected(number, layer, which, kv, first)[new:]
    if commit:
        sequence.commit(tokens[had:])
    return sequence


def expected(number, layer, which, kv, first):
    """What `written` has left in ``kv``, which begins at token ``first``."""
    row = torch.arange(first, first + len(kv)) % 100 + 1000 * number + 200 * layer + 100 * which
    return row.to(kv.dtype)[:, None, None].expand_as(kv)


def intact(sequence, number, length=None):
    """Whether the first tokens, as far as windows reach, are as `written` has left them."""
    length = sequence.length if length is None else length
    for layer in range(len(sequence.cache._shapes)):
        for which, kv in enumerate(sequence.kv(layer)):
            first = sequence.length - len(kv)
            rows = expected(number, layer, which, kv, first)
            if not torch.equal(kv[: length - first], rows[: length - first]):
                return False
    return True


def ids(start, count):
    return list(range(start, start + count))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.vmm"


@pytest.fixture
def cache():
    with Pool("2MiB", host="16MiB") as pool, KVCache(**SHAPE, **SIZES, pool=pool) as made:
        yield made


@pytest.fixture
def saved(cache, path):
    """A file with the sequence ``idle``, which has 300 tokens, and one that nobody named, of 40."""
    idle = written(cache, ids(0, 300), 1)
    other = written(cache, ids(5000, 40), 2)
    cache.save(path, {"idle": idle, "other": other}, model="tiny")
    return path


def test_more_than_the_device_holds_comes_back_whole(cache, path):
    sequences = []
    for number in range(6):  # 3 MB
        sequences.append(written(cache, ids(10_000 * number, 1000), number))
        sequences[-1].park(category="human")
    cache.end()
    report = cache.save(path)
    assert (report.sequences, report.prefixes, report.tokens) == (6, 0, 6000)
    assert report.bytes == path.stat().st_size > 6000 * TOKEN_BYTES
    assert not report.lost
    assert cache.pool.stats().tiers.parked_sequences == 6
    with Pool("2MiB", host="16MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool)
        assert pool.stats().tiers.parked_sequences == 6
        for number, sequence in enumerate(sequences):
            back = by_name[str(sequence.slot)]
            again.step({back: 1001})
            assert intact(back, number, 1000)
            back.park()
        pool.check()
        again.close()
    for number, sequence in enumerate(sequences):
        cache.step({sequence: 1001})
        assert intact(sequence, number, 1000)
        sequence.park()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["token-major", "head-major"])
def test_another_layout_and_page_size_have_the_same_tokens(path, dtype, layout):
    shape = {**SHAPE, "dtype": dtype, "kv_heads": [1, 3], "head_dim": [8, 24]}
    other = {"token-major": "head-major", "head-major": "token-major"}[layout]
    with Pool("4MiB") as pool, KVCache(**shape, **SIZES, pool=pool, layout=layout) as cache:
        sequences = {str(n): written(cache, ids(1000 * n, 257 + n), 0) for n in range(3)}
        cache.save(path, sequences)
    with Pool("4MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool, layout=other, page_bytes=65536, max_tokens=700)
        assert list(by_name) == ["0", "1", "2"]
        for n, sequence in enumerate(by_name.values()):
            assert sequence.length == 257 + n
            assert intact(sequence, 0)
        again.close()


def test_a_window_comes_back_as_far_as_it_reaches(path):
    shape = {**SHAPE, "window": [None, 64]}
    with Pool("4MiB", host="4MiB") as pool, KVCache(**shape, **SIZES, pool=pool) as cache:
        idle, running = written(cache, ids(0, 1500), 1), written(cache, ids(3000, 30), 2)
        idle.park()
        cache.end()
        cache.save(path, {"idle": idle, "running": running})
    with Pool("4MiB", host="4MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool, window=[0, 64])
        idle, running = by_name.values()
        assert idle.cache is again
        assert pool.stats().tiers.parked_sequences == 1
        assert intact(running, 2)
        again.step({idle: 1501})
        assert len(idle.kv(1)[0]) in (64, 64 + 256)  # with a tile on a GPU
        assert intact(idle, 1, 1500)
        again.close()


def test_what_closed_sequences_left_is_found_again(cache, path):
    for number, salt in enumerate([None, "a", "b"]):
        written(cache, ids(0, 400 + number), number, salt=salt).close()
    cache.end()
    report = cache.save(path)
    assert (report.sequences, report.prefixes, report.tokens) == (0, 3, 3 * 400)
    assert cache.stats().cached_sequences == 3
    with Pool("2MiB", host="16MiB") as pool:
        again, by_name = KVCache.restore(path, pool=pool)
        assert by_name == {}
        for number, salt in enumerate([None, "a", "b"]):
            sequence = again.open(tokens=ids(0, 410), salt=salt)
            assert sequence.cached_tokens == 400
            again.step({sequence: 410})
            assert intact(sequence, number, 400)
        assert again.open(tokens=ids(0, 410), salt="c").cached_tokens == 0
        again.close()


@pytest.mark.parametrize(
    ("tiers", "sizes", "found"),
    [
        ({}, {}, 2),  # as many as the device holds, beside what lies ready for others
        ({"host": "1280KiB", "write_through": True}, {}, 4),  # the tier holds the sequence, and three
        ({"host": "16MiB", "write_through": True}, {"max_sequences": 4}, 3),  # as many as slots are left
        ({"host": "16MiB", "write_through": True}, {}, 8),
    ],
)
def test_of_prefixes_that_do_not_fit_the_newest_are_kept(path, tiers, sizes, found):
    shape = {"layers": 1, "kv_heads": 2, "head_dim": 64, "max_tokens": 700}  # 320 KiB are 640 tokens
    with Pool("8MiB") as pool, KVCache(**shape, max_sequences=12, pool=pool) as cache:
        for number in range(8):
            written(cache, ids(1000 * number, 640), number).close()
        idle = written(cache, ids(50_000, 640), 9)
        cache.end()
        assert cache.save(path, {"idle": idle}).prefixes == 8
    with Pool("1536KiB", **tiers) as pool:
        again, by_name = KVCache.restore(path, pool=pool, layout="token-major", **sizes)
        if tiers:  # what nobody is in is not kept until it is copied
            settle(pool)
        assert intact(by_name["idle"], 9)
        kept = []
        for number in reversed(range(8)):
            sequence = again.open(tokens=ids(1000 * number, 641), announce=0)
            if sequence.cached_tokens == 640:
                kept.append(number)
                again.step({sequence: 640})
                assert intact(sequence, number)
            sequence.close()
            again.end()
        assert kept[:found] == list(range(7, 7 - found, -1))
        again.close()


def test_what_begins_alike_is_in_the_file_once_and_shares_memory_again(cache, path):
    first = written(cache, ids(0, 1024), 1)
    for sequence in first.fork(3):
        sequence.park()
    first.park()
    cache.end()
    report = cache.save(path)
    assert report.tokens == 4 * 1024
    assert report.bytes < 1.1 * 1024 * TOKEN_BYTES
    # What was parked shares copies, and what runs memory: each has eight pages, and needs one to go on.
    for budget, tiers in ((40 * 65536, {"host": "2MiB"}), (20 * 65536, {})):
        with Pool(budget, **tiers) as pool:
            again, by_name = KVCache.restore(path, pool=pool, layout="token-major", layers_per_extent=2)
            again.step(dict.fromkeys(by_name.values(), 1025))
            assert all(intact(sequence, 1, 1024) for sequence in by_name.values())
            again.close()


def test_without_tiers_what_was_parked_is_open(cache, path):
    idle = written(cache, ids(0, 300), 1)
    idle.park()
    cache.end()
    cache.save(path, {"idle": idle})
    again, by_name = KVCache.restore(path, budget="1MiB", layers=2, kv_heads=2, head_dim=[16, 16])
    assert intact(by_name["idle"], 1)
    again.step({by_name["idle"]: 301})
    again.close()


@pytest.mark.skipif(ON_CUDA, reason="finds the file of the host driver's process")
@pytest.mark.parametrize("window", [None, 64])
def test_a_lost_copy_is_reported_and_the_rest_is_saved(tmp_path, path, window):
    with Pool("1MiB", nvme=f"{tmp_path}:16MiB") as pool:
        cache = KVCache(**SHAPE, **SIZES, window=[None, window], pool=pool)
        idle = written(cache, ids(0, 600), 1)
        idle.park()
        cache.end()
        written(cache, ids(3000, 1700), 2, commit=False).close()
        cache.end()
        assert not idle.ready
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        [file] = [each for each in files if os.path.realpath(each).startswith(str(tmp_path))]
        with open(file, "r+b") as bytes_of_it:
            bytes_of_it.seek(2 * cache._page_bytes)
            bytes_of_it.write(b"\0" * cache._page_bytes)
            os.fsync(bytes_of_it.fileno())
        report = cache.save(path, {"idle": idle})
        assert report.lost["idle"] == 600 - report.tokens > 0
        assert idle.length == 600  # whoever steps it hears of it
        cache.close()
    again, by_name = KVCache.restore(path, budget="1MiB")
    assert by_name["idle"].length == report.tokens
    assert intact(by_name["idle"], 1)
    again.close()


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


def test_a_torn_file_is_refused(saved):
    whole = saved.read_bytes()
    for length in [0, 1, 3, 4, 100, len(whole) // 2, *range(len(whole) - 40, len(whole))]:
        saved.write_bytes(whole[:length])
        with pytest.raises(InvalidArgument, match=r"path is .*(missing or damaged|not a saved cache)"):
            KVCache.restore(saved, budget="1MiB", model="tiny")


def test_a_byte_that_changed_is_noticed_where_it_matters(saved):
    whole = saved.read_bytes()
    refused = 0
    places = torch.randperm(len(whole), generator=torch.Generator().manual_seed(7))[:150].tolist()
    ends = range(len(whole) - 700, len(whole), 7)
    for place in [*places, *ends]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        saved.write_bytes(damaged)
        try:
            cache, by_name = KVCache.restore(saved, budget="1MiB", model="tiny")
        except InvalidArgument as error:
            assert "path is" in str(error)
            refused += 1
            continue
        assert intact(by_name["idle"], 1)
        assert intact(by_name["other"], 2)
        cache.close()
    assert refused > 150


def rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(members["cache.json"])
    change(index)
    members["cache.json"] = json.dumps(index).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(format=2), "its format is 2; this version of vmm reads 1"),
        (lambda index: index.update(name="other"), "not a saved cache"),
        (lambda index: index["contents"].pop("model"), "damaged"),
        (lambda index: index["contents"].update(more=1), "damaged"),
        (lambda index: index["contents"]["saved"][0]["pieces"][0].update(member="kv/99"), "kv/99 is damaged"),
        (lambda index: index["contents"]["saved"][0]["pieces"][0].update(starts=[0]), "damaged"),
        (lambda index: index["contents"].update(dtype="int9"), "damaged"),
        (lambda index: index["contents"]["saved"][0].update(length=7), "damaged"),
        (lambda index: index["contents"]["saved"][0].update(salt="xyz"), "damaged"),
    ],
)
def test_a_file_of_another_version_or_of_nonsense_is_refused(saved, change, message):
    rewritten(saved, change)
    with pytest.raises(InvalidArgument, match=f"path is .*{message}"):
        KVCache.restore(saved, budget="1MiB", model="tiny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, "model is 'other'; .* saved of 'tiny'"),
        ({"model": None}, "model is None"),
        ({"model": "tiny", "layers": 3}, "layers is 3; .* saved with 2"),
        ({"model": "tiny", "kv_heads": [2, 1]}, "kv_heads is .*saved with"),
        ({"model": "tiny", "dtype": torch.float16}, "dtype is torch.float16"),
        ({"model": "tiny", "window": 5}, "window is 5"),
        ({"model": "tiny", "max_tokens": 100}, "max_tokens is 100"),
        ({"model": "tiny", "max_sequences": 1}, "max_sequences is 1"),
    ],
)
def test_a_file_of_another_model_or_for_a_larger_cache_is_refused(saved, options, message):
    with pytest.raises(InvalidArgument, match=message):
        KVCache.restore(saved, budget="1MiB", **options)


def test_other_files_are_refused(tmp_path):
    text, archive = tmp_path / "text", tmp_path / "archive"
    text.write_text("a page of a book " * 100)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("member", "text")
    for path in (text, archive):
        with pytest.raises(InvalidArgument, match="not a saved cache"):
            KVCache.restore(path, budget="1MiB")
    with pytest.raises(FileNotFoundError):
        KVCache.restore(tmp_path / "none", budget="1MiB")
    with pytest.raises(IsADirectoryError):
        KVCache.restore(tmp_path, budget="1MiB")


def test_bad_arguments_of_save_are_named(cache, tmp_path, path):
    idle = written(cache, ids(0, 30), 1)
    closed = cache.open()
    closed.close()
    for arguments, message in [
        ((7,), "path is 7"),
        (("",), "path is ''"),
        ((tmp_path,), "path is .*, a directory"),
        ((path, [idle]), "sequences is"),
        ((path, {1: idle}), "sequences has the name 1"),
        ((path, {"a": 1}), r"sequences\[0\] is 1"),
    ]:
        with pytest.raises(InvalidArgument, match=message):
            cache.save(*arguments)
    with pytest.raises(InvalidArgument, match="model is 5"):
        cache.save(path, model=5)
    with pytest.raises(Closed):
        cache.save(path, {"closed": closed})
    with pytest.raises(FileNotFoundError):
        cache.save(tmp_path / "none" / "file")
    assert not list(tmp_path.iterdir())


def test_two_cannot_save_to_one_file_at_once(cache, path):
    beside = path.with_name(path.name + ".saving")
    with open(beside, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InvalidArgument, match="somebody else is saving there"):
            cache.save(path)
        assert beside.exists()
    cache.save(path)  # what one that was killed has left is in nobody's way
    assert [each.name for each in path.parent.iterdir()] == [path.name]


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
