"""Devices by name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``."""

import os
import sys

from vmm.errors import Forked, InvalidArgument

#: Whether the CPU can touch a GPU's pages. That is true only of the stand-in for libcuda that the tests run
#: on (tests/cuda_standin.py), which sets it.
cuda_host_accessible = False

_importing_process = os.getpid()


def parsed_device(device: object) -> tuple[str, int]:
    """The device's full name, and the CUDA device's number or -1 for the CPU. Raises InvalidArgument for what
    names no device, and Forked for torch's current GPU in a forked child."""
    kind, _, number = str(device).partition(":")
    if kind == "cpu" and number in {"", "0"}:
        return "cpu", -1
    if kind == "cuda" and (number == "" or number.isdecimal()):
        ordinal = int(number) if number else _current_cuda_device()
        return f"cuda:{ordinal}", ordinal
    raise InvalidArgument(f"device is {str(device)!r}; expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …")


def _current_cuda_device() -> int:
    """torch's current device in this thread; the first device where torch is not loaded, for vmm does not
    import it to ask."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    try:
        return int(torch.cuda.current_device())
    except RuntimeError as error:
        if os.getpid() == _importing_process:
            raise
        raise Forked(f"device='cuda' in a forked child: {error}") from error
