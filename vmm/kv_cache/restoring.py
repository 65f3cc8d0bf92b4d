"""Makes a cache from what another one has written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vmm.errors import InvalidArgument
from vmm.kv_cache.saved_file import Contents, FileReader, Piece, Saved
from vmm.kv_cache.saving import checked_model, checked_path
from vmm.kv_cache.sequence import Sequence

if TYPE_CHECKING:
    from vmm.kv_cache.cache import KVCache


def restore(
    make: type[KVCache], path: Any, model: Any, options: dict[str, Any]
) -> tuple[KVCache, dict[str, Sequence]]:
    """See `KVCache.restore`."""
    place, model = checked_path(path), checked_model(model)
    with FileReader(place) as file:
        contents = file.contents
        if contents.model != model:
            raise InvalidArgument(f"model is {model!r}; {str(place)!r} was saved of {contents.model!r}")
        cache = make(**_arguments(contents, options, place))
        try:
            return cache, _filled(cache, file)
        except BaseException:
            cache.close()
            raise


def _arguments(contents: Contents, options: dict[str, Any], path: Any) -> dict[str, Any]:
    """What the cache is made with. Raises InvalidArgument where an option contradicts the file."""
    shapes = {
        "layers": len(contents.kv_heads),
        "kv_heads": list(contents.kv_heads),
        "head_dim": list(contents.head_dim),
        "dtype": getattr(torch, contents.dtype),
        "window": list(contents.window),
    }
    for name, saved in shapes.items():
        if name not in options:
            continue
        given, plain = options[name], saved
        if isinstance(saved, list):
            each = list(given) if isinstance(given, list | tuple) else [given] * len(saved)
            given, plain = [number or 0 for number in each], saved
        if given != plain:
            raise InvalidArgument(f"{name} is {options[name]!r}; {str(path)!r} was saved with {saved!r}")
    sizes = {"max_tokens": contents.max_tokens, "max_sequences": contents.max_sequences}
    return sizes | options | shapes


def _filled(cache: KVCache, file: FileReader) -> dict[str, Sequence]:
    """Fills the cache, which is new. Returns its sequences by their names."""
    sequences: dict[str, Sequence] = {}
    prefixes = []
    for saved in file.contents.saved:
        sequence = _sequence(cache, file, saved)
        if saved.name is None:
            prefixes.append(sequence)
        else:
            sequences[saved.name] = sequence
        # Those of which nobody has said that they are idle run on, or there is no tier for them.
        if (saved.parked or saved.name is None) and cache.pool.stats().tiers is not None:
            sequence.park()
            cache.end()
    cache.end()
    for sequence in prefixes:
        sequence.close()
    return sequences


def _sequence(cache: KVCache, file: FileReader, saved: Saved) -> Sequence:
    """Opens a sequence with the tokens that were saved. Those that another one has had before it shares."""
    tokens = file.read(saved.tokens, saved.known * 4) if saved.known else bytearray(4)
    ids = torch.frombuffer(tokens, dtype=torch.int32)[: saved.known]
    sequence = cache.open(tokens=ids, salt=bytes.fromhex(saved.salt), announce=0)
    for piece in saved.pieces:
        if (had := sequence.length) < piece.end:
            cache.step({sequence: piece.end})
            _fill(sequence, piece, had, file)
    sequence.commit(ids[sequence.cached_tokens :])
    return sequence


def _fill(sequence: Sequence, piece: Piece, had: int, file: FileReader) -> None:
    """Writes those tokens of the piece that the sequence had not had before."""
    cache = sequence.cache
    shapes = list(zip(cache._shapes, piece.starts, strict=True))
    element = cache.dtype.itemsize
    sizes = [(piece.end - start) * shape.kv_heads * shape.head_dim * element for shape, start in shapes]
    data = memoryview(file.read(piece.member, 2 * sum(sizes)))
    for layer, (shape, start) in enumerate(shapes):
        for kv in cache.kv(layer):
            mine, data = data[: sizes[layer]], data[sizes[layer] :]
            if (first := max(start, had)) < piece.end:
                rows = torch.frombuffer(mine, dtype=cache.dtype).view(-1, shape.kv_heads, shape.head_dim)
                kv[sequence.slot, first : piece.end] = rows[first - start :].to(kv.device)
