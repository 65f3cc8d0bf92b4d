"""The engine in simulated time: traces of requests, served on GPUs that are not there."""

from vmm.simulate.allocators import ALLOCATORS, SHARING_PREFIXES
from vmm.simulate.gpus import GPUS, CallTimes, Gpu, find_gpu, read_call_times
from vmm.simulate.models import PRESETS, Model, find_model, read_config
from vmm.simulate.replay import Replayed, Sample, replay
from vmm.simulate.settings import Settings
from vmm.simulate.traces import Request, Trace, read_trace

__all__ = [
    "ALLOCATORS",
    "GPUS",
    "PRESETS",
    "SHARING_PREFIXES",
    "CallTimes",
    "Gpu",
    "Model",
    "Replayed",
    "Request",
    "Sample",
    "Settings",
    "Trace",
    "find_gpu",
    "find_model",
    "read_call_times",
    "read_config",
    "read_trace",
    "replay",
]
