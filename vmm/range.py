"""A range of addresses that shows as one tensor, and the blocks of a paged engine in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm import _core
from vmm.arguments import checked_number, chosen_page_bytes
from vmm.closing import Closing
from vmm.errors import Closed, InvalidArgument
from vmm.stream import release_after, torch_stream
from vmm.units import parse_bytes, rounded_up

if TYPE_CHECKING:
    import torch

    from vmm.pool import Pool
    from vmm.tenant import Tenant

_MOST = 2**62


class Range(Closing):
    """One reservation of ``pool``: addresses without memory, until `blocks` get some. `Pool.range` makes it.

    Every method is safe from any thread. After ``close``, or after the pool's, methods raise Closed; in a
    forked child they raise Forked.
    """

    def __init__(
        self,
        pool: Pool,
        size: int | str,
        page_bytes: int | None,
        *,
        zeroed: bool,
        tenant: Tenant | None = None,
    ) -> None:
        page = chosen_page_bytes(page_bytes, pool)
        self.size_bytes = rounded_up(parse_bytes(size, "size"), page)  #: whole pages
        self.pool = pool
        self.tenant = tenant  #: whom it belongs to
        owner = 0 if tenant is None else tenant._core.id
        self._core = _core.Range(
            pool._core, size=self.size_bytes, page_bytes=page, zeroed=zeroed, tenant=owner
        )
        torch_stream(pool)  # what is dropped waits for torch's work

    @property
    def address(self) -> int:
        """Where it begins. It never changes."""
        return self._core.lease.address

    @property
    def page_bytes(self) -> int:
        return self._core.lease.page_bytes

    @property
    def mapped_bytes(self) -> int:
        """Physical memory now mapped here: what blocks need, and what dropped ones have left."""
        return self._core.lease.mapped_bytes

    def tensor(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole range as one tensor of ``dtype`` (default: torch.uint8) with one dimension, mapped or
        not. Make views of it with ``view`` and ``as_strided``; it keeps the addresses, but no page.

        Only what lies in kept blocks may be touched. Elsewhere, on a GPU, both reading and writing fault. On
        the host writing there ends the process, and so does reading, unless the range was made ``zeroed``:
        then it reads as zeros. Whatever looks at all elements (``print``, ``sum``,
        ``torch.save`` of a view) does so here, too. `copy.deepcopy` and pickling of this tensor are refused;
        ``clone()`` the parts that you want.

        Raises InvalidArgument for what is no dtype, or one that DLPack has not, and Closed.
        """
        import torch

        from vmm.dlpack import DTYPES, tensor_over
        from vmm.uncopied import refuse_copies

        self._require_open()
        dtype = torch.uint8 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
            raise InvalidArgument(f"dtype is {dtype!r}; expected a torch.dtype, like torch.bfloat16")
        tensor = tensor_over(self._core.lease, dtype, (self.size_bytes // dtype.itemsize,), (1,))
        return refuse_copies(tensor)

    def blocks(self, starts: Sequence[int], stride: int, count: int) -> Blocks:
        """Says where an engine's blocks lie. Block ``i`` of ``count`` has ``stride`` bytes in each of some
        stretches: those from ``start + i * stride`` on for every ``start`` of ``starts``, bytes from the
        range's address on. For example there is one stretch for the K and one for the V of each layer.

        Blocks need not divide pages, nor do stretches: neighbours may share one, which is needed as long as
        any of them is. Where starts differ by whole pages, a call costs the same however many there are.

        Raises InvalidArgument unless every block lies inside the range, and Closed.
        """
        self._require_open()
        try:
            checked = [checked_number(f"starts[{i}]", start, 0, _MOST) for i, start in enumerate(starts)]
        except TypeError:
            raise InvalidArgument(f"starts is {starts!r}; expected a list of bytes") from None
        checked_number("stride", stride, 1, _MOST)
        checked_number("count", count, 1, 2**31 - 1)
        return Blocks(self, self._core.blocks(checked, stride, count))

    def close(self) -> None:
        """Drops all blocks and gives their memory back, once the work until now is over. Tensors over the
        range keep its addresses, but must not be touched any more. A second call does nothing."""
        if not self._core.ended:
            torch_stream(self.pool)
            self._core.end()

    def _require_open(self) -> None:
        if self._core.ended:
            raise Closed("this range is closed")

    def __repr__(self) -> str:
        state = "closed" if self._core.ended else f"{self.size_bytes} bytes in pages of {self.page_bytes}"
        return f"<vmm.Range {state}>"


class Blocks:
    """The blocks of a paged engine, which names them by number. `Range.blocks` makes it.

    ``ids`` are int32 and contiguous, on the CPU: a NumPy array, an ``array.array("i")``, a memoryview, or the
    ``numpy()`` of a torch tensor. A list of integers is slower. They may come in any order, and more than
    once. To keep what is kept, to announce what is announced or kept, and to drop what is neither changes
    nothing. Every method is safe from any thread, raises InvalidArgument for an id that is none, and Closed
    and Forked as the range does; a call that raises has done nothing. A Blocks that dies drops all.
    """

    def __init__(self, range_: Range, core: _core.Blocks) -> None:
        self.range = range_
        self._core = core

    def keep(self, ids: Any) -> None:
        """Keeps these blocks. When this returns, all their pages are there, and stay. What is missing is
        mapped while the caller waits, which counts as a stall: announce it before. All or nothing. Raises
        OutOfPages and DriverError."""
        self._core.keep(ids)

    def keep_ready(self, ids: Any) -> list[int]:
        """Keeps those of the blocks whose pages are all there. Maps nothing and does not wait. Returns the
        ids that are kept, in the order given."""
        return self._core.keep_ready(ids)

    def announce(self, ids: Any) -> None:
        """Says that these will be kept soon. The pager maps their pages as soon as nothing that is needed
        more has the memory. Who announces a block again asks the pager to look again."""
        self._core.announce(ids)

    def drop(self, ids: Any, *, stream: Any = None, unmap: bool = False, whole_device: bool = False) -> None:
        """Ends the need for these, kept or announced. Pages that no block needs stay mapped for whoever keeps
        them again, until somebody else needs the memory or the pool's ``idle_seconds`` are over; with
        ``unmap`` they are unmapped now. Either happens only once the work is over that may touch them: the
        pool's, and what is on ``stream`` until now (a vmm.Stream, a CUDA stream, or its handle).

        With ``whole_device`` it waits instead for everything that this process has given the device until
        now, on whatever stream, also what other libraries have put on streams of theirs. On a GPU that needs
        CUDA 12.5 (``cuCtxRecordEvent``; else it raises InvalidArgument), and it must not be called while any
        stream of the device is being captured into a graph: CUDA then breaks that capture, and this raises
        an error, with nothing dropped."""
        pool = self.range.pool
        if not whole_device:
            torch_stream(pool)
            release_after(pool, stream)
        self._core.drop(ids, unmap, whole_device)

    def ready(self, ids: Any) -> bytes:
        """For each id 1 where all its pages are there now, else 0."""
        return self._core.ready(ids)

    @contextmanager
    def scratch(self, ids: Any) -> Iterator[None]:
        """Lets an engine's warm-up write into these blocks, although nobody has kept them: while the ``with``
        lasts, each of their pages that has no memory shows one page, the same for all. What is written there
        is lost, and what is read is anybody's; pages that have memory keep it. Then the work until now is
        waited for.

        Meanwhile keeping a block there that is not ready raises InvalidArgument, and what is announced waits.
        Raises InvalidArgument for blocks in another scratch, or with pages that are still being unmapped;
        OutOfPages for lack of that one page, and MappingLimit (on the host each place is a mapping of the
        process). The end raises Error while a KVCache's epoch is open on the pool, and DriverError; then the
        scratch lasts until the range is closed."""
        torch_stream(self.range.pool)
        scratch = self._core.scratch(ids)
        try:
            yield
        finally:
            torch_stream(self.range.pool)
            scratch.end()

    @property
    def kept_blocks(self) -> int:
        return self._core.kept

    @property
    def announced_blocks(self) -> int:
        """Announced, and not kept."""
        return self._core.announced
