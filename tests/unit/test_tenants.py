"""vmm.Tenant: errors, figures, and who belongs to whom."""

import copy
import gc
import os
import uuid

import pytest
import torch

import vmm
from vmm import Closed, InvalidArgument, KVCache, KVTensor, OutOfPages, Pool, Tenant

PAGE = 65536


@pytest.fixture
def pool():
    with Pool(16 * PAGE, idle_seconds=None) as made:
        yield made
        made.check()


def cache_of(tenant, sequences=16):
    """A sequence of it takes a page for every 64 tokens."""
    return KVCache(
        1, 4, 64, torch.float16, max_tokens=256, max_sequences=sequences, tenant=tenant, layout="token-major"
    )


BAD = {
    "name": [("",), ("a b",), ("x" * 65,), (None,), (3,)],
    "priority": [("a", 0, None, 1001), ("a", 0, None, 1.5), ("a", 0, None, True)],
    "guaranteed": [("a", -1), ("a", "much"), ("a", True), ("a", 17 * PAGE), ("a", 2.5)],
    "limit": [("a", 2 * PAGE, PAGE), ("a", 0, 0), ("a", 0, "much")],
}


@pytest.mark.parametrize(
    ("argument", "terms"), [(argument, terms) for argument, all_terms in BAD.items() for terms in all_terms]
)
def test_bad_terms_name_the_argument(pool, argument, terms):
    with pytest.raises(InvalidArgument, match=f"^{argument} is .*expected"):
        Tenant(*terms, pool=pool)
    Tenant("a", 16 * PAGE, pool=pool)  # nothing is left of the others


def test_a_pool_that_is_none(pool):
    with pytest.raises(InvalidArgument, match="pool is 3"):
        Tenant("a", pool=3)
    with pytest.raises(InvalidArgument, match="device is cuda:0"):
        Tenant("a", pool=pool, device="cuda")


def test_a_name_is_given_once(pool):
    first = Tenant("a", pool=pool)
    with pytest.raises(InvalidArgument, match="name is 'a'; expected one that no other"):
        Tenant("a", pool=pool)
    first.close()
    first.close()
    Tenant("a", pool=pool)


def test_guarantees_fit_in_the_budget_and_hold_it(pool):
    a = Tenant("a", 10 * PAGE, pool=pool)
    with pytest.raises(InvalidArgument, match="guaranteed is 458752 bytes; expected at most 393216"):
        Tenant("b", 7 * PAGE, pool=pool)
    with pytest.raises(InvalidArgument, match="budget is 589824 bytes; expected at least 655360"):
        pool.budget_bytes = 9 * PAGE
    assert pool.budget_bytes == 16 * PAGE
    pool.budget_bytes = 10 * PAGE
    a.close()
    pool.budget_bytes = 9 * PAGE


def test_a_guarantee_of_a_share():
    name = f"tenants-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with Pool("4MiB", share=name, minimum="1MiB") as pool:
        with pytest.raises(InvalidArgument, match="guaranteed is"):
            Tenant("a", "5MiB", pool=pool)
        tenant = Tenant("a", "3MiB", pool=pool)
        with pytest.raises(InvalidArgument, match="budget is 2097152 bytes; expected at least 3145728"):
            pool.budget_bytes = "2MiB"
        t = KVTensor(1, 4096, 256, dtype=torch.float32, tenant=tenant)
        t[:, :2048] = 1
        assert tenant.stats().kept_bytes == 2**21
        pool.check()
        del t


def test_a_tenant_of_another_pool(pool):
    other = Pool(16 * PAGE)
    a = Tenant("a", pool=other)
    for make in (
        lambda: KVCache(1, 1, 64, max_tokens=64, max_sequences=1, pool=pool, tenant=a),
        lambda: KVTensor(2, 64, pool=pool, tenant=a),
        lambda: pool.range(PAGE, tenant=a),
    ):
        with pytest.raises(InvalidArgument, match="tenant is 'a', of another pool"):
            make()
    with pytest.raises(InvalidArgument, match=r"tenant is 'me'; expected a vmm\.Tenant"):
        KVTensor(2, 64, tenant="me")
    with pytest.raises(InvalidArgument, match="budget and tenant"):
        KVCache(1, 1, 64, max_tokens=64, max_sequences=1, budget="1MiB", tenant=a)
    with pytest.raises(InvalidArgument, match="device is cuda:0"):
        KVTensor(2, 64, device="cuda", tenant=a)
    other.close()


def test_a_closed_tenant_gets_nothing_new_and_keeps_what_it_has(pool):
    a = Tenant("a", 4 * PAGE, pool=pool)
    t = KVTensor(1, 1024, 64, dtype=torch.float32, tenant=a)
    t[:, :256] = 1
    assert "guaranteed 256.0 KiB" in repr(a)
    a.close()
    assert a.closed
    assert "closed" in repr(a)
    with pytest.raises(Closed, match="'a' is closed"):
        a.stats()
    with pytest.raises(Closed, match="'a' is closed"):
        KVTensor(2, 64, tenant=a)
    t[:, 256:512] = 2
    assert float(t[0, :512].sum()) == 256 * 64 * 3
    assert pool.stats().kept_bytes == 2 * PAGE


def test_figures(pool):
    a = Tenant("a", 4 * PAGE, 8 * PAGE, 3, pool=pool)
    nothing = a.stats()
    assert (nothing.name, nothing.priority, nothing.limit_bytes) == ("a", 3, 8 * PAGE)
    assert (nothing.guaranteed_bytes, nothing.room_bytes, nothing.held_bytes) == (4 * PAGE, 8 * PAGE, 0)
    assert Tenant("b", pool=pool).stats().limit_bytes is None
    t = KVTensor(1, 4096, 64, dtype=torch.float32, tenant=a)
    t[:, : 6 * 256] = 1
    some = a.stats()
    assert some.kept_bytes == some.charged_bytes == 6 * PAGE
    assert 2 * PAGE <= some.borrowed_bytes <= some.held_bytes - 4 * PAGE  # the pager may have looked ahead
    assert some.room_bytes == 2 * PAGE
    with pytest.raises(OutOfPages, match="tenant 'a' is charged 393216") as caught:
        t[:, : 9 * 256] = 1
    figures = caught.value.tenant
    assert (figures.name, figures.charged, figures.kept) == ("a", 6 * PAGE, 6 * PAGE)
    assert (figures.guaranteed, figures.limit, figures.room) == (4 * PAGE, 8 * PAGE, 2 * PAGE)
    assert a.stats().kept_bytes == 6 * PAGE
    del t
    gc.collect()


def test_what_belongs_to_nobody_leaves_guarantees_alone(pool):
    a = Tenant("a", 10 * PAGE, pool=pool)
    with pytest.raises(OutOfPages, match="what belongs to no tenant") as caught:
        KVTensor(1, 4096, 64, dtype=torch.float32, pool=pool)[:, : 7 * 256] = 1
    assert caught.value.tenant.name == ""
    t = KVTensor(1, 4096, 64, dtype=torch.float32, tenant=a)
    t[:, : 16 * 256] = 1
    assert a.stats().kept_bytes == 16 * PAGE
    with Pool(PAGE) as other, pytest.raises(OutOfPages) as caught:
        KVTensor(1, 4096, 64, dtype=torch.float32, pool=other)[:, : 7 * 256] = 1
    assert caught.value.tenant is None


def test_caches_of_two_tenants(pool):
    greedy, modest = Tenant("greedy", pool=pool), Tenant("modest", 6 * PAGE, pool=pool)
    of_greedy, of_modest = cache_of(greedy), cache_of(modest)
    running = [of_greedy.open(64) for _ in range(12)]
    with pytest.raises(OutOfPages) as caught:
        of_greedy.step(dict.fromkeys(running, 64))
    assert caught.value.tenant.name == "greedy"
    assert len(caught.value.fitting) == 10
    of_greedy.step(dict.fromkeys(caught.value.fitting, 64))
    mine = [of_modest.open(64) for _ in range(6)]
    of_modest.step(dict.fromkeys(mine, 64))  # its guarantee is there
    assert modest.stats().kept_bytes == 6 * PAGE
    assert greedy.stats().kept_bytes == 10 * PAGE
    with pytest.raises(OutOfPages):
        of_modest.step({of_modest.open(64): 64})
    for cache in (of_greedy, of_modest):
        cache.close()


def test_no_tenant_sees_what_another_wrote(pool):
    a, b = Tenant("a", pool=pool), Tenant("b", pool=pool)
    of_a = cache_of(a)
    running = [of_a.open(64) for _ in range(16)]
    of_a.step(dict.fromkeys(running, 64))
    for half in (0, 1):
        of_a.kv(0)[half][:, :64] = 7
    of_a.close()
    gc.collect()
    of_b = cache_of(b)
    assert of_b.stats().mapped_bytes == 0  # it has not adopted the other's
    running = [of_b.open(64) for _ in range(16)]
    of_b.step(dict.fromkeys(running, 64))
    assert all(not half[:, :64].any() for half in of_b.kv(0))
    of_b.close()


def test_ranges_and_copies_belong_to_their_tenant(pool):
    a = Tenant("a", 8 * PAGE, pool=pool)
    t = KVTensor(1, 1024, 64, dtype=torch.float32, tenant=a)
    t[:, :256] = 1
    assert a.stats().kept_bytes == PAGE
    other = copy.deepcopy(t)
    assert a.stats().kept_bytes == 2 * PAGE
    with pool.range(4 * PAGE, tenant=a) as r:
        blocks = r.blocks([0], PAGE, 4)
        blocks.keep([0, 2])
        assert a.stats().kept_bytes == 4 * PAGE
        assert r.tenant is a
    assert float(other[0, :256].sum()) == 256 * 64
    assert vmm.Tenant is Tenant


def test_a_transformers_cache_and_its_copy_belong_to_their_tenant(pool):
    transformers = pytest.importorskip("transformers")
    from vmm.integrations.transformers import VmmCache

    config = transformers.LlamaConfig(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=128, head_dim=64
    )
    a, other = Tenant("a", 4 * PAGE, pool=pool), Pool(16 * PAGE)
    with pytest.raises(InvalidArgument, match="tenant is 'a', of another pool"):
        VmmCache(config, 512, pool=other, tenant=a)
    with pytest.raises(InvalidArgument, match="tenant is 3"):
        VmmCache(config, 512, tenant=3)
    cache = VmmCache(config, 512, tenant=a)
    assert cache.pool is pool
    states = torch.ones(1, 2, 100, 64)
    keys, _ = cache.update(states, states, 0)
    kept = a.stats().kept_bytes
    assert kept == pool.stats().kept_bytes > 0
    copied = copy.deepcopy(cache)
    assert a.stats().kept_bytes == pool.stats().kept_bytes == 2 * kept
    assert torch.equal(keys, states)
    del cache, copied, keys
    other.close()
