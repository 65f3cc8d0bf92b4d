"""Asks libcuda what there is. A script, for a process of its own: initialising CUDA poisons later forks, and
a broken driver may hang or crash.

Prints one JSON object a line, each as soon as it is known, so that what was found before a hang or a crash
is not lost. Imports nothing of vmm: it runs isolated, in 20 ms.
"""

import ctypes
import json
import sys
from typing import Any


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def error_name(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    try:
        known = library.cuGetErrorName(code, ctypes.byref(name)) == 0
    except AttributeError:
        known = False
    return name.value.decode() if known and name.value else f"error {code}"


def succeeded(library: ctypes.CDLL, call: str, *arguments: Any) -> bool:
    """Whether the call returned CUDA_SUCCESS; says so otherwise."""
    code = getattr(library, call)(*arguments)
    if code != 0:
        say(failed=call, code=code, error=error_name(library, code))
    return bool(code == 0)


def path_of(library: str) -> str | None:
    """Where the loaded library lies: a toolkit's stub has the driver's name."""
    stem = library.partition(".so")[0]
    with open("/proc/self/maps") as maps:
        return next((line.split(maxsplit=5)[5].strip() for line in maps if f"/{stem}.so" in line), None)


def describe(library: ctypes.CDLL, number: int) -> dict[str, Any] | None:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if not succeeded(library, "cuDeviceGet", ctypes.byref(device), number):
        return None
    if not succeeded(library, "cuDeviceGetName", name, len(name), device):
        return None
    if not succeeded(library, "cuDeviceTotalMem_v2", ctypes.byref(size), device):
        return None
    return {"name": name.value.decode(errors="replace"), "memory_bytes": size.value}


def probe(name: str) -> None:
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        say(load_error=str(error))
        return
    say(library=path_of(name))
    version, count = ctypes.c_int(), ctypes.c_int()
    try:
        if succeeded(library, "cuDriverGetVersion", ctypes.byref(version)):
            say(version=version.value)
        if succeeded(library, "cuInit", 0) and succeeded(library, "cuDeviceGetCount", ctypes.byref(count)):
            devices = [describe(library, number) for number in range(count.value)]
            say(devices=[device for device in devices if device is not None])
    except AttributeError as error:
        say(failed="dlsym", code=None, error=str(error))


if __name__ == "__main__":
    probe(sys.argv[1])
