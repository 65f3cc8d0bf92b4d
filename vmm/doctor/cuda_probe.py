"""Asks libcuda what there is. A script, for a process of its own: initialising CUDA poisons later forks, and
a broken driver may hang or crash.

Prints one JSON object a line, each as soon as it is known, so that what was found before a hang or a crash
is not lost; a later line's facts replace an earlier one's, and the last line is {"done": true}. Imports
nothing of vmm: it runs isolated, in 20 ms. Where it is given the folder that cuda-bindings is in, it asks for
the devices' attributes through that, after all else.
"""

import ctypes
import importlib
import json
import sys
from typing import Any

# What a device can do, by our name for it and CUDA's, less CU_DEVICE_ATTRIBUTE_.
ABILITIES = {
    "virtual_memory": "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED",
    "posix_fd_handles": "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED",
    "gpu_direct_rdma": "GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED",
    "fabric_handles": "HANDLE_TYPE_FABRIC_SUPPORTED",
    "host_virtual_memory": "HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED",
    "host_numa_virtual_memory": "HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED",
}


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


def peers_of(library: ctypes.CDLL, number: int, count: int) -> list[int] | None:
    """The devices that can reach this one's memory: those that a pool there can have for its peers. None
    where the driver does not say."""
    own, other, reaches = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    found = []
    library.cuDeviceGet(ctypes.byref(own), number)
    for peer in range(count):
        if peer == number:
            continue
        library.cuDeviceGet(ctypes.byref(other), peer)
        if library.cuDeviceCanAccessPeer(ctypes.byref(reaches), other, own) != 0:
            return None
        found += [peer] * bool(reaches.value)
    return found


def attribute(driver: Any, name: str, device: Any) -> int | None:
    """The attribute, or None where the bindings or the driver are too old to know it."""
    asked = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}", None)
    if asked is None:
        return None
    code, value = driver.cuDeviceGetAttribute(asked, device)
    return int(value) if code == 0 else None


def granularity(driver: Any, number: int, which: str) -> int | None:
    """The granularity of the device's own memory, in bytes."""
    what = driver.CUmemAllocationProp()
    what.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    what.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    what.location.id = number
    option = getattr(driver.CUmemAllocationGranularity_flags, f"CU_MEM_ALLOC_GRANULARITY_{which}")
    code, size = driver.cuMemGetAllocationGranularity(what, option)
    return int(size) if code == 0 else None


def attributes(driver: Any, number: int) -> dict[str, Any]:
    code, device = driver.cuDeviceGet(number)
    if code != 0:
        raise RuntimeError(f"cuDeviceGet({number}) failed: {code.name}")
    major, minor = (attribute(driver, f"COMPUTE_CAPABILITY_{part}", device) for part in ("MAJOR", "MINOR"))
    found: dict[str, Any] = {"compute_capability": None if major is None else f"{major}.{minor}"}
    for name, asked in ABILITIES.items():
        value = attribute(driver, asked, device)
        found[name] = None if value is None else bool(value)
    found["host_numa_id"] = attribute(driver, "HOST_NUMA_ID", device)
    for name, which in (("granularity_bytes", "MINIMUM"), ("recommended_granularity_bytes", "RECOMMENDED")):
        found[name] = granularity(driver, number, which) if found["virtual_memory"] else None
    return found


def probe_attributes(folder: str, devices: dict[int, dict[str, Any]]) -> None:
    """Adds to the devices, by number, what cuda-bindings from ``folder`` says of each."""
    sys.path.append(folder)
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        say(bindings=sys.modules["cuda.bindings"].__version__)
        for number, device in devices.items():
            device.update(attributes(driver, number))
            say(devices=list(devices.values()))
    except Exception as error:  # whatever a package that does not fit the driver may raise
        say(bindings_error=f"{type(error).__name__}: {error}")


def probe(name: str, bindings_folder: str | None = None) -> None:
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        say(load_error=str(error))
        return
    say(library=path_of(name))
    version, count = ctypes.c_int(), ctypes.c_int()
    devices = {}
    try:
        if succeeded(library, "cuDriverGetVersion", ctypes.byref(version)):
            say(version=version.value)
        if succeeded(library, "cuInit", 0) and succeeded(library, "cuDeviceGetCount", ctypes.byref(count)):
            for number in range(count.value):
                if (device := describe(library, number)) is not None:
                    devices[number] = {**device, "peers": peers_of(library, number, count.value)}
            say(devices=list(devices.values()))
    except AttributeError as error:
        say(failed="dlsym", code=None, error=str(error))
    if bindings_folder is not None and devices:
        probe_attributes(bindings_folder, devices)


if __name__ == "__main__":
    probe(*sys.argv[1:])
    say(done=True)
