"""Whatever a cache holds is in the cache that is made from its file, in any layout."""

import os
import tempfile
from array import array
from contextlib import ExitStack
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_cache import await_copies

from vmm import InvalidArgument, KVCache, Pool

MOST = 700  # tokens
SLOTS = 6
BLOCK = 16

CACHES = st.fixed_dictionaries(
    {
        "kv_heads": st.sampled_from([1, 2, [1, 3]]),
        "head_dim": st.sampled_from([8, 16, [32, 8]]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
        "window": st.sampled_from([None, None, [None, 50], 40]),
    }
)
LAYOUTS = st.sampled_from(["head-major", "token-major"])
TIERS = st.sampled_from([{}, {"host": "16MiB"}, {"host": "16MiB", "write_through": True}])
SEQUENCES = st.lists(
    st.fixed_dictionaries(
        {
            "like": st.integers(0, 9),  # which of those before it begins with the same
            "same": st.integers(0, MOST),  # tokens, as far as that has them
            "more": st.sampled_from([0, 1, 15, 16, 100, 256, 300]),
            "chunk": st.sampled_from([1000, 100, 33]),  # tokens that a step computes
            "commit": st.booleans(),
            "salt": st.sampled_from([None, None, "a"]),
            "end": st.sampled_from(["parked", "closed", "parked and closed", "open"]),
        }
    ),
    max_size=8,
)


def contents(tokens, layer, which, kv):
    """K or V of these tokens: equal ones have equal bytes, as for a model whose prompts begin alike."""
    rows = torch.tensor(tokens) % 251 + 1000 * layer + 300 * which
    return rows.to(kv.dtype)[:, None, None].expand_as(kv)


def write(sequence, tokens, first):
    for layer in range(2):
        for which, kv in enumerate(sequence.kv(layer)):
            begins = sequence.length - len(kv)
            new = max(first - begins, 0)
            kv[new:] = contents(tokens[begins:], layer, which, kv)[new:]


def holds(sequence, tokens):
    sequence.cache.pool._core.synchronize(0)  # on the stand-in what is copied may come late
    return sequence.length == len(tokens) and all(
        torch.equal(kv, contents(tokens[len(tokens) - len(kv) :], layer, which, kv))
        for layer in range(2)
        for which, kv in enumerate(sequence.kv(layer))
    )


def filled(cache, plan, texts):
    """A sequence by the plan, and its tokens; nothing where all slots are open."""
    like = texts[plan["like"] % len(texts)] if texts else []
    tokens = like[: plan["same"]] + [1000 * len(texts) + i for i in range(plan["more"])]
    tokens = tokens[:MOST]
    try:
        sequence = cache.open(tokens=tokens, salt=plan["salt"])
    except InvalidArgument:
        return None
    texts.append(tokens)
    cache.pool._core.synchronize(0)
    while sequence.length < len(tokens):
        first = sequence.length
        cache.step({sequence: min(first + plan["chunk"], len(tokens))})
        write(sequence, tokens[: sequence.length], first)
    if plan["commit"]:
        sequence.commit(tokens[sequence.cached_tokens :])
    return sequence, tokens


@settings(deadline=None, max_examples=int(os.environ.get("VMM_EXAMPLES", "60")))
@given(shape=CACHES, layouts=st.tuples(LAYOUTS, LAYOUTS), tiers=st.tuples(TIERS, TIERS), plans=SEQUENCES)
def test_all_that_is_saved_is_restored(shape, layouts, tiers, plans):
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        pool, other = (stack.enter_context(Pool("16MiB", **each)) for each in tiers)
        path = Path(directory) / "cache"
        cache = KVCache(2, **shape, max_tokens=MOST, max_sequences=SLOTS, pool=pool, layout=layouts[0])
        stack.callback(cache.close)
        texts, named = [], {}
        for number, plan in enumerate(plans):
            if (made := filled(cache, plan, texts)) is None:
                continue
            sequence, tokens = made
            if tiers[0] and plan["end"].startswith("parked"):
                sequence.park()
                cache.end()
            if plan["end"].endswith("closed"):
                sequence.close()
            else:
                named[str(number)] = (sequence, tokens)
        cache.end()
        if "write_through" in tiers[0]:
            await_copies(pool)  # of what a tier still copies nothing is found yet
        if len(named) < SLOTS:
            cache.open(tokens=[]).close()
        left = [(salt, array("i", tokens).tolist()) for salt, tokens in cache._engine.cached()]
        report = cache.save(path, {name: sequence for name, (sequence, _) in named.items()})
        assert report.sequences == len(named)
        assert not report.lost
        for sequence, tokens in named.values():  # as they were
            if sequence.length:
                cache.step({sequence: sequence.length})
            assert holds(sequence, tokens)
        again, by_name = KVCache.restore(path, pool=other, layout=layouts[1])
        stack.callback(again.close)
        compare(again, by_name, named, left)
        other.check()


def compare(again, by_name, named, left):
    assert list(by_name) == list(named)
    for name, (_, tokens) in named.items():
        if tokens:
            again.step({by_name[name]: len(tokens)})
        assert holds(by_name[name], tokens)
    for sequence in by_name.values():
        sequence.close()
    again.end()
    found = 0
    for salt, tokens in left:
        sequence = again.open(tokens=[*tokens, 0][:MOST], salt=salt)
        found += sequence.cached_tokens == len(tokens) - (len(tokens) == MOST) * BLOCK
        if cached := sequence.cached_tokens:
            again.step({sequence: cached})
            assert holds(sequence, tokens[:cached])
        sequence.close()
        again.end()
    if any(again._windows):
        assert found == 0
    elif len(named) + len(left) <= SLOTS:  # else some were evicted
        assert found == len(left)
