"""The scheduler's side with workers that refuse, are late or go away; no engine."""

import random
import re
from types import SimpleNamespace

import pytest
import vllm
from scripted import Scheduler, ScriptedWorkers

from vmm.integrations.vllm import compat
from vmm.integrations.vllm.connector import VmmConnector
from vmm.integrations.vllm.settings import settings_of


def prompt(seed, tokens=100):
    return random.Random(seed).choices(range(500), k=tokens)


def test_a_block_enters_the_free_queue_only_when_its_memory_is_confirmed():
    workers = ScriptedWorkers()
    scheduler = Scheduler(workers)
    assert scheduler.pool.get_num_free_blocks() == 0
    workers.answers.extend(["late"] * 100)
    scheduler.arrive("a", prompt(1))
    scheduler.step()
    assert scheduler.pool.get_num_free_blocks() == 0
    workers.catch_up()
    scheduler.step()
    assert scheduler.pool.get_num_free_blocks() >= 7
    assert scheduler.prefill("a")
    scheduler.check()


def test_a_running_request_waits_for_late_memory_instead_of_being_preempted():
    workers = ScriptedWorkers()
    scheduler = Scheduler(workers)
    scheduler.arrive("a", prompt(1))
    scheduler.step()
    assert scheduler.prefill("a")
    workers.answers.extend(["late"] * 1000)
    assert all(scheduler.decode("a") for _ in range(500))
    assert scheduler.growth.stalls > 0
    assert workers.waits > 0
    scheduler.check()


def test_refused_memory_makes_requests_wait_and_is_asked_for_again(monkeypatch):
    workers = ScriptedWorkers()
    scheduler = Scheduler(workers)
    workers.answers.extend(["refused"] * 1000)
    scheduler.arrive("a", prompt(1))
    assert not scheduler.prefill("a")
    scheduler.check()
    workers.answers.clear()
    announced = workers.announced
    # Not at once: a scheduler that tries in every step would ask thousands of times a second.
    scheduler.step()
    assert workers.announced == announced
    monkeypatch.setattr(scheduler.growth, "_refused_until", 0.0)
    for _ in range(2):  # one asks, the next hears
        scheduler.step()
    assert scheduler.prefill("a")
    scheduler.check()


def test_what_was_confirmed_since_the_step_began_is_used():
    scheduler = Scheduler(ScriptedWorkers())
    scheduler.arrive("a", prompt(1))
    assert scheduler.prefill("a"), "its memory is confirmed, but nobody has looked"


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("row", [1, 2, 5])
def test_random_courses(seed, row):
    """Whatever the workers do, nothing without memory is used, and a request that runs has what it needs."""
    draw = random.Random(seed)
    workers = ScriptedWorkers(patience=draw.randrange(1, 4))
    scheduler = Scheduler(workers, capacity=draw.choice([90, 150, 390]), row=row)
    running, waiting = [], []
    for number in range(200):
        workers.answers.append(draw.choices(["ready", "late", "refused"], [8, 4, 1])[0])
        what = draw.random()
        if what < 0.2 and len(running) + len(waiting) < 12:
            waiting.append(str(number))
            scheduler.arrive(waiting[-1], prompt(draw.randrange(4), draw.randrange(1, 300)))
        elif what < 0.4 and waiting and scheduler.prefill(waiting[0]):
            running.append(waiting.pop(0))
        elif what < 0.7:
            for name in list(running):
                if not scheduler.decode(name):
                    running.remove(name)
                    scheduler.finish(name)
        elif what < 0.85 and running:
            scheduler.finish(running.pop(draw.randrange(len(running))))
        elif what < 0.9:
            with scheduler.growth.lock:
                scheduler.growth.give_back(draw.choice([None, 5]))
        elif what < 0.93:
            scheduler.pool.reset_prefix_cache()
        else:
            workers.catch_up()
        scheduler.step()
        scheduler.check()
    for name in running + waiting:
        scheduler.finish(name)
    workers.answers.clear()
    workers.catch_up()
    scheduler.step()
    assert scheduler.pool.reset_prefix_cache()
    scheduler.check()


@pytest.mark.parametrize("version", ["0.30.2", "0.34.0", "1.0", "0.40.1.dev3+g12", "unknown"])
def test_another_version_says_what_to_install(version, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", version)
    words = r"tested with vLLM 0\.31 to 0\.33.*" + re.escape(version) + ".*pip install"
    with pytest.raises(RuntimeError, match=words):
        VmmConnector(SimpleNamespace(), None, None)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.9", "0.32.1+cpu", "0.33.0rc1"])
def test_the_tested_versions_are_accepted(version):
    compat.check_version(version)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budgets": "1GiB"}, "unknown key 'budgets'.*budget, share"),
        ({"budget": "a lot"}, "budget is 'a lot'"),
        ({"budget": 0}, "budget"),
        ({"budget": "1GiB", "share": "a", "minimum": "2GiB"}, "'minimum'.*more than 'budget'"),
        ({"minimum": "2GiB"}, "'minimum' is of use only together with 'share'"),
        ({"share": 3}, "'share' is 3"),
        ({"share": "a/b"}, "'share' is 'a/b'"),
        ({"share": ".."}, "'share' is '..'"),
        ({"share": "a", "priority": "high"}, "'priority' is 'high'"),
        ({"share": "a", "priority": 1001}, "'priority' is 1001"),
        ({"idle": "soon"}, "'idle' is 'soon'"),
        ({"idle": -1}, "'idle' is -1"),
        ({"idle": "0s"}, "'idle' is '0s'"),
        ({"idle": True}, "'idle' is True"),
    ],
)
def test_bad_settings_name_the_key(given, words):
    with pytest.raises(ValueError, match=words):
        settings_of(given)
