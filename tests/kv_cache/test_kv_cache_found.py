"""What the state machine has found once, replayed."""

from test_kv_cache_model import KVCacheMachine


def test_pages_that_work_still_reads_elsewhere_are_not_offered():
    """A step was refused for memory that ``OutOfPages.fitting`` had counted: a shared page of a closed
    sequence counted as free for whoever had last read it there, while other work read it elsewhere."""
    machine = KVCacheMachine()

    def replay(rule, **drawn):
        rule(**drawn)
        machine.everything_is_as_it_was()
        machine.what_is_needed_is_kept_and_nothing_else()

    try:
        kinds = ["bfloat16", "bfloat16", "all layers"]
        replay(machine.begin, torch_runs_late=False, tail=20, per_step=1, kinds=kinds, told=(False, False))
        replay(machine.begin_again, close=False, prompt=(150, 0, False), stream="A", tokens=97, which=0)
        replay(machine.close, which=0)
        replay(machine.begin_again, close=False, prompt=(0, 0, False), stream="B", tokens=45, which=3)
        replay(machine.close, which=0)
        replay(machine.close_cache, cache=0)
        replay(machine.fork, n=1, stream="A", sync=False, tokens=1, which=0)
        replay(machine.fork, n=1, stream="A", sync=False, tokens=9, which=0)
    finally:
        machine.teardown()
