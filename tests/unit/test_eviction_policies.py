"""The eviction policies beside models that do the same in the plainest way, and beside libcachesim."""

import random

import pytest
from eviction_models import PLAIN, Predictive
from hypothesis import given
from hypothesis import strategies as st

from vmm import _core
from vmm.errors import InvalidArgument

CAPACITIES = st.integers(1, 24)
UNITS = st.lists(st.integers(0, 40), max_size=300)


@pytest.mark.parametrize("name", PLAIN)
@given(capacity=CAPACITIES, units=UNITS, evicts_first=st.booleans())
def test_a_plain_policy_does_what_its_paper_says(name, capacity, units, evicts_first):
    ours, model = _core.EvictionPolicy(name, capacity), PLAIN[name](capacity)
    held = set()

    def make_room(most):
        while len(held) > most:
            victim = ours.victim()
            assert victim == model.victim(0)
            ours.evicted(victim)
            model.evicted(victim)
            held.remove(victim)

    for number, unit in enumerate(units):
        if evicts_first and unit not in held:
            make_room(capacity - 1)
        priority = (unit + number // 7) % 3
        ours.access(unit, priority=priority)
        model.access(unit, priority=priority)
        held.add(unit)
        make_room(capacity)


def test_mq_lets_units_fall_as_its_model_does():
    ours, model = _core.EvictionPolicy("mq", 30), PLAIN["mq"](30)
    chances = random.Random(5)
    held = set()
    for number in range(60_000):
        # What was used often in one part of the stream is not used in the next.
        unit = int(20 * chances.random() ** 2) + 1000 * (number // 15_000) + chances.choice((0, 0, 0, 500))
        ours.access(unit)
        model.access(unit)
        held.add(unit)
        while len(held) > 30:
            victim = ours.victim()
            assert victim == model.victim(0)
            ours.evicted(victim)
            model.evicted(victim)
            held.remove(victim)


FEATURES = st.fixed_dictionaries(
    {
        "label": st.integers(0, 2),
        "whole_sequence": st.booleans(),
        "partial": st.booleans(),
        "new_blocks": st.sampled_from((0, 1, 3, 4, 40, 400)),
        "output_tokens": st.sampled_from((0, 2, 3, 14, 15, 300, 5000)),
        "guess_ns": st.sampled_from((0, 0, 1, 10**9, 4 * 10**9, 5 * 10**9, 10**13)),
    }
)
USES = st.lists(
    st.tuples(
        st.integers(1, 40), st.sampled_from((0, 0, 0.5, 1, 1.5, 2.9, 10, 60, 900, 3000, 4000)), FEATURES
    ),
    max_size=200,
)


@given(capacity=CAPACITIES, uses=USES, tree=st.booleans())
def test_predictive_chooses_by_the_scores_of_its_model(capacity, uses, tree):
    """It does not look at all units, and the model does. Equal scores may differ in the last bit."""
    ours, model = _core.EvictionPolicy("predictive", capacity), Predictive()
    now = 0.0
    for unit, pause, features in uses:
        now += pause
        parent = unit // 2 if tree and unit > 1 else None
        at_ns = round(now * 1e9)
        ours.access(unit, at_ns=at_ns, parent=parent, **features)
        model.access(unit, at_s=now, parent=parent, **features)
        while len(model.held) > capacity:
            victim = ours.victim(at_ns)
            scores = model.scores(now)
            assert scores[victim] <= min(scores.values()) * (1 + 1e-9)
            same = [each for each in scores if scores[each] == scores[victim]]
            leaves = [each for each in same if not any(follows(other, each, tree) for other in scores)]
            assert victim == min(leaves, key=model.last)
            ours.evicted(victim)
            model.evicted(victim)


def follows(unit, parent, tree):
    return tree and unit > 1 and unit // 2 == parent


def hits_with(policy, capacity, units):
    """Who needs room makes it first, as in libcachesim."""
    held, hits = 0, []
    for unit in units:
        hit = policy.holds(unit)
        if not hit and held == capacity:
            policy.evicted(policy.victim())
            held -= 1
        policy.access(unit)
        held += not hit
        hits.append(hit)
    return hits


# With more units than these its ghosts overflow, and then it drops the oldest after it has looked whether the
# unit that comes is one of them, where ours drops it before: it is told of the victim first, and then of the
# unit. S3-FIFO is no oracle: theirs fills the queues in another way before the first
# eviction, and takes from the small one where it is not the one that is too long.
@pytest.mark.parametrize(
    ("name", "theirs", "units_over_capacity"),
    [("lru", "LRU", 9), ("lfu", "LFU", 9), ("mq", "MQ", 4), ("2q", "TwoQ", 1.4)],
)
@pytest.mark.parametrize("capacity", [10, 64, 500])
def test_hits_are_those_of_libcachesim(name, theirs, units_over_capacity, capacity):
    libcachesim = pytest.importorskip("libcachesim", reason="libcachesim is not installed: no oracle")
    chances = random.Random(capacity)
    most = int(units_over_capacity * capacity)
    units = [int(most * chances.random() ** 3) for _ in range(30_000)]
    oracle = getattr(libcachesim, theirs)(capacity)
    expected = [oracle.get(libcachesim.Request(obj_id=unit + 1, obj_size=1)) for unit in units]
    assert 1_000 < sum(expected) < 29_000
    assert hits_with(_core.EvictionPolicy(name, capacity), capacity, units) == expected


def test_an_unknown_policy_is_refused_with_the_names_of_all():
    with pytest.raises(InvalidArgument, match=r"policy is 'arc'; expected one of: lru, .*, predictive"):
        _core.EvictionPolicy("arc", 10)
    assert _core.eviction_policies == (*PLAIN, "predictive")


def test_errors_stay_ours_beside_an_extension_that_translates_those_of_all():
    pytest.importorskip("libcachesim", reason="libcachesim is not installed: it translates every C++ error")
    with pytest.raises(InvalidArgument):
        _core.EvictionPolicy("arc", 10)
