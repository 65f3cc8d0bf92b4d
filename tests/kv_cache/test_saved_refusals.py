"""Files that are no saved cache, or not the one that is wanted; and bad arguments."""

import fcntl
import json
import zipfile

import pytest
import torch
from saved_cache import ids, intact, written

from vmm import Closed, InvalidArgument, KVCache


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
