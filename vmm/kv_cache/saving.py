"""Writes down what a cache holds, for a process to come."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vmm.errors import InvalidArgument, OutOfPages
from vmm.kv_cache.saved_file import Contents, FileWriter, Piece, Saved
from vmm.kv_cache.sequence import Sequence, slots_of

if TYPE_CHECKING:
    from vmm.kv_cache.cache import KVCache

PIECE_TOKENS = 256  # of one member of the file: some MiB for the usual models


@dataclass(frozen=True)
class SaveReport:
    """What `KVCache.save` has written."""

    sequences: int
    prefixes: int  #: that closed sequences had left to be found
    tokens: int  #: of all of these; those at the start of several are in the file once
    bytes: int  #: of the file
    lost: Mapping[str, int]  #: how many tokens sequences have lost, because copies in a tier were not good


def save(cache: KVCache, path: Any, sequences: Any, model: Any) -> SaveReport:
    """See `KVCache.save`."""
    place, model = checked_path(path), checked_model(model)
    if place.is_dir():
        raise InvalidArgument(f"path is {path!r}, a directory; expected the path of a file")
    named = _named(cache, sequences)
    lost: dict[str, int] = {}
    with FileWriter(place) as file:
        pieces = Pieces(cache, file)
        saved = [each for each in map(pieces.prefix, pieces.findable()) if each is not None]
        prefixes = len(saved)
        coming = [sequence.slot for sequence in named.values()]
        for at, (name, sequence) in enumerate(named.items()):
            cache._engine.prefetch(coming[at + 1 : at + 2], 0)  # it comes back while this one is written
            saved.append(each := pieces.sequence(name, sequence))
            if each.length < sequence.length:
                lost[name] = sequence.length - each.length
        size = file.finish(_contents(cache, model, saved))
    tokens = sum(each.length for each in saved)
    return SaveReport(len(saved) - prefixes, prefixes, tokens, size, lost)


def checked_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not (place := Path(os.fsdecode(path))).name:
        raise InvalidArgument(f"path is {path!r}; expected the path of a file")
    return place


def checked_model(model: Any) -> str:
    if not isinstance(model, str):
        raise InvalidArgument(f"model is {model!r}; expected text that names the model and its weights")
    return model


def _named(cache: KVCache, sequences: Any) -> dict[str, Sequence]:
    """The sequences to save by their names; where None is said, those that are parked."""
    if sequences is None:
        return {str(slot): Sequence(cache, slot) for slot in cache._engine.parked()}
    if not isinstance(sequences, Mapping):
        raise InvalidArgument(f"sequences is {sequences!r}; expected {{name: sequence}}, or None")
    for name in sequences:
        if not isinstance(name, str):
            raise InvalidArgument(f"sequences has the name {name!r}; expected text")
    slots_of(cache, "sequences", sequences.values())
    return dict(sequences)


def _contents(cache: KVCache, model: str, saved: list[Saved]) -> Contents:
    return Contents(
        model=model,
        dtype=str(cache.dtype).removeprefix("torch."),
        kv_heads=tuple(shape.kv_heads for shape in cache._shapes),
        head_dim=tuple(shape.head_dim for shape in cache._shapes),
        window=cache._windows,
        max_tokens=cache.max_tokens,
        max_sequences=cache.max_sequences,
        saved=tuple(saved),
    )


class Pieces:
    """The pieces of one file. Where sequences begin with the same committed tokens they have the same pieces.
    Not in a cache with windows: what a window has left is not there, and who begins with fewer tokens than a
    sequence has may need it. So there nothing is found of what was saved."""

    def __init__(self, cache: KVCache, file: FileWriter) -> None:
        self._cache, self._file = cache, file
        self._parked = set(cache._engine.parked())
        self._written: dict[tuple[bytes, int], str] = {}  # members, by the hash of all tokens until their end
        self._has_windows = any(cache._windows)

    def findable(self) -> list[tuple[bytes, bytes]]:
        """The salts and tokens of what closed sequences have left, the one used longest ago first."""
        return [] if self._has_windows else self._cache._engine.cached()

    def sequence(self, name: str | None, sequence: Sequence) -> Saved:
        """Writes an open sequence. If it is parked it stays so."""
        engine, slot = self._cache._engine, sequence.slot
        length = engine.pin(slot)
        try:
            salt, tokens = engine.known(slot)
            return self._saved(name, sequence, length, salt, b"" if self._has_windows else tokens)
        finally:
            engine.unpin(slot)

    def prefix(self, known: tuple[bytes, bytes]) -> Saved | None:
        """Writes what a closed sequence has left, if it is to be had."""
        salt, tokens = known
        ids = torch.frombuffer(bytearray(tokens), dtype=torch.int32)
        if len(ids) < self._cache.max_tokens:  # a sequence finds all but its last token
            ids = torch.cat((ids, ids.new_zeros(1)))
        try:
            sequence = self._cache.open(tokens=ids, salt=salt, announce=0)
        except InvalidArgument:  # all slots are open by now
            return None
        try:
            saved = self.sequence(None, sequence)
        except OutOfPages:  # it is only a cache
            return None
        finally:
            sequence.close()
        return saved if saved.length else None

    def _saved(self, name: str | None, sequence: Sequence, length: int, salt: bytes, tokens: bytes) -> Saved:
        tokens = tokens[: length * 4]
        known = len(tokens) // 4
        return Saved(
            name=name,
            length=length,
            salt=salt.hex(),
            known=known,
            tokens=self._file.add("tokens", [memoryview(tokens)]) if known else "",
            parked=sequence.slot in self._parked,
            pieces=tuple(self._pieces(sequence, length, salt, tokens)),
        )

    def _pieces(self, sequence: Sequence, length: int, salt: bytes, tokens: bytes) -> Iterator[Piece]:
        layers = [sequence.kv(layer) for layer in range(len(self._cache._shapes))]
        if (device := layers[0][0].device).type == "cuda":
            torch.cuda.synchronize(device)  # work of any stream may write to it
        begins = [sequence.length - len(k) for k, _ in layers]
        so_far = hashlib.sha256(len(salt).to_bytes(8) + salt)
        for first in range(0, length, PIECE_TOKENS):
            end = min(first + PIECE_TOKENS, length)
            so_far.update(tokens[first * 4 : end * 4])
            key = (so_far.digest(), end) if end * 4 <= len(tokens) else None
            member = self._written.get(key) if key else None
            starts = tuple(min(max(first, begin), end) for begin in begins)
            if member is None:
                member = self._file.add("kv", self._bytes(layers, begins, starts, end))
                if key:
                    self._written[key] = member
            yield Piece(first, end, starts, member)

    @staticmethod
    def _bytes(
        layers: list[tuple[torch.Tensor, torch.Tensor]], begins: list[int], starts: tuple[int, ...], end: int
    ) -> Iterator[memoryview]:
        for layer, begin, start in zip(layers, begins, starts, strict=True):
            for kv in layer if start < end else ():
                there = kv[start - begin : end - begin].contiguous().cpu()
                yield memoryview((ctypes.c_char * there.nbytes).from_address(there.data_ptr())).cast("B")
