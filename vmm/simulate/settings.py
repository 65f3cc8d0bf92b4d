"""What is simulated: a model on a GPU, and how it is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from vmm.arguments import checked_page_bytes
from vmm.errors import InvalidArgument
from vmm.records import LayerShape, Records, fewest_extents, slot_elements, token_major
from vmm.simulate.gpus import CallTimes, Gpu
from vmm.simulate.models import Model
from vmm.units import format_bytes

MEMORY_FRACTION = 0.9  # of the GPU's: vLLM's default gpu_memory_utilization
GRANULARITY_BYTES = 2**21  # of a GPU's pages
WORKSPACE_BYTES = 2**30  # activations and graphs; assumed
WATERMARK = 0.01  # of the KV memory, free after a sequence is admitted beside others: vLLM V0's


@dataclass(frozen=True)
class Settings:
    """The GPU has ``memory_bytes``, a sequence at most ``max_tokens``, and an iteration computes at most
    ``batch_tokens`` (2,048: vLLM's default for serving on an A100). Raises InvalidArgument for what cannot be
    served."""

    model: Model
    gpu: Gpu
    memory_bytes: int
    max_tokens: int
    call_times: CallTimes
    max_sequences: int = 256
    batch_tokens: int = 2048
    page_bytes: int = 2**21
    layers_per_extent: int = 0  # at most; 0: as many as a KVCache on a GPU takes by default
    warm_bytes: int = 0  # of K and V's memory, created before the first request: Pool.warm
    first_tokens_known: bool = True  # KVCache's first_tokens is batch_tokens; else it learns them
    kv_bytes: int = field(init=False)  # what is left of the memory for K and V

    def __post_init__(self) -> None:
        model, layers = self.model, self.layers_per_extent
        for name in ("max_tokens", "max_sequences", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.batch_tokens <= self.max_sequences:
            raise InvalidArgument(
                f"batch_tokens is {self.batch_tokens}; expected more than max_sequences, "
                f"{self.max_sequences}, so that prompts go on beside those that decode"
            )
        if not 0 <= layers <= model.layers:
            raise InvalidArgument(
                f"layers_per_extent is {layers}; expected 1 to {model.layers}, or 0 for KVCache's own choice"
            )
        if self.warm_bytes < 0:
            raise InvalidArgument(f"warm_bytes is {self.warm_bytes}; expected 0 or more")
        checked_page_bytes(self.page_bytes, GRANULARITY_BYTES)
        left = int(self.memory_bytes * MEMORY_FRACTION) - model.weight_bytes - WORKSPACE_BYTES
        if left < len(self.records_bytes) * self.page_bytes:
            raise InvalidArgument(
                f"memory is {format_bytes(self.memory_bytes)}: {model.name} needs more than "
                f"{format_bytes((model.weight_bytes + WORKSPACE_BYTES) / MEMORY_FRACTION)}"
            )
        object.__setattr__(self, "kv_bytes", left - left % self.page_bytes)

    @cached_property
    def _records(self) -> Records:
        shapes = [LayerShape(self.model.kv_heads, self.model.head_dim)] * self.model.layers
        if self.layers_per_extent:
            return token_major(shapes, self.layers_per_extent)
        return fewest_extents(
            shapes,
            lambda records: slot_elements(records, self.max_tokens, self.model.dtype_bytes, self.page_bytes),
        )

    @property
    def records_bytes(self) -> list[int]:
        """The bytes of a token's record in each extent of a sequence."""
        return [part.record * self.model.dtype_bytes for part in self._records.parts]

    @property
    def layers(self) -> list[int]:
        """How many layers are in each extent of a sequence."""
        return [
            part.record // (2 * self.model.kv_heads * self.model.head_dim) for part in self._records.parts
        ]

    @property
    def roofline(self) -> tuple[float, ...]:
        """The bytes and operations of an iteration, and their speeds, as ``_core.Replay`` wants them. The
        formula is in csrc/simulate/roofline.h and docs/simulate.md."""
        model, gpu = self.model, self.gpu
        looked_up = 0 if model.tied_embeddings else model.vocab * model.hidden  # not multiplied with
        return (
            model.weight_bytes,
            model.kv_bytes_per_token,
            2.0 * (model.parameters - looked_up),
            4.0 * model.layers * model.heads * model.head_dim,
            gpu.bandwidth_bytes_per_s,
            gpu.flops_per_s,
            gpu.launch_us * 1e-6,
        )
