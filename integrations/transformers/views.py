"""What a layer shows of its K and V."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


class CacheView(torch.Tensor):
    """The live part of a layer's K or V, as models and callers see it: ``[batch, heads, length, dim]``.

    It is an ordinary tensor, but its storage spans addresses where nothing is mapped, and the stock deepcopy
    and pickle would walk through them. Here they copy what the view shows, and they do so for the usual views
    of it (_VIEWS), too; rarer ones are plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self._compact()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._compact().__reduce_ex__(protocol)

    def _compact(self) -> torch.Tensor:
        return self.detach().as_subclass(torch.Tensor).clone()


def _stays_a_cache_view(name: str) -> Callable[..., CacheView]:
    method = getattr(torch.Tensor, name)

    @functools.wraps(method)
    def view(self: CacheView, *args: Any, **kwargs: Any) -> CacheView:
        return method(self, *args, **kwargs).as_subclass(CacheView)

    return view


# This is not done by __torch_function__, because attention itself would pay for that.
_VIEWS = "__getitem__ detach expand narrow permute select squeeze transpose unsqueeze view"
for _name in _VIEWS.split():
    setattr(CacheView, _name, _stays_a_cache_view(_name))
