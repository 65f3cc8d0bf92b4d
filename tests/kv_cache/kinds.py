"""Shapes and layouts of caches, by name."""

import torch

# Records of 3 heads x 5 or of differing layers, which straddle pages.
KINDS = {
    "all layers": {"layers": 3, "kv_heads": 3, "head_dim": 5, "dtype": torch.float32, "layers_per_extent": 3},
    "pairs": {
        "layers": 3,
        "kv_heads": (3, 1, 2),
        "head_dim": (5, 7, 12),
        "dtype": torch.float32,
        "layers_per_extent": 2,
    },
    "each": {"layers": 2, "kv_heads": 3, "head_dim": 5, "dtype": torch.float32, "layers_per_extent": 1},
    "heads": {"layers": 1, "kv_heads": (3,), "head_dim": 15, "dtype": torch.float32, "layout": "head-major"},
    "bfloat16": {"layers": 2, "kv_heads": 3, "head_dim": 40, "dtype": torch.bfloat16, "layers_per_extent": 2},
    "windows": {
        "layers": 3,
        "kv_heads": (3, 2, 3),
        "head_dim": (5, 12, 5),
        "dtype": torch.float32,
        "window": (40, None, 40),
        "layers_per_extent": 3,
    },
    "window": {"layers": 1, "kv_heads": 2, "head_dim": 60, "dtype": torch.bfloat16, "window": 12},
    "float16": {"layers": 1, "kv_heads": 2, "head_dim": 90, "dtype": torch.float16, "layout": "head-major"},
}
