"""Makes a cache from what another one has written down."""

from __future__ import annotations

from collections import deque
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import torch

from vmm.errors import InvalidArgument, OutOfPages
from vmm.kv_cache.saved_file import Contents, FileReader, Piece, Saved
from vmm.kv_cache.saving import checked_model, checked_path
from vmm.kv_cache.sequence import Sequence

if TYPE_CHECKING:
    from vmm.kv_cache.cache import KVCache
    from vmm.pool import Pool

PATIENCE_S = 5.0  # with a tier that copies nothing


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
    # Of those that nobody is in, the oldest first. They are parked until all is there: what is parked is not
    # dropped while tiers have room for it.
    prefixes: deque[Sequence] = deque()
    tiers = cache.pool.stats().tiers is not None
    for saved in file.contents.saved:
        while (sequence := _sequence(cache, file, saved, may_fail=bool(prefixes))) is None:
            prefixes.popleft().close()
        if tiers and (saved.parked or saved.name is None):
            sequence.park()
        if saved.name is not None:
            sequences[saved.name] = sequence
        elif tiers:
            prefixes.append(sequence)
        else:
            sequence.close()
        cache.end()
    if prefixes and cache.pool._write_through:
        _await_copies(cache.pool)
    for sequence in prefixes:
        sequence.close()
    return sequences


def _await_copies(pool: Pool) -> None:
    """Waits until all that is parked is copied, as long as that goes on. What is closed is not kept until
    then."""
    least, patient_until = None, 0.0
    while (tiers := pool.stats().tiers) is not None and tiers.dirty_pages:
        stores = [store for store in (tiers.host, tiers.file) if store is not None and not store.read_only]
        if all(store.used_bytes + store.quarantined_bytes >= store.capacity_bytes for store in stores):
            return  # they have no room for more
        if least is None or tiers.dirty_pages < least:
            least, patient_until = tiers.dirty_pages, monotonic() + PATIENCE_S
        elif monotonic() > patient_until:
            return  # a tier hangs
        sleep(0.001)


def _sequence(cache: KVCache, file: FileReader, saved: Saved, *, may_fail: bool) -> Sequence | None:
    """Opens a sequence with the tokens that were saved. Those that another one has had before it shares. None
    where there is no slot or no memory for it, if it ``may_fail``."""
    if may_fail and cache.stats().sequences == cache.max_sequences:
        return None
    ids = torch.empty(0, dtype=torch.int32)
    if saved.known:
        ids = torch.frombuffer(file.read(saved.tokens, saved.known * 4), dtype=torch.int32).clone()
    sequence = cache.open(tokens=ids, salt=bytes.fromhex(saved.salt), announce=0)
    try:
        for piece in saved.pieces:
            if (had := sequence.length) < piece.end:
                cache.step({sequence: piece.end})
                _fill(sequence, piece, had, file)
        if any(cache._windows) and saved.length:
            cache.step({sequence: saved.length})  # windows have moved on to the end
        sequence.commit(ids[sequence.cached_tokens :])
    except OutOfPages:
        sequence.close()
        cache.end()
        if may_fail:
            return None
        raise
    return sequence


def _fill(sequence: Sequence, piece: Piece, had: int, file: FileReader) -> None:
    """Writes those tokens of the piece that the sequence had not had before."""
    cache = sequence.cache
    shapes = list(zip(cache._shapes, piece.starts, strict=True))
    element = cache.dtype.itemsize
    sizes = [(piece.end - start) * shape.kv_heads * shape.head_dim * element for shape, start in shapes]
    data = file.read(piece.member, 2 * sum(sizes))
    for layer, (shape, start) in enumerate(shapes):
        for kv in cache.kv(layer):
            mine, data = data[: sizes[layer]], data[sizes[layer] :]
            if (first := max(start, had)) < piece.end:
                rows = torch.frombuffer(mine, dtype=cache.dtype).view(-1, shape.kv_heads, shape.head_dim)
                kv[sequence.slot, first : piece.end] = rows[first - start :].to(kv.device)
