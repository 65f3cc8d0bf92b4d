"""Every operation of torch's dispatcher that writes to a tensor, on a KVTensor, past __torch_function__."""

from typing import Any

import torch
from isolated import each

import vmm

SHAPE = (3, 512, 4)  # 8 KiB a row: two pages, of which the first has something


def _tensors(pool: vmm.Pool) -> tuple[Any, torch.Tensor]:
    ours, plain = vmm.KVTensor(*SHAPE, page_bytes=4096, pool=pool), torch.zeros(SHAPE)
    for tensor in (ours, plain):
        tensor[:, :5] = torch.arange(60.0).view(3, 5, 4)
    return ours, plain


def _argument(kind: str, name: str, shape: tuple[int, ...]) -> Any:
    """Something that fits, often enough."""
    indices = torch.zeros(shape, dtype=torch.int64)
    ones = torch.ones(shape, dtype=torch.bool if "mask" in name or "condition" in name else None)
    known = {
        "Tensor": indices if "ind" in name else ones,
        "List[Tensor]": [ones],
        "List[Optional[Tensor]]": [torch.tensor([1, 2])],
        "bool": False,
        "float": 0.5,
        "str": "sum",
    }
    if kind.startswith("Optional") or kind in {"Generator", "NoneType"}:
        return None
    return known.get(kind, [] if kind.startswith("List[") else 1)


def writing() -> list[Any]:
    """Every operation that writes to an argument that is a tensor, or a list of them."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        if space != "aten":
            continue
        packet, _, overload = rest.partition(".")
        try:
            func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        except AttributeError:
            continue
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            found.append(func)
    return found


def _called(func: Any, tensor: Any, shape: tuple[int, ...]) -> Any:
    args, kwargs = [], {}
    for argument in func._schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        kind = str(argument.type)
        if written:
            value = [tensor] if kind.startswith("List") else tensor
        elif argument.has_default_value() and not argument.kwarg_only:
            value = argument.default_value
        else:
            value = _argument(kind, argument.name, shape)
        if argument.kwarg_only:
            if written or not argument.has_default_value():
                kwargs[argument.name] = value
        else:
            args.append(value)
    return func(*args, **kwargs)


def _in_vmap(func: Any, tensor: Any) -> Any:
    def on_row(row: Any) -> Any:
        _called(func, row, SHAPE[1:])
        return row

    return torch.vmap(on_row)(tensor)


WAYS = {"called": lambda func, tensor: _called(func, tensor, SHAPE), "vmap": _in_vmap}


# What we refuse though torch does it on a plain tensor, by the reason.
REFUSED = {
    "gives the tensor another memory": {"set_", "set_data"},
    # Of out=, which torch resizes with a warning where it can, and of foreach's kin. Ours count tokens.
    "gives the tensor another number of elements, or another shape by out=": None,
}


def _agrees(case: tuple[str, Any]) -> str:
    way, func = case
    name = func._schema.name.partition("::")[2]
    with vmm.Pool("16MiB", lookahead_pages=0) as pool:
        ours, plain = _tensors(pool)
        errors = []
        for tensor in (plain, ours):
            torch.manual_seed(1)
            try:
                WAYS[way](func, tensor)
            except Exception as error:
                errors.append(error)
            else:
                errors.append(None)
        if errors[0] is None and errors[1] is None:
            assert ours.shape == plain.shape
            assert torch.equal(ours.isnan(), plain.isnan())
            assert torch.equal(ours.nan_to_num(), plain.nan_to_num())
        elif errors[0] is None:
            resized = plain.shape != SHAPE and not name.endswith("_")
            assert resized or name in REFUSED["gives the tensor another memory"], errors[1]
        pool.check()
        return "refused" if any(errors) else "agrees"


def _on_plain(case: tuple[str, Any]) -> str:
    WAYS[case[0]](case[1], torch.zeros(SHAPE))
    return "done"


# Random numbers, other shapes, tensors on one another; _weight_norm_interface shows what was not initialised.
_NOT_COMPARABLE = ("_fused", "empty", "resize", "random", "dropout", "_weight_norm_interface")


def _cases(way: str) -> list[tuple[str, Any]]:
    found = [f for f in writing() if not any(part in f._schema.name for part in _NOT_COMPARABLE)]
    if way == "vmap":  # it has no rule for any out=
        found = [f for f in found if not any(argument.is_out for argument in f._schema.arguments)]
    return [(way, func) for func in found]


def check(way: str) -> None:
    cases = _cases(way)
    said = dict(zip(cases, each(_agrees, cases), strict=True))
    wrong = [case for case in cases if said[case] not in {"agrees", "refused"}]
    # What ends the process with a plain tensor, too, is torch's own.
    on_plain = each(_on_plain, wrong)
    ours = [case for case, told in zip(wrong, on_plain, strict=True) if not told.startswith("ended by")]
    assert not ours, "\n".join(f"{func} {way}\n{said[way, func][-600:]}" for way, func in ours)
    assert sum(each == "agrees" for each in said.values()) > len(cases) / 3  # or the arguments fit too rarely
