"""KVCaches on one pool against a naive model, with driver calls that fail, events that are late, several
streams under all their names, and a budget that is too small."""

import contextlib
import os
from unittest import mock

import cuda_standin
import pytest
from cuda_standin import ON_CUDA
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from kinds import KINDS
from naive_sequences import NaiveCache, NaiveSequence
from own_pool import PAGE, faulty_pool
from pool_machine import ANY, pick
from step_machine import LATEST, StepMachine
from stream_names import STREAMS, StreamNames

import vmm.kv_cache.cache
import vmm.stream
from vmm import Error, InvalidArgument, KVCache, OutOfPages

BUDGET_PAGES = 56
MOST = 150  # tokens
SLOTS = 4
NEVER_WRITTEN = 1 << 30  # tokens from here on are only asked for
SALTS = st.sampled_from([None, None, None, "another"])
TOKENS = st.integers(0, MOST)
PROMPTS = st.tuples(
    st.just(MOST) | TOKENS, TOKENS, st.booleans()
)  # another's tokens, and more; wait for copies
GROWTH = st.sampled_from([1, 1, 30, MOST]).flatmap(  # of each slot's sequence in one step
    lambda most: st.lists(st.integers(0, most), min_size=SLOTS, max_size=SLOTS)
)
TAILS = st.sampled_from([0, 20])


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Or sequences as short as these would never leave a window on a GPU."""
    before, vmm.kv_cache.cache._TILE_TOKENS = vmm.kv_cache.cache._TILE_TOKENS, 5
    yield
    vmm.kv_cache.cache._TILE_TOKENS = before


def per_layer(given, layers):
    return list(given) if isinstance(given, tuple) else [given] * layers


class KVCacheMachine(StepMachine):
    budget_pages = BUDGET_PAGES

    def __init__(self):
        super().__init__()
        self.pool = faulty_pool(BUDGET_PAGES)
        self.core = self.pool._core
        self.own_calls = contextlib.ExitStack()
        if ON_CUDA:  # kernels need a context
            self.cuda = self.own_calls.enter_context(cuda_standin.own_calls())
        self.reports = cuda_standin.loaded().reports if ON_CUDA else 0
        self.streams = StreamNames(self.pool)
        self.own_calls.enter_context(
            mock.patch.object(vmm.stream, "_current_stream", self.streams.torch_current_stream)
        )
        self.caches: list[NaiveCache] = []
        self.written = 0

    # What caches are asked to do.

    @initialize(
        kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3),
        tail=TAILS,
        per_step=st.sampled_from([1, 4]),
        torch_runs_late=st.booleans(),
        told=st.tuples(st.booleans(), st.booleans()),
    )
    def begin(self, kinds, tail, per_step, torch_runs_late, told):
        self.by_sequence, self.commits = told
        self.pool._runs_late = torch_runs_late and ON_CUDA
        vmm.stream.torch_stream(self.pool)
        for kind in kinds:
            self.make(kind, tail, per_step)
            for _ in range(SLOTS // 2):
                self.caches[-1].sequences.append(NaiveSequence(self.caches[-1].cache.open()))

    @rule(kind=st.sampled_from(sorted(KINDS)), tail=TAILS, per_step=st.sampled_from([1, 4]))
    def make_another(self, kind, tail, per_step):
        if len(self.caches) < 3:
            with self.tolerated():
                self.make(kind, tail, per_step)

    def next_owner(self):
        """Whom the next cache belongs to."""
        return None

    def make(self, kind, tail, per_step):
        shape = KINDS[kind]
        cache = KVCache(
            **shape,
            max_tokens=MOST,
            max_sequences=SLOTS,
            pool=self.pool,
            page_bytes=PAGE,
            tail_tokens=tail,
            tokens_per_step=per_step,
            tenant=self.next_owner(),
        )
        heads, dims = (per_layer(shape[name], shape["layers"]) for name in ("kv_heads", "head_dim"))
        windows = [each.window for each in cache._shapes]
        for window, asked in zip(windows, per_layer(shape.get("window"), shape["layers"]), strict=True):
            assert window >= (asked or 0)
            assert (window == 0) == (asked is None)
        self.caches.append(NaiveCache(cache, heads, dims, windows))

    @precondition(lambda self: self.pool._runs_late)
    @rule(which=st.integers(-1, 1))
    def switch(self, which):
        """Torch's current stream is another, and known from now on."""
        with self.tolerated():
            self.streams.switch(which)

    @rule(cache=ANY, prompt=TOKENS, announce=st.none() | TOKENS, stream=STREAMS)
    def open(self, cache, prompt, announce, stream):
        naive = pick(self.caches, cache)
        if naive is None:
            return
        if announce is not None:
            announce = min(announce, prompt)
        full = len(naive.sequences) == SLOTS
        try:
            with self.tolerated():
                sequence = naive.cache.open(prompt, announce=announce, stream=self.streams.said(stream))
                assert not full
                assert sequence.slot not in {model.sequence.slot for model in naive.sequences}
                naive.sequences.append(NaiveSequence(sequence))
        except InvalidArgument:
            assert full

    @rule(
        cache=ANY,
        sequences=st.lists(st.integers(0, SLOTS - 1), unique=True),
        growth=GROWTH,
        stream=STREAMS,
        write=st.booleans(),
    )
    def step(self, cache, sequences, growth, stream, write):
        naive = pick([naive for naive in self.caches if naive.sequences], cache)
        if naive is None:
            return
        chosen = [naive.sequences[number] for number in sequences if number < len(naive.sequences)]
        grown = [min(count, MOST - len(model.tokens)) for count, model in zip(growth, chosen, strict=False)]
        self.step_once(naive, chosen, grown, stream, write)

    @rule(most=st.sampled_from([1, 7, 50]), rounds=st.integers(1, 3), stream=STREAMS)
    def serve(self, most, rounds, stream):
        """Everybody grows."""
        for _ in range(rounds):
            for naive in self.caches:
                grown = [min(most, MOST - len(model.tokens)) for model in naive.sequences]
                self.step_once(naive, list(naive.sequences), grown, stream, True)

    @rule(which=ANY, tokens=st.integers(1, MOST), stream=STREAMS)
    def take_turns(self, which, tokens, stream):
        """One ends and the next begins at once, perhaps in its slot, while its last step is under way."""
        naive, model = self.sequence_of(which)
        if model is None:
            return
        self.close_sequence(naive, model)
        with self.tolerated():
            naive.sequences.append(NaiveSequence(naive.cache.open(tokens, stream=self.streams.said(stream))))
            self.step_once(naive, naive.sequences[-1:], [tokens], stream, True)

    @rule(which=ANY, to=TOKENS)
    def truncate(self, which, to):
        naive, model = self.sequence_of(which)
        if model is None:
            return
        to %= len(model.tokens) + 1
        try:
            with self.tolerated():
                model.sequence.truncate(to)
        except InvalidArgument:
            assert any(naive.windows)
            assert 0 < to < model.computed
            return
        except OutOfPages:  # for the copy of a shared page
            return
        except Error as error:
            if "end it there first" not in str(error) and "is not over" not in str(error):
                raise
            return
        if model.sequence.length != to:
            assert self.failing
            if model.sequence.length != len(model.tokens):
                naive.truncate(model, model.sequence.length)
            return
        assert not (any(naive.windows) and 0 < to < model.computed)
        naive.truncate(model, to)

    @rule(which=ANY, n=st.integers(1, SLOTS - 1), tokens=TOKENS, stream=STREAMS, sync=st.booleans())
    def fork(self, which, n, tokens, stream, sync):
        """A sequence is forked once it has some tokens."""
        naive, model = self.sequence_of(which)
        if model is None:
            return
        n = min(n, max(1, SLOTS - len(naive.sequences)))
        self.step_once(naive, [model], [min(tokens, MOST - len(model.tokens))], stream, True)
        handle = self.streams.handle(stream)
        if ON_CUDA and model.stream not in (None, handle):
            self.cuda.do("cuStreamSynchronize", model.stream)  # an engine's own dependency
        free = SLOTS - len(naive.sequences)
        try:
            with self.tolerated():
                forks = model.sequence.fork(n, stream=self.streams.said(stream))
                assert n <= free
                if sync or not ON_CUDA:  # this test writes from the CPU, whatever is on a stream of the host
                    self.recover()
                    self.core.synchronize(handle)
                model.stream = handle
                for sequence in forks:
                    naive.fork(model, sequence, sync or not ON_CUDA)
        except InvalidArgument:
            assert n > free
        except OutOfPages:
            return
        except Error as error:
            if "end it there first" not in str(error) and "is not over" not in str(error):
                raise

    @rule(which=ANY, tokens=TOKENS, close=st.booleans())
    def commit(self, which, tokens, close):
        naive, model = self.sequence_of(which)
        if model:
            naive.commit(model, tokens)
            if close:
                self.close_sequence(naive, model)

    @rule(cache=ANY, like=ANY, prompt=PROMPTS, salt=SALTS, stream=STREAMS)
    def open_with_tokens(self, cache, like, prompt, salt, stream):
        """A sequence begins as another did, or does, and goes on in another way."""
        if naive := pick(self.caches, cache):
            _, tokens = pick(naive.committed, like) or (None, [])
            self.open_like(naive, tokens, prompt, salt, stream)

    @rule(which=ANY, tokens=TOKENS, close=st.booleans(), prompt=PROMPTS, stream=STREAMS)
    def begin_again(self, which, tokens, close, prompt, stream):
        """The same with one that is open, or has just ended."""
        naive, model = self.sequence_of(which)
        if model is None:
            return
        self.step_once(naive, [model], [min(tokens, MOST - len(model.tokens))], stream, True)
        if prompt[2] and ON_CUDA:
            self.recover()
            self.core.synchronize(self.streams.handle(stream))
        naive.commit(model, MOST)
        tokens = model.tokens[: model.committed]
        if close:
            self.close_sequence(naive, model)
        self.open_like(naive, tokens, prompt, model.salt, stream)

    def open_like(self, naive, tokens, prompt, salt, stream):
        same, more, sync = prompt
        prompt = (tokens[:same] + [NEVER_WRITTEN + i for i in range(more)])[:MOST]
        handle, full = self.streams.handle(stream), len(naive.sequences) == SLOTS
        adopted = naive.cache.stats().adopted
        try:
            with self.tolerated():
                sequence = naive.cache.open(tokens=prompt, salt=salt, stream=self.streams.said(stream))
                assert not full
                in_place = naive.cache.stats().adopted > adopted
                if sequence.cached_tokens and (sync or not ON_CUDA):  # as after a fork
                    self.recover()
                    self.core.synchronize(handle)
                    in_place = True
                naive.begin(sequence, prompt, salt, handle, in_place)
        except InvalidArgument:
            assert full

    @rule(which=ANY, tokens=TOKENS)
    def announce(self, which, tokens):
        _, model = self.sequence_of(which)
        if model:
            model.sequence.announce(tokens)

    @rule(which=ANY)
    def close(self, which):
        naive, model = self.sequence_of(which)
        if model:
            self.close_sequence(naive, model)

    def close_sequence(self, naive, model):
        model.sequence.close()
        model.sequence = None  # Hypothesis may keep the model itself
        naive.sequences.remove(model)

    @rule(cache=ANY, stream=STREAMS)
    def end(self, cache, stream):
        naive = pick(self.caches, cache)
        if naive:
            with self.tolerated():
                naive.cache.end(self.streams.said(stream))

    @rule(cache=ANY)
    def close_cache(self, cache):
        naive = pick(self.caches, cache)
        if naive:
            self.caches.remove(naive)
            naive.close()

    # What the platform does to them.

    @rule(late=st.integers(0, LATEST))
    def delay(self, late):
        self.core.delay_events(late)

    # What must be true.

    @invariant()
    def everything_is_as_it_was(self):
        self.core.check()
        for naive in self.caches:
            tail = naive.cache._tail
            stats = naive.cache.stats()
            assert stats.sequences == len(naive.sequences)
            assert stats.live_bytes == naive.live_bytes()
            assert stats.mapped_bytes >= PAGE * naive.needed_pages(tail)
            for model in naive.sequences:
                naive.compare(model)
                naive.compare_tail(model, tail)

    @invariant()
    def what_is_needed_is_kept_and_nothing_else(self):
        needed = sum(naive.needed_pages(naive.cache._tail) for naive in self.caches)
        assert self.core.stats()["kept_bytes"] == PAGE * needed

    def teardown(self):
        self.finish_work()
        self.everything_is_as_it_was()
        for naive in self.caches:
            naive.close()
        self.streams.destroy()
        self.end_pool()
        self.pool = self.core = self.streams = None
        self.own_calls.close()

    def sequence_of(self, number):
        pairs = [(naive, model) for naive in self.caches for model in naive.sequences]
        return pick(pairs, number) or (None, None)


KVCacheMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("VMM_EXAMPLES", "150")), stateful_step_count=40, deadline=None
)
TestKVCacheAgainstModel = KVCacheMachine.TestCase
