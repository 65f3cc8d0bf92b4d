"""The pool: physical memory under a budget, shared by every cache and tensor of a device."""

import atexit
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from vmm import _core
from vmm.closing import Closing
from vmm.errors import InvalidArgument
from vmm.host_memory import available_bytes
from vmm.units import format_bytes, parse_bytes

logger = logging.getLogger("vmm")
logger.addHandler(logging.NullHandler())

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_DEFAULT_FRACTION = 0.5  # of available memory: the rest is for weights, activations and everybody else

_names = itertools.count()
# The CPU can touch a GPU's pages: true only of the stand-in that the tests run on (tests/cuda_standin.py).
_cuda_host_accessible = False
_open_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. Sizes in bytes, times in nanoseconds; counters run from the pool's start."""

    budget_bytes: int
    created_bytes: int  #: physical memory taken from the budget: mapped or free
    peak_created_bytes: int
    free_bytes: int  #: created, but mapped nowhere
    mapped_bytes: int
    kept_bytes: int  #: mapped and needed
    reclaimable_bytes: int  #: mapped, but needed by nobody: look-ahead, and what finished caches left mapped
    reservations_leased: int
    reservations_idle: int
    retirements_waiting: int
    runs: int
    stalls: int  #: times a caller waited because the pager was not ahead
    stall_ns: int
    pages_mapped_ahead: int  #: by the pager
    pages_mapped_waiting: int  #: while a caller waited
    pages_created: int
    pages_released: int
    pages_unmapped: int
    pages_zeroed: int
    reservations_adopted: int  #: recycled whole, still mapped
    reservations_made: int
    driver_failures: int


class Pool(Closing):
    """Physical pages under a budget, with a pager thread that maps ahead of whatever grows.

    ``budget`` is the most physical memory the pool may hold: bytes, or text like ``"12GiB"``; by default
    ``VMM_BUDGET``, else half of the memory now available (machine and cgroup, or the GPU's free memory).
    ``lookahead_pages`` are kept mapped beyond the end of every growing extent. ``device`` is ``"cpu"``, or a
    GPU: ``"cuda"`` (the first), ``"cuda:1"``, or such a torch.device.

    Raises InvalidArgument for a budget that does not parse or exceeds the machine's memory, DriverError when
    the system has no memfd. Every method is safe from any thread; after ``close`` and in a forked child they
    raise Closed and Forked.
    """

    def __init__(
        self,
        budget: int | str | None = None,
        *,
        device: object = "cpu",
        lookahead_pages: int = 1,
    ) -> None:
        self.device, ordinal = _parsed_device(device)
        if not 0 <= lookahead_pages < 2**16:
            raise InvalidArgument(f"lookahead_pages is {lookahead_pages}; expected 0 to 65535")
        self._ordinal = ordinal
        self._core = _core.Pool(
            _budget_bytes(budget, ordinal),
            name=f"vmm-{next(_names)}",
            lookahead_pages=lookahead_pages,
            cuda_device=ordinal,
            cuda_host_accessible=_cuda_host_accessible,
        )
        self._runs_late = ordinal >= 0 and not _cuda_host_accessible  # torch's work there outlasts its calls
        self._watched_streams: set[int] = set()  # see stream.torch_stream
        self._streams_ended = 0  # when that was last right
        _open_pools.add(self)

    @property
    def budget_bytes(self) -> int:
        """The most physical memory this pool may hold. Lowering it gives back what nobody needs, soon."""
        return self._core.budget.limit_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget: int | str) -> None:
        self._core.budget.set_limit(_budget_bytes(budget, self._ordinal))

    @property
    def default_page_bytes(self) -> int:
        """The page size the driver is best at: 64 KiB on the host, 2 MiB on a GPU."""
        return self._core.default_page_bytes

    @property
    def closed(self) -> bool:
        return self._core.closed

    def stats(self) -> PoolStats:
        """A snapshot of sizes and counters."""
        self._forward_log()
        return PoolStats(**self._core.stats())

    def check(self) -> None:
        """Validates the engine's tables; raises InvariantViolation. For tests: it is slow."""
        self._core.check()

    def trim(self, wanted: int | str | None = None) -> int:
        """Gives memory that nobody needs back to the system: all of it, or at least ``wanted`` bytes if there
        are so many. Waits for work under way that may still use it. Returns the bytes given back."""
        return self._core.trim(2**62 if wanted is None else parse_bytes(wanted, "wanted"))

    def close(self) -> None:
        """Stops the pager and gives back what nobody uses. Tensors over the pool's memory stay valid, and
        their memory is given back when they die. Closing twice does nothing."""
        self._forward_log()
        self._core.close()

    def __repr__(self) -> str:
        if self._core.in_child:
            return "<vmm.Pool of the parent process>"
        state = "closed" if self.closed else f"budget {format_bytes(self.budget_bytes)}"
        return f"<vmm.Pool {self.device}, {state}>"

    def _forward_log(self) -> None:
        # The pager must not need the GIL, so what it has to say waits here for the next visitor.
        for level, text in self._core.drain_log():
            logger.log(_LEVELS[level], text)

    # What integrations stand on.

    def reserve(
        self, *, page_bytes: int, extent_bytes: int, extents: int, stream: int | None = None
    ) -> "_core.Lease":
        """Address space for ``extents`` pieces of ``extent_bytes``, recycled and still mapped if possible.
        ``stream``: where it will be used first, so that it need not wait for what is there now."""
        return self._core.reserve(
            page_bytes=page_bytes, extent_bytes=extent_bytes, extents=extents, stream=stream
        )

    def growth(self, parts: Sequence[tuple["_core.Lease", int, int, int]]) -> "_core.Growth":
        """What grows in lockstep: (lease, first extent, extents, bytes a token) each."""
        return _core.Growth(self._core, list(parts))


_defaults: dict[str, Pool] = {}  # by device
_default_budgets: dict[str, int | str | None] = {}
_default_lock = threading.Lock()


def configure(*, budget: int | str | None = None, device: object = "cpu") -> None:
    """Sets the budget of a device's default pool: now, if there is one, and of those to come. ``None`` is
    ``VMM_BUDGET``, else half of the available memory. Raises InvalidArgument; then nothing has changed."""
    name, ordinal = _parsed_device(device)
    budget_bytes = _budget_bytes(budget, ordinal)
    with _default_lock:
        _default_budgets[name] = budget
        if (pool := _defaults.get(name)) is not None and not pool._core.in_child and not pool.closed:
            pool._core.budget.set_limit(budget_bytes)


def default_pool(device: object = "cpu") -> Pool:
    """The pool that a device's caches and tensors share when none is named: see ``configure``. Made on first
    use; remade after ``close`` or a fork. Safe from any thread."""
    name, _ = _parsed_device(device)
    with _default_lock:
        pool = _defaults.get(name)
        if pool is None or pool._core.in_child or pool.closed:
            pool = _defaults[name] = Pool(_default_budgets.get(name), device=name)
        return pool


def checked_pool(pool: object, device: object) -> Pool:
    """``pool``, which must be one, and on ``device`` unless that is None. Raises InvalidArgument."""
    if not isinstance(pool, Pool):
        raise InvalidArgument(f"pool is {pool!r}; expected a vmm.Pool")
    if device is not None and _parsed_device(device)[0] != pool.device:
        raise InvalidArgument(f"device is {device}; the pool is on {pool.device}")
    return pool


def _parsed_device(device: object) -> tuple[str, int]:
    """The device's name, and the CUDA device's number or -1."""
    kind, _, number = str(device).partition(":")
    if kind == "cpu" and number in {"", "0"}:
        return "cpu", -1
    if kind == "cuda" and (number == "" or number.isdecimal()):
        return f"cuda:{int(number or 0)}", int(number or 0)
    raise InvalidArgument(f"device is {str(device)!r}; expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …")


def _budget_bytes(budget: int | str | None, ordinal: int) -> int:
    argument = "budget"
    if budget is None:
        budget = os.environ.get("VMM_BUDGET")
        argument = "VMM_BUDGET"
    available = available_bytes() if ordinal < 0 else _core.cuda_free_bytes(ordinal)
    if budget is None:
        return max(2**20, int(available * _DEFAULT_FRACTION))
    count = parse_bytes(budget, argument)
    if count > available:
        raise InvalidArgument(
            f"{argument} is {format_bytes(count)}; expected at most {format_bytes(available)},"
            " the memory available now"
        )
    return count


@atexit.register
def _close_all() -> None:
    for pool in list(_open_pools):
        if not pool._core.in_child:
            pool.close()


def _forget_lock_of_parent() -> None:
    global _default_lock  # noqa: PLW0603
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock_of_parent)
