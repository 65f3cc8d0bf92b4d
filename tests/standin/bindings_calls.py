"""The conformance scenarios' calls through cuda-bindings: NVIDIA's own package as a second caller.

What a scenario says in C (answers by reference, structures) is said again in the package's way. NULL where an
answer or a list goes cannot be said there: such a call goes by ctypes, and is named in ``by_ctypes``.
"""

import ctypes
import functools
from typing import Any

from cuda.bindings import driver
from cuda_calls import Access, Cuda, Location, Properties

_STRUCTURES = {
    Properties: driver.CUmemAllocationProp,
    Access: driver.CUmemAccessDesc,
    Location: driver.CUmemLocation,
}
_REFERENCE = type(ctypes.byref(ctypes.c_int()))
_OTHER_NAMES = {"cuGraphInstantiateWithFlags": "cuGraphInstantiate", "get": "cuGetProcAddress"}
# Where the package wants an enumeration and no number: which of the arguments, answers not counted.
_ENUMERATIONS = {
    "cuPointerGetAttribute": (0, driver.CUpointer_attribute),
    "cuMemExportToShareableHandle": (1, driver.CUmemAllocationHandleType),
}


class BindingsCuda(Cuda):
    """As Cuda, on the libcuda that is loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        self.by_ctypes: set[str] = set()
        for name, by_ctypes in list(vars(self).items()):
            if name.startswith("cu") or name == "get":
                setattr(self, name, functools.partial(self._call, name, by_ctypes))

    def _call(self, name: str, by_ctypes: Any, *arguments: Any) -> int:
        """The CUresult. What else the package answers goes where the references point."""
        answers = [argument._obj for argument in arguments if _is_answer(argument)]
        given = [_given(argument) for argument in arguments if not _is_answer(argument)]
        if name == "cuThreadExchangeStreamCaptureMode":  # the one that is asked and answered in one place
            given = [answers[0].value]
        elif name == "get":
            given.pop()  # the last one is for an answer that the package always gives
        elif name == "cuMemSetAccess":
            given[2] = [given[2]]
        if name in _ENUMERATIONS:
            at, kind = _ENUMERATIONS[name]
            given[at] = kind(given[at])
        try:
            result, *found = getattr(driver, _OTHER_NAMES.get(name, name))(*given)
        except TypeError:  # NULL is one argument too many, or no list
            self.by_ctypes.add(name)
            return by_ctypes(*arguments)
        for answer, value in zip(answers, found, strict=False):
            answer.value = 0 if value is None else int(value)
        return int(result)


def _is_answer(argument: Any) -> bool:
    return isinstance(argument, _REFERENCE) and type(argument._obj) not in _STRUCTURES


def _given(argument: Any) -> Any:
    if isinstance(argument, _REFERENCE):
        structure = _STRUCTURES[type(argument._obj)]()
        ctypes.memmove(structure.getPtr(), ctypes.addressof(argument._obj), ctypes.sizeof(argument._obj))
        return structure
    if isinstance(argument, ctypes.Array):
        return ctypes.addressof(argument)
    return argument.value if isinstance(argument, ctypes.c_void_p) else argument
