"""The check of libcuda. Only a pool made for a GPU uses it yet, so nothing found here is an error."""

import json
import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from vmm.doctor import cuda_probe
from vmm.doctor.report import Facts, Finding
from vmm.sharing import OLD_DEVICES_FAULT, TRIED_CAPABILITY, on_wsl2
from vmm.units import format_bytes

_LIBRARY = "libcuda.so.1"
_SECONDS = 20.0  # a driver without persistence mode initialises eight GPUs in about ten
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Windows's subsystem for it
_FROM_LIBCUDA = ("library", "load_error", "version", "devices", "failed", "code", "error")
_UNKNOWN: Facts = dict.fromkeys((*_FROM_LIBCUDA, "bindings", "bindings_error", "ended"))
_NOT_USED = "not used yet but by a pool made for it, and not yet measured on a GPU"
_WORDS = {"gpu_direct_rdma": "RDMA", "posix_fd_handles": "shareable by file descriptor"}
_INSTALL = "pip install 'kvmm[cuda]'"
_LOOK = "see nvidia-smi and CUDA_VISIBLE_DEVICES; it does not matter to the CPU"


def libcuda(facts: Facts) -> Finding:
    folder = _bindings_folder()
    facts["wsl2"] = on_wsl2()
    said = facts["cuda"] = _ask(_LIBRARY, _SECONDS, folder)
    if said["load_error"] is not None:
        return _not_loaded(said["load_error"])
    where = f"{said['library'] or _LIBRARY}{_version(said)}"
    if said["ended"] is not None:
        return Finding("warning", f"{where}: {said['ended']}", _LOOK)
    if said["failed"] is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        note = "" if visible is None else f", CUDA_VISIBLE_DEVICES={visible!r}"
        return Finding("warning", f"{where}: {said['failed']} failed: {said['error']}{note}", _LOOK)
    if not said["devices"]:
        return Finding("warning", f"{where}: no device", _LOOK)
    if said["bindings_error"] is not None:
        found = f"{where}: cuda-bindings cannot read the devices' attributes: {said['bindings_error']}"
        return Finding("warning", found, f"{_INSTALL}, in a version that fits this driver")
    note = "" if folder is not None else f"; {_INSTALL} to see attributes"
    if facts["wsl2"]:
        note += "; WSL2: arenas are twice the budget, and RDMA may be promised and not kept"
    return _devices(where, said["devices"], note)


def _devices(where: str, devices: list[Facts], note: str) -> Finding:
    listed = ", ".join(_described(device) for device in devices)
    lacking = [device["name"] for device in devices if device.get("virtual_memory") is False]
    if lacking:
        found = f"{where}: {listed}; no virtual memory management on {', '.join(lacking)}"
        return Finding("warning", found, "make pools for another device: vmm cannot use such a GPU")
    old = [device["name"] for device in devices if _is_old(device)]
    if old:
        found = f"{where}: {listed}; compute capability of {', '.join(old)}: {OLD_DEVICES_FAULT}{note}"
        return Finding("warning", found, "make pools for another device")
    return Finding("ok", f"{where}: {len(devices)} device(s), {_NOT_USED}: {listed}{note}")


def _is_old(device: Facts) -> bool:
    major, _, minor = (device.get("compute_capability") or "").partition(".")
    return major.isdecimal() and 10 * int(major) + int(minor or 0) < TRIED_CAPABILITY


def _described(device: Facts) -> str:
    parts = [format_bytes(device["memory_bytes"])]
    if device.get("compute_capability") is not None:
        parts.append(f"compute capability {device['compute_capability']}")
    if device.get("granularity_bytes") is not None:
        parts.append(f"pages of {format_bytes(device['granularity_bytes'])} and more")
    if device.get("peers"):
        parts.append(f"peers {', '.join(f'cuda:{peer}' for peer in device['peers'])}")
    for name, word in _WORDS.items():
        if device.get(name):
            parts.append(word)
    return f"{device['name']} ({', '.join(parts)})"


def _bindings_folder() -> str | None:
    """The folder on Python's path that cuda-bindings is in, which is not imported here: it loads libcuda."""
    with suppress(ImportError, ValueError):
        spec = find_spec("cuda.bindings")
        if spec is not None and spec.origin is not None:
            return str(Path(spec.origin).parents[2])
    return None


def _not_loaded(reason: str) -> Finding:
    present = [path for path in _DEVICE_FILES if Path(path).exists()]
    if present:
        advice = "install NVIDIA's driver, or start the container with --gpus all; not needed for the CPU"
        return Finding("warning", f"{present[0]} is there, but: {reason}", advice)
    if "No such file" not in reason:
        return Finding("warning", reason, "reinstall NVIDIA's driver; not needed for the CPU")
    return Finding("ok", f"not there ({reason}); not needed for the CPU")


def _version(said: Facts) -> str:
    version = said["version"]
    return "" if version is None else f", CUDA {version // 1000}.{version % 1000 // 10}"


def _ask(library: str, seconds: float, bindings_folder: str | None) -> Facts:
    """_UNKNOWN with what the probe said in at most ``seconds``; in "ended", how it was cut short."""
    # Imported here because `import vmm` must stay quick.
    import subprocess

    command = [sys.executable, "-I", "-S", cuda_probe.__file__, library]
    process = subprocess.Popen(
        command if bindings_folder is None else [*command, bindings_folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    ended = None
    try:
        output, complaints = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = f"no answer in {seconds:g} s"
        process.kill()
        try:
            output, complaints = process.communicate(timeout=1)
        except subprocess.TimeoutExpired as stuck:  # inside the kernel: it dies when that lets go
            output, complaints = stuck.output or b"", b""
    finally:
        if process.returncode is None:
            process.kill()
    said = _parse(output)
    done = said.pop("done", False)
    if ended is None and (process.returncode != 0 or not done):
        ended = _death(process.returncode, complaints)
    return {**_UNKNOWN, **said, "ended": ended and f"{ended} {_stage(said)}"}


def _parse(output: bytes) -> Facts:
    """The probe's lines; not those that libcuda may print, nor one that the end cut short."""
    said: Facts = {}
    for line in output.splitlines():
        with suppress(ValueError):
            found = json.loads(line)
            said.update(found if isinstance(found, dict) else {})
    return said


def _stage(said: Facts) -> str:
    if "bindings" in said:
        return "in reading attributes through cuda-bindings"
    if "devices" in said:
        return "after listing the devices"
    if "version" in said:
        return "in cuInit or in listing the devices"
    return "in cuDriverGetVersion" if "library" in said else "in loading it"


def _death(code: int, complaints: bytes) -> str:
    last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"{how} ({last})" if last else how
