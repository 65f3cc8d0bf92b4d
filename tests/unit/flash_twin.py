"""What torch's FlashAttention does with slots of one long tensor, in float32: it runs on a GPU only."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def flash_twin(  # noqa: PLR0917 - as torch has it
    query,
    key,
    value,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    return_debug_mask,
    *,
    seqused_k,
):
    """The arguments of aten._flash_attention_forward that the recipe uses."""
    assert (dropout_p, return_debug_mask) == (0.0, False)
    assert {t.dtype for t in (cum_seq_q, cum_seq_k, seqused_k)} == {torch.int32}
    assert len(cum_seq_q) == len(cum_seq_k) == len(seqused_k) + 1
    assert max(seqused_k) <= max_k
    assert key.stride(-1) == value.stride(-1) == 1
    out = torch.empty_like(query)
    for at, length in enumerate(seqused_k.tolist()):
        first = int(cum_seq_k[at])
        queries = slice(int(cum_seq_q[at]), int(cum_seq_q[at + 1]))
        assert queries.stop - queries.start <= max_q
        q = query[queries]
        k, v = (each[first : first + length] for each in (key, value))
        heads_first = (each.transpose(0, 1).float()[None] for each in (q, k, v))
        seen = scaled_dot_product_attention(*heads_first, is_causal=is_causal, enable_gqa=True)
        out[queries] = seen[0].transpose(0, 1).to(out.dtype)
    return (out,)
