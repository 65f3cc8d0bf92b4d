"""The file of a saved cache: what is in it, and how it is written and read.

It is a ZIP archive whose members are not compressed, because ZIP has what such a file needs (a checksum for
each member, a directory at the end, sizes beyond 4 GiB) and common tools list it. A member ``kv/N`` has K and
V of some tokens, layer by layer; ``tokens/N`` has ids, as int32; ``cache.json``, which is written last, says
what belongs to what.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, cast

from vmm.dlpack import FLOATS
from vmm.errors import InvalidArgument

FORMAT = 1
_NAME = "vmm saved cache"
_INDEX = "cache.json"


@dataclass(frozen=True)
class Piece:
    """K and V of tokens ``[first, end)`` of a sequence. ``starts`` has the first token of each layer that is
    there: the layer's window had left those before it."""

    first: int
    end: int
    starts: tuple[int, ...]
    member: str


@dataclass(frozen=True)
class Saved:
    """A sequence, or what a closed one had left to be found, which has no name."""

    name: str | None
    length: int
    salt: str  #: in hexadecimal
    known: int  #: tokens that were committed
    tokens: str  #: the member that has their ids
    parked: bool
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Contents:
    """All that is known of a saved cache but K, V and token ids."""

    model: str
    dtype: str
    kv_heads: tuple[int, ...]  #: by layer, as the next two
    head_dim: tuple[int, ...]
    window: tuple[int, ...]
    max_tokens: int
    max_sequences: int
    saved: tuple[Saved, ...]  #: in the order in which they are to be restored


class FileWriter:
    """Writes a saved cache beside ``path``, and puts it there when all of it is on the disk. If the process
    ends before, the file that was at ``path`` is there still. Used in a ``with`` block, by one thread.

    Raises InvalidArgument where another process is just saving there, and OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(path.name + ".saving")
        self._file = open(_locked(self._beside), "r+b")  # noqa: SIM115  # __exit__ closes it
        self._archive = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._members = 0

    def add(self, kind: str, buffers: Iterable[memoryview]) -> str:
        """Writes a member, and returns its name."""
        name = f"{kind}/{self._members}"
        self._members += 1
        with self._archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
            for buffer in buffers:
                member.write(buffer)
        return name

    def finish(self, contents: Contents) -> int:
        """Writes the rest, and puts the file in its place. Returns its size."""
        index = {"name": _NAME, "format": FORMAT, "contents": asdict(contents)}
        self._archive.writestr(zipfile.ZipInfo(_INDEX), json.dumps(index))
        self._archive.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        os.replace(self._beside, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return size

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.close()
            return
        if _is_at(self._file.fileno(), self._beside):  # nothing of it stays
            self._beside.unlink()
        with contextlib.suppress(Exception):  # no second error hides the first
            self._archive.close()
        with contextlib.suppress(OSError):
            self._file.close()


def _locked(path: Path) -> int:
    """A descriptor of the empty file at ``path``, which nobody else is writing. Only its owner may read it,
    because K and V tell what was said. What a process that was killed has left there is overwritten."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):  # else who had it has put it into its place since we opened it
                os.ftruncate(descriptor, 0)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InvalidArgument(f"path: somebody else is saving there now ({path})") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


class FileReader:
    """Reads a saved cache. Used in a ``with`` block, by one thread.

    Raises InvalidArgument, which says why, for a file that is none, that is damaged or not all there, or that
    another version of vmm wrote; and OSError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = bytearray()
        self._file = open(path, "rb")  # noqa: SIM115  # __exit__ closes it
        try:
            self._archive = self._opened()
            self.contents = self._contents()
        except BaseException:
            self._file.close()
            raise

    def read(self, member: str, size: int) -> memoryview:
        """The bytes of the member, which has so many. They are good until the next call."""
        if len(self._buffer) < size:  # one for all: to get fresh memory costs as much as to read
            self._buffer = bytearray(size)
        out = memoryview(self._buffer)[:size]
        with self._refusing(f"{member} is damaged"), self._archive.open(member) as file:
            if cast(zipfile.ZipExtFile, file).readinto(out) != size or file.read(1):
                raise ValueError("its size is another")
        return out

    def _opened(self) -> zipfile.ZipFile:
        begins = self._file.read(4)
        with self._refusing(
            "its end is missing or damaged" if begins == b"PK\3\4" else "it is not a saved cache"
        ):
            return zipfile.ZipFile(self._file)

    def _contents(self) -> Contents:
        if _INDEX not in self._archive.namelist():
            self._refuse("it is not a saved cache")
        with self._refusing(f"{_INDEX} is damaged"):
            index = json.loads(self._archive.read(_INDEX))
        if not isinstance(index, dict) or index.get("name") != _NAME:
            self._refuse("it is not a saved cache")
        if index.get("format") != FORMAT:
            self._refuse(f"its format is {index.get('format')!r}; this version of vmm reads {FORMAT}")
        with self._refusing(f"{_INDEX} is damaged"):
            return _parsed(index["contents"])

    @contextlib.contextmanager
    def _refusing(self, reason: str) -> Iterator[None]:
        """Whatever is raised for what is damaged is refused. (zipfile raises more kinds than it names.)"""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # it cannot be read
                raise
            self._refuse(f"{reason} ({error!r})")

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidArgument(f"path is {str(self._path)!r}: {reason}") from None

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()


def _parsed(index: dict[str, Any]) -> Contents:
    def saved(each: dict[str, Any]) -> Saved:
        pieces = tuple(Piece(**piece | {"starts": tuple(piece["starts"])}) for piece in each["pieces"])
        return Saved(**each | {"pieces": pieces})

    by_layer = {name: tuple(index[name]) for name in ("kv_heads", "head_dim", "window")}
    contents = Contents(**index | by_layer | {"saved": tuple(saved(each) for each in index["saved"])})
    _check(contents)
    return contents


def _check(contents: Contents) -> None:
    """Raises ValueError where parts of the contents contradict each other, as they may in a file that was
    made by hand."""
    layers = len(contents.kv_heads)
    if not isinstance(contents.model, str) or contents.dtype not in (str(each)[6:] for each in FLOATS):
        raise ValueError("model, dtype")
    if {len(contents.head_dim), len(contents.window)} != {layers}:
        raise ValueError("kv_heads, head_dim, window: not as many as layers")
    for each in contents.saved:
        bytes.fromhex(each.salt)
        ends = [0, *(piece.end for piece in each.pieces)]
        firsts = [*(piece.first for piece in each.pieces), each.length]
        if ends != firsts or not 0 <= each.known <= each.length:
            raise ValueError("length, known, pieces")
        for piece in each.pieces:
            good = (isinstance(start, int) and piece.first <= start <= piece.end for start in piece.starts)
            if len(piece.starts) != layers or not all(good):
                raise ValueError("starts")
