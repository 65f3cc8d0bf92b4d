"""What vmm finds where it is installed, what it will use, and what to change: ``vmm doctor`` in Python.

A check is a function that adds to the facts and answers a Finding; a new one is a line in _CHECKS.
"""

from collections.abc import Callable

from vmm.doctor import cuda, machine, software
from vmm.doctor.report import Check, Facts, Finding, Report

__all__ = ["Check", "Report", "verify_installation"]

_CHECKS: tuple[tuple[str, Callable[[Facts], Finding]], ...] = (
    ("vmm", software.vmm_itself),
    ("python", software.python),
    ("host driver", machine.host_driver),
    ("device", machine.device),
    ("pages", machine.pages),
    ("mappings", machine.mappings),
    ("memlock", machine.locked_memory),
    ("file size", machine.file_size),
    ("address space", machine.address_space),
    ("memory", machine.memory),
    ("cgroup", machine.cgroup),
    ("budget", machine.budget),
    ("libcuda", cuda.libcuda),
    ("torch", software.torch),
    ("transformers", software.transformers),
)


def verify_installation() -> Report:
    """Inspects this process, machine and installation, and tries the host driver from end to end.

    Takes a tenth of a second, and up to 20 s where a CUDA driver is slow to start (it is asked in a process
    of its own: this one stays without CUDA). Holds 128 KiB of memory meanwhile and leaves nothing behind.
    Safe from any thread. A check that fails becomes an error line with its reason; nothing is raised.
    """
    facts: Facts = {"driver": None}
    checks = tuple(_run(name, check, facts) for name, check in _CHECKS)
    return Report(facts["driver"], checks, facts)


def _run(name: str, check: Callable[[Facts], Finding], facts: Facts) -> Check:
    try:
        finding = check(facts)
    except Exception as error:
        finding = Finding("error", f"could not be found out: {type(error).__name__}: {error}")
    return Check(name, *finding)
