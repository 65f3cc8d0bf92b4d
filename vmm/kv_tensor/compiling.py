"""What torch.compile is told of KVTensor: that its methods are no part of a graph."""

from __future__ import annotations

from types import FunctionType

import torch

_REASON = "vmm.KVTensor maps memory where it is touched, which no graph can hold: each use is a graph break"


def keep_out_of_graphs(cls: type) -> None:
    """Makes each call of the methods of ``cls`` a graph break that names the reason, or an error where no
    break is allowed. ``torch.compiler.disable`` would do the same, but imports the compiler and costs every
    call."""
    for attribute in vars(cls).values():
        function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
        if isinstance(function, FunctionType):
            function._torchdynamo_disable = True  # type: ignore[attr-defined]
            function._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
            _skip(function)


def _skip(function: FunctionType) -> None:
    """Keeps the compiler from starting a graph inside the function. This uses parts of torch whose names may
    change; without them compiled code is slower, not wrong."""
    frames = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    try:
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)  # type: ignore[union-attr]
        frames.set_code_exec_strategy(function.__code__, strategy)  # type: ignore[union-attr]
    except (AttributeError, TypeError):
        return
