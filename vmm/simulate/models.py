"""Models as a simulation sees them: the sizes of their weights, and of what a token leaves in the KV cache.

The shapes below are those of each model's config.json, at ``source``. Some of those files need an account,
so all were checked in public copies; tests/simulation/test_presets.py compares the computed parameters with
the published counts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.errors import InvalidArgument


@dataclass(frozen=True)
class Model:
    """A dense decoder with grouped key/value heads and gated MLPs. Numbers are counts, but for
    ``dtype_bytes``: bytes of one number, in the weights and in the cache alike.

    ``max_tokens``: the longest context. ``window``: tokens that some layers look back, None where all layers
    see everything; it is noted only, nothing here gets smaller by it. ``source``: where the shape is from.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_tokens: int
    dtype_bytes: int
    tied_embeddings: bool
    window: int | None
    source: str

    @property
    def parameters(self) -> int:
        """Computed: the embeddings (once if tied, else twice); of each layer q, k, v and o, the MLP's three
        matrices and two norms; one norm at the end. Left out: biases (of Qwen2's q, k, v) and further norms
        (Gemma's), under 0.01 % of these models."""
        embeddings = (1 if self.tied_embeddings else 2) * self.vocab * self.hidden
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return embeddings + self.layers * layer + self.hidden

    @property
    def weight_bytes(self) -> int:
        """The bytes of all parameters."""
        return self.parameters * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """The bytes of the keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


def _preset(
    repository: str,
    shape: tuple[int, int, int, int, int, int],
    vocab: int,
    max_tokens: int,
    *,
    tied: bool = False,
    window: int | None = None,
) -> Model:
    """Served in bfloat16. ``shape``: layers, hidden, intermediate, heads, kv_heads, head_dim."""
    name = repository.split("/")[1].lower()
    source = f"https://huggingface.co/{repository}/blob/main/config.json"
    return Model(name, *shape, vocab, max_tokens, 2, tied, window, source)


_PRESETS = (
    _preset("meta-llama/Llama-3.1-8B", (32, 4096, 14336, 32, 8, 128), 128256, 131072),
    _preset("meta-llama/Llama-3.1-70B", (80, 8192, 28672, 64, 8, 128), 128256, 131072),
    _preset("meta-llama/Llama-3.2-1B", (16, 2048, 8192, 32, 8, 64), 128256, 131072, tied=True),
    _preset("Qwen/Qwen2.5-7B", (28, 3584, 18944, 28, 4, 128), 152064, 131072),
    _preset("Qwen/Qwen2.5-32B", (64, 5120, 27648, 40, 8, 128), 152064, 131072),
    _preset("mistralai/Mistral-7B-v0.3", (32, 4096, 14336, 32, 8, 128), 32768, 32768),
    _preset("google/gemma-2-9b", (42, 3584, 14336, 16, 8, 256), 256000, 8192, tied=True, window=4096),
)
PRESETS: dict[str, Model] = {model.name: model for model in _PRESETS}


def find_model(name: str) -> Model:
    """The preset of that name, in any case. Raises InvalidArgument, naming the known ones."""
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise InvalidArgument(f"model is {name!r}; expected one of {', '.join(PRESETS)}") from None


_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
_OTHER_KINDS = {  # of keys with a value, what they tell
    r"n(um)?_.*experts|moe_.*": "a mixture of experts",
    r"kv_lora_rank": "latent attention (MLA)",
    r"(mamba|ssm|linear_(num|key|value|conv))_.*": "layers with a state in place of a cache",
    r"num_kv_shared_layers": "layers that share a cache",
    r"quantization_config": "quantized weights",
}
_UNGATED = {"gpt_neox", "phi", "starcoder2", "nemotron", "falcon", "opt"}  # two matrices an MLP, not three
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def read_config(path: Path) -> Model:
    """The model of a config.json as Transformers writes it; its name is that of the folder.

    What may be absent: ``head_dim`` is then hidden_size ÷ heads, the dtype bfloat16, and embeddings are tied
    in Gemma only, as in Transformers. Raises InvalidArgument, naming the file and the keys, for what is no
    such file, for missing and impossible values, and for other kinds of models: mixtures of experts, latent
    attention, state-space layers, known ungated MLPs, quantized weights.
    """
    config = read_object(path)
    _refuse_other_kinds(path, config)
    if missing := [key for key in _COUNTS if config.get(key) is None]:
        nested = "; give its text_config in a file of its own" if "text_config" in config else ""
        raise InvalidArgument(f"{path} has no {', '.join(missing)}{nested}")
    layers, hidden, intermediate, heads, kv_heads, vocab, tokens = (
        _count(path, config, key) for key in _COUNTS
    )
    if heads % kv_heads:
        raise InvalidArgument(f"{path}: {heads} heads are no multiple of num_key_value_heads, {kv_heads}")
    is_gemma = str(config.get("model_type")).startswith("gemma")
    own_dim = config.get("head_dim") is not None
    if not own_dim and hidden % heads:
        raise InvalidArgument(f"{path} has no head_dim, and hidden_size is no multiple of its {heads} heads")
    return Model(
        name=path.resolve().parent.name,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_count(path, config, "head_dim") if own_dim else hidden // heads,
        vocab=vocab,
        max_tokens=tokens,
        dtype_bytes=_dtype_bytes(path, config),
        tied_embeddings=bool(config.get("tie_word_embeddings", is_gemma)),
        window=_window(path, config),
        source=str(path),
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InvalidArgument, naming the file, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise InvalidArgument(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} is a JSON {type(found).__name__}; expected an object")
    return found


def _refuse_other_kinds(path: Path, config: dict[str, Any]) -> None:
    for pattern, kind in _OTHER_KINDS.items():
        if keys := [key for key, value in config.items() if value and re.fullmatch(pattern, key)]:
            raise InvalidArgument(f"{path} has {', '.join(keys)}: {kind}, which is not simulated")
    if (model_type := str(config.get("model_type"))) in _UNGATED:
        raise InvalidArgument(f"{path}: model_type is {model_type!r}: MLPs without a gate are not simulated")


def _count(path: Path, config: dict[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"{path}: {key} is {value!r}; expected a positive integer")
    return value


def _dtype_bytes(path: Path, config: dict[str, Any]) -> int:
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"  # the older name is the second
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise InvalidArgument(f"{path}: dtype is {dtype!r}; expected one of {', '.join(_BYTES)}")
    return _BYTES[dtype]


def _window(path: Path, config: dict[str, Any]) -> int | None:
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return None  # Qwen's configs state a window that they then do not use
    return _count(path, config, "sliding_window")
