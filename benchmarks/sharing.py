"""What sequences that share pages save, and what a fork and a prefix cost, in Llama-3.1-8B's shapes.

A token takes 128 KiB: 32 layers of 8 KV heads x 128 in bf16, all side by side in one record.

- ``parallel_memory_over_ideal`` (asked: at most 1.1): 64 samples of one prompt of 4,096 tokens, each with 256
  tokens more; the physical bytes that they keep ÷ those of 4,096 + 64 x 256 tokens. Pages have the pool's
  default size; with ``_2mib`` at the end they have a GPU's. ``parallel_saved_gib`` is what the pool says that
  sharing saves, and ``parallel_samples`` says how many samples there were: fewer where memory is short.
- ``fork_4k_ms`` and ``fork_32k_ms``: ``fork(1)`` of a sequence with so many tokens, which fill whole pages,
  into a slot where nothing lies; the median. ``fork_us_per_page`` is that of 4,096 tokens ÷ the pages shared.
  ``fork_over_copy_4k`` and ``_32k`` divide by the peer. ``fork_4k_used_slot_ms`` is the same into a slot in
  which the last fork still lies and has to be unmapped first. All of them come with ``_2mib``, too.
- ``attach_adopt_us_4k``, ``attach_alias_us_4k``, ``attach_copy_us_4k``, and ``_32k``: ``open(tokens=)`` of a
  prompt of which so many tokens are found, in the way that the name says; the median. The
  cache chooses the way: one that it never chose is missing. The first alias of a cache includes the time in
  which it measures what a copy costs. With ``_over_copy`` they are divided by the peer's time for as many
  layers: fewer than 32 where memory for seven such sequences is short.
- ``step_us_256``: what ``KVCache.step`` takes for 256 sequences that share nothing and grow by a token in
  each step; the mean, beside a caller that computes, as in ``vmm bench step`` (one layer, 4 KiB a token,
  pages of 64 KiB). ``step_us_256_forked``: the same for 256 forks of one prompt; they take turns. Both have
  ``_p50`` and ``_p99``. ``step_forked_ratio`` is the second mean ÷ the first, which a single step that the
  scheduler interrupts can change much on a busy machine; ``step_forked_ratio_p50`` is that of the medians.

Peers: ``copy_4k_ms`` and ``copy_32k_ms`` are ``torch.Tensor.copy_`` of the same bytes from slot to slot, into
memory that is already there, in turns with the forks. ``without_sharing_over_ideal`` is arithmetic: what the
64 samples would take if each had its own prompt. ``skipped`` in the environment says what memory was too
short for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch

from vmm.benchmarks import sharing_attach
from vmm.benchmarks.report import Report, device_name, environment, rounded, time_once
from vmm.benchmarks.step import STEP_SECONDS, WARM_UP_STEPS, computing_until, note
from vmm.host_memory import available_bytes
from vmm.kv_cache import KVCache, Sequence
from vmm.pool import Pool

DEVICES = ("cpu", "cuda")

HEADS, DIM, ITEM_BYTES = 8, 128, 2
LAYER_BYTES = 2 * HEADS * DIM * ITEM_BYTES  # of a token in a layer
TWO_MIB = 2 * 2**20
STEP_PAGE_BYTES = 2**16
ENOUGH_BYTES = 6 * 2**30  # else there are fewer samples


@dataclass(frozen=True)
class Scale:
    layers: int = 32
    prompt: int = 4096
    samples: int = 64
    sample_tokens: int = 256
    forks: dict[str, int] = field(default_factory=lambda: {"4k": 4096, "32k": 32_768})  # tokens
    rounds: int = 8
    running: int = 256
    steps: int = 1000


FULL = Scale()


def run(progress: Callable[[str], None], device: str, scale: Scale = FULL) -> Report:
    report = Report("sharing", device_name(device), environment=environment("torch"))
    bench = _Bench(report, device, scale)
    for page_bytes in (None, TWO_MIB):
        size = "2 MiB" if page_bytes else "the default size"
        progress(f"{scale.samples} samples of one prompt, pages of {size}")
        bench.parallel(page_bytes)
        for name, tokens in scale.forks.items():
            progress(f"forks and copies of {tokens} tokens, pages of {size}")
            bench.forks(name, tokens, page_bytes)
            progress(f"prefixes of {tokens} tokens, pages of {size}")
            bench.attaches(name, tokens, page_bytes)
    progress(f"{scale.running} sequences that grow, forked or not")
    bench.steps()
    report.environment["skipped"] = ", ".join(bench.skipped) or "nothing"
    report.metrics = rounded(report.metrics.items())
    report.peers = {"peer": "torch.Tensor.copy_ from slot to slot", **rounded(bench.peers.items())}
    return report


def _available_bytes(device: str) -> int:
    return available_bytes() if device == "cpu" else torch.cuda.mem_get_info(device)[0]


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _cache(
    pool: Pool, layers: int, max_tokens: int, *, max_sequences: int, page_bytes: int | None
) -> KVCache:
    return KVCache(
        layers,
        HEADS,
        DIM,
        torch.bfloat16,
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        pool=pool,
        layout="token-major",
        layers_per_extent=layers,
        page_bytes=page_bytes,
    )


class _Bench:
    def __init__(self, report: Report, device: str, scale: Scale) -> None:
        self.metrics = report.metrics
        self.peers: dict[str, float] = {}
        self.skipped: list[str] = []
        self._layers: dict[str, int] = {}  # that were copied, by name
        self._report, self._device, self._scale = report, device, scale

    def parallel(self, page_bytes: int | None) -> None:
        scale, ending = self._scale, _ending(page_bytes)
        prompt, more, samples = scale.prompt, scale.sample_tokens, scale.samples
        if (available := _available_bytes(self._device)) < ENOUGH_BYTES:
            samples = min(samples, max(2, samples * available // ENOUGH_BYTES))
            self._skip(scale.samples, samples, f"samples{ending}")
        token_bytes = scale.layers * LAYER_BYTES
        ideal = (prompt + samples * more) * token_bytes
        budget = 2 * ideal + samples * 4 * TWO_MIB
        with (
            Pool(budget, device=self._device) as pool,
            _cache(pool, scale.layers, prompt + more, max_sequences=samples, page_bytes=page_bytes) as cache,
        ):
            origin = cache.open(prompt)
            cache.step({origin: prompt})
            sequences = [origin, *origin.fork(samples - 1)]
            for length in range(prompt + 1, prompt + more + 1):
                cache.step(dict.fromkeys(sequences, length))
            stats = pool.stats()
        self.metrics[f"parallel_memory_over_ideal{ending}"] = stats.kept_bytes / ideal
        self.metrics[f"parallel_saved_gib{ending}"] = stats.saved_bytes / 2**30
        self.metrics[f"parallel_samples{ending}"] = samples
        self.peers["without_sharing_over_ideal"] = samples * (prompt + more) * token_bytes / ideal

    def forks(self, name: str, tokens: int, page_bytes: int | None) -> None:
        scale, ending, layers = self._scale, _ending(page_bytes), self._scale.layers
        while layers > 1 and _two_and_a_half(tokens, layers) > _available_bytes(self._device):
            layers //= 2
        self._skip(scale.layers, layers, f"layers of {name}{ending}")
        self._layers[f"{name}{ending}"] = layers
        with Pool(_two_and_a_half(tokens, layers) + 64 * TWO_MIB, device=self._device) as pool:
            slots = scale.rounds + 3  # one for each fork
            with _cache(pool, layers, tokens, max_sequences=slots, page_bytes=page_bytes) as cache:
                forks, copies, pages = self._rounds(cache, tokens)
            fork, copy = statistics.median(forks), statistics.median(copies)
            self.metrics[f"fork_{name}{ending}_ms"] = 1e3 * fork
            self.peers[f"copy_{name}{ending}_ms"] = 1e3 * copy
            self.metrics[f"fork_over_copy_{name}{ending}"] = fork / copy
            if tokens == min(scale.forks.values()):
                self.metrics[f"fork_us_per_page{ending}"] = 1e6 * fork / pages
                with _cache(pool, layers, tokens, max_sequences=3, page_bytes=page_bytes) as cache:
                    forks, _, _ = self._rounds(cache, tokens)
                self.metrics[f"fork_{name}_used_slot{ending}_ms"] = 1e3 * statistics.median(forks)

    def attaches(self, name: str, tokens: int, page_bytes: int | None) -> None:
        layers, ending = self._scale.layers, _ending(page_bytes)
        each = tokens * LAYER_BYTES
        while layers > 1 and sharing_attach.PARTS * each * layers > _available_bytes(self._device):
            layers //= 2
        self._skip(self._scale.layers, layers, f"layers of prefixes of {name}{ending}")
        budget = sharing_attach.PARTS * each * layers + 64 * TWO_MIB
        with Pool(budget, device=self._device) as pool:
            most = sharing_attach.SEQUENCES
            found = sharing_attach.attach_seconds(
                lambda: _cache(pool, layers, tokens + 16, max_sequences=most, page_bytes=page_bytes),
                tokens,
                min(3, self._scale.rounds),
                lambda: _synchronize(self._device),
            )
        copy = self.peers[f"copy_{name}{ending}_ms"] * 1e3 * layers / self._layers[f"{name}{ending}"]
        for way, seconds in found.items():
            self.metrics[f"attach_{way}_us_{name}{ending}"] = 1e6 * seconds
            self.metrics[f"attach_{way}_over_copy_{name}{ending}"] = 1e6 * seconds / copy

    def _rounds(self, cache: KVCache, tokens: int) -> tuple[list[float], list[float], int]:
        """The seconds of ``fork(1)``, and those of a copy of the same bytes into another sequence's slot; and
        how many pages a fork shares. The first round does not count."""
        origin, target = cache.open(tokens), cache.open(tokens)
        cache.step({origin: tokens, target: tokens})
        source, destination = _bytes_of(origin, tokens), _bytes_of(target, tokens)
        source.fill_(1)
        forks, copies, pages = [], [], 0
        made: list[Sequence] = []

        def fork() -> None:
            made.extend(origin.fork(1))
            _synchronize(self._device)

        def copy() -> None:
            destination.copy_(source)
            _synchronize(self._device)

        for _ in range(1 + self._scale.rounds):
            _synchronize(self._device)
            forks.append(time_once(fork))
            pages = cache.pool.stats().saved_bytes // cache._page_bytes
            copies.append(time_once(copy))
            made.pop().close()
            cache.end()  # nothing reads the fork's slot any more
            cache.step({origin: tokens, target: tokens})
        return forks[1:], copies[1:], pages

    def steps(self) -> None:
        scale, device, prompt = self._scale, self._device, self._scale.prompt
        page_bytes = STEP_PAGE_BYTES if device == "cpu" else None
        count, more = scale.running, scale.steps + WARM_UP_STEPS + 64
        growth = count * (more * LAYER_BYTES + 2 * (page_bytes or TWO_MIB))
        while prompt > 64 and 2 * growth + (count + 1) * prompt * LAYER_BYTES > _available_bytes(device):
            prompt //= 2
        self._skip(scale.prompt, prompt, "tokens of the prompt in step_us_256")
        with (
            Pool(growth + count * prompt * LAYER_BYTES, device=device) as apart_pool,
            Pool(growth + prompt * LAYER_BYTES, device=device) as forked_pool,
            _cache(apart_pool, 1, prompt + more, max_sequences=count, page_bytes=page_bytes) as apart,
            _cache(forked_pool, 1, prompt + more, max_sequences=count, page_bytes=page_bytes) as forked,
        ):
            own = []
            for _ in range(count):
                own.append(apart.open(prompt))
                apart.step({own[-1]: prompt})
            origin = forked.open(prompt)
            forked.step({origin: prompt})
            arms = [_Arm(apart, own), _Arm(forked, [origin, *origin.fork(count - 1)])]
            due = perf_counter()
            for number in range(-WARM_UP_STEPS, scale.steps):
                for arm in arms if number % 2 else arms[::-1]:
                    due += STEP_SECONDS
                    computing_until(due)
                    arm.step(counts=number >= 0)
        for name, arm in zip(("step_us_256", "step_us_256_forked"), arms, strict=True):
            note(self._report, name, arm.seconds)
            self.metrics[f"{name}_p50"] = 1e6 * statistics.median(arm.seconds)
        for ending in ("", "_p50"):
            forked, apart_us = (
                self.metrics[f"step_us_256_forked{ending}"],
                self.metrics[f"step_us_256{ending}"],
            )
            self.metrics[f"step_forked_ratio{ending}"] = forked / apart_us

    def _skip(self, wanted: int, left: int, what: str) -> None:
        if left < wanted:
            self.skipped.append(f"{wanted - left} of {wanted} {what}")


def _ending(page_bytes: int | None) -> str:
    return "_2mib" if page_bytes == TWO_MIB else ""


def _two_and_a_half(tokens: int, layers: int) -> int:
    """The bytes of two and a half sequences: of the one that is forked, of the one that is copied to, and
    what else there is."""
    return 5 * tokens * layers * LAYER_BYTES // 2


def _bytes_of(sequence: Sequence, tokens: int) -> torch.Tensor:
    """All layers of the sequence's tokens, which lie side by side, as one flat tensor."""
    k = sequence.cache.kv(0)[0]
    record = k.stride(1)
    return k.as_strided((tokens * record,), (1,), k.storage_offset() + sequence.slot * k.stride(0))


class _Arm:
    """Sequences that grow by a token in each step. Their pages end at different steps."""

    def __init__(self, cache: KVCache, sequences: list[Sequence]) -> None:
        self._cache = cache
        self._slots = torch.tensor([each.slot for each in sequences], dtype=torch.int32)
        tokens_a_page = STEP_PAGE_BYTES // LAYER_BYTES
        self._lengths = sequences[0].length + torch.arange(len(sequences), dtype=torch.int32) % tokens_a_page
        self.seconds: list[float] = []

    def step(self, counts: bool) -> None:
        self._lengths += 1
        seconds = time_once(lambda: self._cache.step(self._slots, self._lengths))
        if counts:
            self.seconds.append(seconds)
