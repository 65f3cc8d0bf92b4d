"""Jobs in threads of their own."""

import threading
from concurrent.futures import ThreadPoolExecutor


def at_once(*jobs):
    """The results of the jobs, each in a thread of its own, started together."""
    barrier = threading.Barrier(len(jobs))

    def run(job):
        barrier.wait(timeout=60)
        return job()

    with ThreadPoolExecutor(len(jobs)) as executor:
        return list(executor.map(run, jobs))
