"""What the attention benchmark measures: models, batches and contexts, and what of it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 2**20
ITEM_BYTES = 2  # bfloat16
BLOCK_TOKENS = 16  # of the paged peer


@dataclass(frozen=True)
class Model:
    """The attention of a model: https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json and
    Llama-3.1-70B's."""

    name: str
    layers: int
    q_heads: int
    kv_heads: int
    dim: int

    def record_bytes(self, layers: int) -> int:
        """K and V of one token."""
        return layers * 2 * self.kv_heads * self.dim * ITEM_BYTES


@dataclass(frozen=True)
class Shape:
    """``batch`` sequences of ``context`` tokens: one new token each (decode), or all of them (prefill)."""

    phase: str
    batch: int
    context: int

    @property
    def name(self) -> str:
        context = f"{self.context // 1024}k" if self.context % 1024 == 0 else str(self.context)
        return f"b{self.batch}_{context}"

    @property
    def tokens(self) -> int:
        return self.batch * self.context

    @property
    def queries(self) -> int:
        """Of each sequence."""
        return 1 if self.phase == "decode" else self.context


@dataclass(frozen=True)
class Scale:
    """How large everything is: FULL on a GPU, tiny in tests. ``measured_layers`` of a model are attended to
    in turn, and only they are held where a layout allows it. ``flush_bytes`` are overwritten before each
    repetition, because in a whole model the weights of a layer pass through the cache in between."""

    models: tuple[Model, ...]
    decode_batches: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    prefill_contexts: tuple[int, ...]
    page_bytes: tuple[int, ...]
    measured_layers: int
    flush_bytes: int
    rounds: int  # at most, of each arm
    shape_s: float  # for all arms of a shape and a kernel
    longest_s: float  # for a shape that takes more than that
    total_s: float
    checked_scores: int  # keys times queries up to which float32 arithmetic is compared with, too
    spare_bytes: int  # of the GPU: queries and outputs of the longest prompt, the flush, torch itself

    def shapes(self) -> Iterator[Shape]:
        for context in self.decode_contexts:
            for batch in self.decode_batches:
                yield Shape("decode", batch, context)
        for context in self.prefill_contexts:
            yield Shape("prefill", 1, context)


LLAMA_8B = Model("8b", layers=32, q_heads=32, kv_heads=8, dim=128)
LLAMA_70B = Model("70b", layers=80, q_heads=64, kv_heads=8, dim=128)

FULL = Scale(
    models=(LLAMA_8B, LLAMA_70B),
    decode_batches=(1, 16, 64),
    decode_contexts=(1024, 4096, 16_384, 32_768, 131_072),
    prefill_contexts=(1024, 8192, 32_768, 131_072),
    page_bytes=(2 * MIB, 16 * MIB),
    measured_layers=4,
    flush_bytes=1024 * MIB,
    rounds=30,
    shape_s=1.0,
    longest_s=6.0,
    total_s=110,
    checked_scores=2**20,
    spare_bytes=12 * 1024 * MIB,
)

#: Groups of layers in one record; ALL is as many as the model has.
ALL = 0
GROUPS = {"G1": 1, "G4": 4, "Gall": ALL}


def held_bytes_per_token(model: Model, measured_layers: int) -> int:
    """Of all that a comparison holds at once: torch.empty's, KVTensor's, the groups', the paged peer's."""
    measured = model.record_bytes(measured_layers)
    small = sum(1 for group in GROUPS.values() if group != ALL)
    return (3 + small) * measured + model.record_bytes(model.layers)


def split_by_memory(scale: Scale, model: Model, free_bytes: int) -> tuple[list[Shape], list[Shape]]:
    """The shapes that fit into the free memory but for what is spared, and those that do not."""
    room = max(0, free_bytes - scale.spare_bytes)
    most = room // held_bytes_per_token(model, scale.measured_layers)
    fitting = [shape for shape in scale.shapes() if shape.tokens <= most]
    return fitting, [shape for shape in scale.shapes() if shape.tokens > most]
