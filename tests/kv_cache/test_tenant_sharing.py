"""What a tenant's sequences share stays the tenant's, also while it is copied."""

import torch
from own_pool import PAGE

from vmm import KVCache, Pool, Tenant


def test_a_tenant_s_fork_is_cut_back_into_what_it_shares():
    with Pool("8MiB") as pool, Tenant("one", pool=pool, guaranteed="1MiB", limit="4MiB") as tenant:
        cache = KVCache(
            1, 2, 16, torch.float32, max_tokens=256, max_sequences=3, tenant=tenant, page_bytes=PAGE
        )
        with cache:
            first = cache.open(200)
            cache.step({first: 200})
            (fork,) = first.fork(1)
            fork.truncate(90)
            assert fork.length == 90
            cache.step({first: 201, fork: 91})
            pool.check()
