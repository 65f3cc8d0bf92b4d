"""The last line of a run with the fault suites."""

import tally


def pytest_unconfigure():
    if line := tally.summary():
        print(line)
