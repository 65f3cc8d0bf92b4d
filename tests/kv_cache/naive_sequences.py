"""What a KVCache must hold, kept naively: for each sequence a list of numbers, one for each token."""

import math
from dataclasses import dataclass, field

import torch
from own_pool import PAGE

from vmm import KVCache

UNWRITTEN = -1  # a token that was stepped over; its bytes are anything
NUMBERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def contents(tokens, where, shape, dtype):
    """K or V of one layer of tokens with these numbers, as bits: finite in ``dtype``, mostly NaN where they
    are taken for another type. ``where`` is 2 * layer, and 1 more for V; ``shape`` is (heads, dim)."""
    token = torch.tensor(tokens, dtype=torch.int64).reshape(-1, 1, 1)
    place = torch.arange(math.prod(shape)).reshape(shape)
    mixed = (token * 40503 + place * 977 + where * 5003) % 65521
    if dtype is torch.float32:
        bits = 0x40000000 + (mixed % 64 << 16) + 0x7F81 + mixed // 64 % 127
    elif dtype is torch.bfloat16:
        bits = 0x4000 + mixed % 0x3F80
    else:
        bits = mixed % 0x7C00
    return bits.to(NUMBERS[dtype])


@dataclass(eq=False)
class NaiveSequence:
    sequence: object
    tokens: list[int] = field(default_factory=list)


@dataclass(eq=False)
class NaiveCache:
    cache: KVCache
    heads: list[int]
    dims: list[int]
    sequences: list[NaiveSequence] = field(default_factory=list)

    @property
    def bits(self):
        return NUMBERS[self.cache.dtype]

    def close(self):
        for model in self.sequences:
            model.sequence = None
        self.cache.close()
        self.sequences, self.cache = [], None

    def write(self, model, start):
        """The tokens from ``start`` on, into the views that a kernel would be given."""
        for layer, (heads, dim) in enumerate(zip(self.heads, self.dims, strict=True)):
            for which, view in enumerate(self.cache.kv(layer)):
                new = contents(model.tokens[start:], 2 * layer + which, (heads, dim), self.cache.dtype)
                view[model.sequence.slot, start : len(model.tokens)] = new.view(self.cache.dtype)

    def compare(self, model):
        sequence, length = model.sequence, len(model.tokens)
        assert sequence.length == length
        written = torch.tensor(model.tokens) != UNWRITTEN
        for layer, (heads, dim) in enumerate(zip(self.heads, self.dims, strict=True)):
            for which, (of_all, own) in enumerate(zip(self.cache.kv(layer), sequence.kv(layer), strict=True)):
                expected = contents(model.tokens, 2 * layer + which, (heads, dim), self.cache.dtype)
                assert own.shape == (length, heads, dim)
                seen = own.view(self.bits)
                assert torch.equal(seen[written], expected[written]), (layer, which)
                same = of_all[sequence.slot, :length].view(self.bits)
                assert torch.equal(same[written], expected[written]), (layer, which)

    def compare_tail(self, model, tail):
        length = len(model.tokens)
        if length == 0 or tail == 0:
            return
        assert self.unmapped_pages(model.sequence.slot, length + tail) == 0
        for layer in range(len(self.heads)):
            for view in self.cache.kv(layer):
                assert view[model.sequence.slot, length : length + tail].isfinite().all(), layer

    def pieces(self, tokens):
        """For each part: its lease, its extents in a slot, and the pages of ``tokens`` in each extent."""
        for lease, part in zip(self.cache._leases, self.cache._records.parts, strict=True):
            record = part.record * self.cache.dtype.itemsize
            yield lease, part.extents, -(-tokens * record // PAGE)

    def unmapped_pages(self, slot, tokens):
        bytes_ = 0
        for lease, extents, pages in self.pieces(tokens):
            each = lease.extent_bytes // PAGE
            first = slot * extents
            bytes_ += lease.missing([((first + i) * each, pages) for i in range(extents)])
        return bytes_ // PAGE

    def needed_pages(self, tail):
        """Of all sequences together, to the page."""
        lengths = [len(model.tokens) for model in self.sequences]
        reaches = [length + tail for length in lengths if length]
        return sum(extents * pages for to in reaches for _, extents, pages in self.pieces(to))

    def live_bytes(self):
        each = sum(2 * heads * dim for heads, dim in zip(self.heads, self.dims, strict=True))
        return each * self.cache.dtype.itemsize * sum(len(model.tokens) for model in self.sequences)
