"""KVCaches of two tenants on one pool, against the same naive model, and what the tenants are promised."""

import os

from hypothesis import settings
from hypothesis.stateful import initialize, invariant
from own_pool import PAGE
from test_kv_cache_model import KVCacheMachine, small_tiles  # noqa: F401 - a fixture, for this module, too

from vmm import OutOfPages, Tenant

TERMS = {  # in pages; the budget is never lowered below what is guaranteed
    "modest": {"guaranteed": 9, "limit": 24},
    "greedy": {"guaranteed": 4},
}


class TenantsMachine(KVCacheMachine):
    """Caches belong to the two in turn. A refusal has the figures of the tenant that asked."""

    def __init__(self):
        super().__init__()
        self.owners = [
            Tenant(name, pool=self.pool, **{term: pages * PAGE for term, pages in terms.items()})
            for name, terms in TERMS.items()
        ]
        self.made = 0
        self.has_failed = False  # what the driver has refused to unmap may still be in the way

    @initialize()
    def begin_with_both(self):
        for _ in self.owners:
            self.make("each", 0, 1)

    def next_owner(self):
        self.made += 1
        return self.owners[self.made % len(self.owners)]

    def core_step(self, naive, chosen, grown, stream):
        self.has_failed |= self.failing
        try:
            super().core_step(naive, chosen, grown, stream)
        except OutOfPages as error:
            self.check_refusal(naive.cache.tenant, error)
            raise

    def check_refusal(self, owner, error):
        """What is within a guarantee is never refused, but while a lowered budget is exceeded."""
        assert error.tenant.name == owner.name
        if self.has_failed or self.failing:
            return
        figures = error.tenant
        promised = sum(max(each.guaranteed_bytes, each.charged_bytes) for each in self.stats_of_all())
        if promised <= self.core.budget.limit_bytes:
            assert figures.charged + error.asked > figures.guaranteed

    def stats_of_all(self):
        return [owner.stats() for owner in self.owners]

    @invariant()
    def each_keeps_its_own_and_no_more_than_its_limit(self):
        for owner in self.owners:
            stats, own = owner.stats(), [each for each in self.caches if each.cache.tenant is owner]
            assert stats.kept_bytes == PAGE * sum(each.needed_pages(each.cache._tail) for each in own)
            assert stats.kept_bytes <= stats.charged_bytes <= stats.held_bytes
            assert self.has_failed or self.failing or stats.charged_bytes <= (stats.limit_bytes or 1 << 60)

    def teardown(self):
        super().teardown()
        self.owners = None


TenantsMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("VMM_EXAMPLES", "60")), stateful_step_count=40, deadline=None
)
TestTenantsAgainstModel = TenantsMachine.TestCase
