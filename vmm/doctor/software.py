"""Checks of what is installed beside vmm. Nothing is imported: metadata answers in milliseconds, torch in
seconds."""

import operator
import platform
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import vmm
from vmm.doctor.report import Facts, Finding

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_DISTRIBUTION = "kvmm"  # the project's name in pyproject.toml; the package's is vmm
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*([0-9][\w.+!-]*)\s*")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def vmm_itself(facts: Facts) -> Finding:
    installed = _installed(_DISTRIBUTION)
    facts["vmm"] = {"version": vmm.__version__, "path": vmm.__file__}
    found = f"{vmm.__version__} ({vmm.__file__})"
    if installed is None:
        advice = "pip install it: without metadata nobody knows which torch and transformers fit"
        return Finding("warning", f"{found}, not installed as {_DISTRIBUTION}", advice)
    if installed.version != vmm.__version__:
        return Finding(
            "warning", f"{found}, but {_DISTRIBUTION} {installed.version} is installed", "reinstall it"
        )
    return Finding("ok", found)


def python(facts: Facts) -> Finding:
    version = platform.python_version()
    installed = _installed(_DISTRIBUTION)
    supported = installed.metadata["Requires-Python"] if installed is not None else None
    facts["python"] = _versions(version, supported)
    return _judge(facts["python"], f"use Python {supported}")


def torch(facts: Facts) -> Finding:
    finding = _optional("torch", facts)
    installed = _installed("torch")
    if installed is None:
        return finding
    cuda = facts["torch"]["cuda"] = _cuda_of_torch(installed)
    build = {None: "of an unknown build", "none": "built without CUDA"}.get(cuda, f"built for CUDA {cuda}")
    return finding._replace(found=f"{finding.found}, {build}")


def transformers(facts: Facts) -> Finding:
    return _optional("transformers", facts)


def _optional(name: str, facts: Facts) -> Finding:
    """Judges a package that VmmCache needs and vmm's pools do not."""
    installed, supported = _installed(name), _supported(name)
    facts[name] = _versions(None if installed is None else installed.version, supported)
    return _judge(facts[name], f"pip install '{name}{supported or ''}'")


def _versions(version: str | None, supported: str | None) -> Facts:
    fits = None if version is None or supported is None else in_range(version, supported)
    return {"version": version, "supported": supported, "in_range": fits}


def _judge(versions: Facts, advice: str) -> Finding:
    version, supported = versions["version"], versions["supported"]
    if version is None:
        return Finding("warning", "not installed; not needed by vmm.Pool", advice)
    if supported is None:
        return Finding("ok", f"{version} (which versions are supported is not declared)")
    if versions["in_range"]:
        return Finding("ok", f"{version} (supported: {supported})")
    return Finding("warning", f"{version}, not a supported version ({supported})", advice)


def _installed(name: str) -> "Distribution | None":
    # Imported here because `import vmm` must stay quick.
    from importlib import metadata

    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _supported(name: str) -> str | None:
    """The range of versions that this installation of vmm declares, like "<6,>=5.17"."""
    installed = _installed(_DISTRIBUTION)
    clauses: set[str] = set()
    for requirement in (None if installed is None else installed.requires) or ():
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[1] == name:
            clauses.update(clause.strip() for clause in match[2].split(",") if clause.strip())
    return ",".join(sorted(clauses, reverse=True)) or None


def in_range(version: str, supported: str) -> bool:
    """Whether ``version`` meets every clause of ``supported``, by release numbers alone: "2.11.0a0+git", as
    vendors name their builds of 2.11, counts as 2.11. Raises ValueError for a clause it does not know."""
    for clause in supported.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ValueError(f"{clause!r} is not a clause like '>=2.11'")
        if not _COMPARE[match[1]](_release(version), _release(match[2])):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)", version)
    if match is None:
        raise ValueError(f"{version!r} is not a version")
    numbers = [int(number) for number in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:  # 2.11 is 2.11.0
        numbers.pop()
    return tuple(numbers)


def _cuda_of_torch(installed: "Distribution") -> str | None:
    """The CUDA version torch was built for, "none", or None when its files do not say."""
    try:
        with open(str(installed.locate_file("torch/version.py"))) as file:
            match = re.search(r"^cuda\b[^=]*=\s*(?:None|['\"]([\d.]*)['\"])", file.read(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else match[1] or "none"
