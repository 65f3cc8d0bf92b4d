"""What torch.compile is told of KVTensor: that its methods are no part of a graph."""

from __future__ import annotations

from types import FunctionType

from torch._C._dynamo import eval_frame

_REASON = "vmm.KVTensor maps memory where it is touched, which no graph can hold: each use is a graph break"


def keep_out_of_graphs(cls: type) -> None:
    """Makes each call of the methods of ``cls`` a graph break that names the reason, or an error where none
    is allowed. Like ``torch.compiler.disable``, which imports the compiler and costs every call."""
    for attribute in vars(cls).values():
        function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
        if isinstance(function, FunctionType):
            function._torchdynamo_disable = True  # type: ignore[attr-defined]
            function._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
            eval_frame.set_code_exec_strategy(function.__code__, _SKIP)


_SKIP = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
