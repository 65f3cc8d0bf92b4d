"""Steps of a KVCache against the naive model: what a step does, and what fits where one is refused."""

import cuda_standin
import pytest
from cuda_standin import ON_CUDA
from naive_sequences import UNWRITTEN
from own_pool import int32
from pool_machine import PoolMachine

from vmm import DriverError, Error, OutOfPages

LATEST = 5  # queries that an event may be late by


class StepMachine(PoolMachine):
    """``pool`` and its ``core``; its ``streams`` by name; on CUDA ``cuda``, this thread's own calls, and the
    ``reports`` of misuse that the stand-in had at first. ``written`` counts the tokens that were written.
    ``by_sequence``: how the caches are told of a step. ``commits``: whether others may begin with what a step
    has computed."""

    def step_once(self, naive, chosen, grown, stream, write):
        """With, if pages run out, those that are said to fit; and one more, which must not."""
        handle = self.streams.handle(stream)
        try:
            self.core_step(naive, chosen, grown, stream)
        except OutOfPages as error:
            self.step_fitting(naive, chosen, grown, stream, error.fitting)
            return
        except DriverError:
            assert self.failing
            return
        except Error as error:
            if "end it there first" not in str(error):
                raise
            self.finish_work()
            self.core_step(naive, chosen, [0] * len(chosen), stream)
            for model in chosen:
                naive.grow(model, 0)
            return
        for model, count in zip(chosen, grown, strict=True):
            start = len(model.tokens)
            naive.grow(model, count)
            numbers = list(range(self.written, self.written + count))
            self.written += count
            model.tokens += [UNWRITTEN] * count
            if write and count and ON_CUDA:
                if model.stream not in (None, handle):
                    self.cuda.do("cuStreamSynchronize", model.stream)  # an engine's own dependency
                model.stream = handle
                naive.launch(model, start, numbers, handle)
            elif write:
                naive.write(model, start, numbers)
                model.tokens[start:] = numbers
            if self.commits:
                naive.commit(model, len(model.tokens))

    def core_step(self, naive, chosen, grown, stream):
        """By sequences, or by slots: then those that fit are slots, too."""
        lengths = [len(model.tokens) + count for model, count in zip(chosen, grown, strict=True)]
        sequences, said = [model.sequence for model in chosen], self.streams.said(stream)
        if self.by_sequence and sequences:
            try:
                naive.cache.step(dict(zip(sequences, lengths, strict=True)), stream=said)
            except OutOfPages as error:
                error.fitting = tuple(sequence.slot for sequence in error.fitting)
                raise
        else:
            naive.cache.step(int32(*(sequence.slot for sequence in sequences)), int32(*lengths), said)

    def step_fitting(self, naive, chosen, grown, stream, fitting):
        growth = {model.sequence.slot: (model, count) for model, count in zip(chosen, grown, strict=True)}
        assert [slot for slot in growth if slot in fitting] == list(fitting)
        self.everything_is_as_it_was()
        if self.failing:
            return
        assert len(fitting) < len(growth)
        # Over a lowered budget pages that are free, but owed, may serve one more than is said.
        if self.core.stats()["created_bytes"] <= self.core.budget.limit_bytes:
            self.refuse_one_more(naive, growth, stream, fitting)
        if fitting:
            models, counts = zip(*(growth[slot] for slot in fitting), strict=True)
            self.core_step(naive, models, counts, stream)
            for model, count in zip(models, counts, strict=True):
                naive.grow(model, count)
                model.tokens += [UNWRITTEN] * count

    def refuse_one_more(self, naive, growth, stream, fitting):
        order = list(growth)
        refused = next(slot for slot in order if slot not in fitting)
        before = order[: order.index(refused)]
        with pytest.raises(OutOfPages) as caught:
            self.core_step(naive, *zip(*(growth[slot] for slot in (*before, refused)), strict=True), stream)
        assert list(caught.value.fitting) == before
        del caught

    def finish_work(self):
        self.recover()
        self.core.delay_events(0)
        if ON_CUDA:
            cuda_standin.loaded().sync_all()
            assert cuda_standin.loaded().reports == self.reports, cuda_standin.loaded().last_report
        for stream in (*self.streams.made, 0):
            self.core.end(stream)
        for _ in range(10 * LATEST):  # a poll asks once
            self.core.poll()
