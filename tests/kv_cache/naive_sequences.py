"""What a KVCache must hold, kept naively: for each sequence a list of numbers, one for each token."""

import ctypes
import math
from dataclasses import dataclass, field

import cuda_standin
import numpy as np
import torch
from cuda_calls import SUCCESS
from own_pool import PAGE

from vmm import KVCache

BLOCK = 16  # tokens that a prefix is found in
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


def at(tensor):
    """What is at its address, when it is looked at."""
    size = tensor.itemsize * (
        1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    )
    memory = (ctypes.c_char * max(size, 0)).from_address(tensor.data_ptr())
    whole = np.frombuffer(memory, dtype=f"i{tensor.itemsize}")
    strides = [tensor.itemsize * stride for stride in tensor.stride()]
    return np.lib.stride_tricks.as_strided(whole, tensor.shape, strides)


@dataclass(eq=False)
class NaiveSequence:
    sequence: object
    tokens: list[int] = field(default_factory=list)
    computed: int = 0  # tokens before the last step
    reached: int = 0  # tokens, with the tail, when it last came into a new page
    passed: int = 0  # computed, then: what no window reached is given up
    stream: int | None = None  # of the last step
    coming: dict[int, int] = field(default_factory=dict)  # by token: the number that a kernel is to write
    committed: int = 0  # tokens that others may begin with
    salt: str | None = None

    def come(self, start, numbers):
        """A kernel has written these."""
        for token, number in enumerate(numbers, start):
            if self.coming.get(token) == number and token < len(self.tokens):
                self.tokens[token] = number


@dataclass(eq=False)
class NaiveCache:
    cache: KVCache
    heads: list[int]
    dims: list[int]
    windows: list[int]
    sequences: list[NaiveSequence] = field(default_factory=list)
    committed: list[tuple[str | None, list[int]]] = field(default_factory=list)  # salts and first tokens

    @property
    def bits(self):
        return NUMBERS[self.cache.dtype]

    def close(self):
        for model in self.sequences:
            model.sequence = None
        self.cache.close()
        self.sequences, self.cache = [], None

    def new_contents(self, model, start, numbers):
        """Where to put the tokens from ``start`` on, and what: pairs of bits, for all layers."""
        for layer, (heads, dim) in enumerate(zip(self.heads, self.dims, strict=True)):
            for which, view in enumerate(self.cache.kv(layer)):
                place = view[model.sequence.slot, start : start + len(numbers)].view(self.bits)
                yield place, contents(numbers, 2 * layer + which, (heads, dim), self.cache.dtype)

    def write(self, model, start, numbers):
        for place, new in self.new_contents(model, start, numbers):
            place.copy_(new)

    def launch(self, model, start, numbers, stream):
        """A kernel that reads what the sequence has, and writes its tokens from ``start`` on: some time."""
        # By address: a kernel keeps nothing alive.
        stores = [(at(place), new.numpy()) for place, new in self.new_contents(model, start, numbers)]

        def run():
            for place, new in stores:
                np.copyto(place, new)
            model.come(start, numbers)

        model.coming |= dict(enumerate(numbers, start))
        ranges = {
            "reads": self.addresses(model, 0, start),
            "writes": self.addresses(model, start, start + len(numbers)),
        }
        assert cuda_standin.loaded().launch(stream, run, **ranges) == SUCCESS

    def addresses(self, model, start, end):
        """(address, size) of these tokens in every extent, but for what no window reaches."""
        if start == end:
            return []
        out = []
        for lease, part in zip(self.cache._leases, self.cache._records.parts, strict=True):
            record = part.record * self.cache.dtype.itemsize
            first = max(start, self.first(model.computed, part.window))
            base = lease.address + model.sequence.slot * part.extents * lease.extent_bytes
            for extent in range(part.extents if first < end else 0):
                out.append((base + extent * lease.extent_bytes + first * record, (end - first) * record))
        return out

    def compare(self, model):
        sequence, length = model.sequence, len(model.tokens)
        assert sequence.length == length
        for layer, (heads, dim) in enumerate(zip(self.heads, self.dims, strict=True)):
            for which, (of_all, own) in enumerate(zip(self.cache.kv(layer), sequence.kv(layer), strict=True)):
                first = self.first(model.computed, self.windows[layer])
                assert own.shape == (length - first, heads, dim)
                tokens = model.tokens[first:]
                written = torch.tensor(tokens) != UNWRITTEN
                expected = contents(tokens, 2 * layer + which, (heads, dim), self.cache.dtype)
                seen = own.view(self.bits)
                assert torch.equal(seen[written], expected[written]), (layer, which)
                same = of_all[sequence.slot, first:length].view(self.bits)
                assert torch.equal(same[written], expected[written]), (layer, which)

    def grow(self, model, count):
        """As a step does that succeeds; the tokens themselves are the caller's to add."""
        model.computed = len(model.tokens)
        reach = self.reach(model.computed + count)
        pages = zip(self.pieces(reach), self.pieces(model.reached), strict=True)
        if any(new > old for (_, _, new, _), (_, _, old, _) in pages):
            model.reached, model.passed = reach, model.computed

    def fork(self, model, sequence, copied):
        """``copied``: whether the copies are over; else what is in them is not known."""
        fork = NaiveSequence(
            sequence, list(model.tokens), model.computed, model.reached, model.passed, model.stream
        )
        fork.committed, fork.salt = model.committed, model.salt
        for part, (lease, extents, _, out) in enumerate(self.pieces(len(model.tokens), model.passed)):
            whole, tokens = self.whole_pages(part, len(model.tokens))
            shared = [self.memory_of(each, lease, extents, out, whole) for each in (model, fork)]
            assert shared[0] == shared[1]
            if not copied:
                fork.tokens[tokens:] = [UNWRITTEN] * (len(model.tokens) - tokens)
        if fork.tokens:
            fork.reached = self.reach(len(fork.tokens))
        self.sequences.append(fork)

    def memory_of(self, model, lease, extents, first, end):
        """Of these pages of all its extents."""
        each = lease.extent_bytes // PAGE
        start = model.sequence.slot * extents
        return lease.memory_of([((start + i) * each + first, max(0, end - first)) for i in range(extents)])

    def begin(self, sequence, prompt, salt, stream, in_place):
        """A sequence that was opened with tokens begins with some of them. ``in_place``: whether they are
        there without a copy, which may not be over."""
        cached = sequence.cached_tokens
        assert cached % BLOCK == 0
        assert cached < max(1, len(prompt))
        assert cached == 0 or any(
            salt == other and prompt[:cached] == tokens[:cached] for other, tokens in self.committed
        )
        tokens = prompt[:cached] if in_place else [UNWRITTEN] * cached
        reached = self.reach(cached)
        model = NaiveSequence(sequence, tokens, cached, reached, cached, stream if cached else None)
        model.committed, model.salt = cached, salt
        self.sequences.append(model)

    def commit(self, model, most):
        """Up to so many more of its tokens, as far as they are written."""
        tokens = model.tokens[model.committed : model.committed + most]
        if UNWRITTEN in tokens:
            tokens = tokens[: tokens.index(UNWRITTEN)]
        model.sequence.commit(tokens)
        model.committed += len(tokens)
        written = model.tokens[: model.committed]
        if UNWRITTEN not in written:
            self.committed = [*self.committed[-20:], (model.salt, written)]

    def whole_pages(self, part, tokens):
        """How many pages of an extent hold nothing but these tokens, and how many of the tokens they hold."""
        record = self.cache._records.parts[part].record * self.cache.dtype.itemsize
        pages = tokens * record // PAGE
        return pages, pages * PAGE // record

    def truncate(self, model, to):
        del model.tokens[to:]
        model.committed = min(model.committed, to)
        model.computed, model.passed = min(model.computed, to), min(model.passed, to)
        model.reached = min(model.reached, self.reach(to))

    def reach(self, length):
        return length + self.cache._tail if length else 0

    def first(self, computed, window):
        """The first token that is needed when so many are there."""
        return max(0, computed + 1 - window) if window else 0

    def compare_tail(self, model, tail):
        length = len(model.tokens)
        if length == 0 or tail == 0:
            return
        assert self.unmapped_pages(model.sequence.slot, length + tail, model.passed) == 0
        for layer in range(len(self.heads)):
            for view in self.cache.kv(layer):
                assert view[model.sequence.slot, length : length + tail].isfinite().all(), layer

    def pieces(self, tokens, computed=0):
        """For each part: its lease, its extents in a slot, the pages of ``tokens`` in each extent, and how
        many of these no window reaches when ``computed`` tokens are there."""
        for lease, part in zip(self.cache._leases, self.cache._records.parts, strict=True):
            record = part.record * self.cache.dtype.itemsize
            out = self.first(computed, part.window) * record // PAGE
            yield lease, part.extents, -(-tokens * record // PAGE), out

    def unmapped_pages(self, slot, tokens, computed):
        bytes_ = 0
        for lease, extents, pages, out in self.pieces(tokens, computed):
            each = lease.extent_bytes // PAGE
            first = slot * extents
            bytes_ += lease.missing([((first + i) * each + out, pages - out) for i in range(extents)])
        return bytes_ // PAGE

    def needed_pages(self, tail):
        """Of all sequences together, to the page; what they share counts once."""
        needed = set()
        for model in self.sequences:
            if not model.tokens:
                continue
            for lease, extents, pages, out in self.pieces(len(model.tokens) + tail, model.passed):
                needed.update(self.memory_of(model, lease, extents, out, pages))
        return len(needed)

    def live_bytes(self):
        return self.cache.dtype.itemsize * sum(
            2 * heads * dim * min(len(model.tokens), window or len(model.tokens))
            for heads, dim, window in zip(self.heads, self.dims, self.windows, strict=True)
            for model in self.sequences
        )
