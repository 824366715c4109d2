"""What the measurements have in common."""

import json
import statistics
import time

PROCESSES = 10_000
"""Executions of /bin/true in one go."""

CALLS = 5_000
"""Calls of a function that does nothing, for systems that run functions and not processes."""

ONE_BY_ONE = 50
"""Executions that are submitted one after the other."""

CHAIN = 200
"""Executions in a chain, each of which waits for the one before."""


def seconds(work):
    """How long `work()` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median_ms(work, count=ONE_BY_ONE):
    """The median of `count` calls of `work()`, in milliseconds."""
    return statistics.median(seconds(work) for _ in range(count)) * 1e3


def report(system, version, **figures):
    """Prints one line for the table. Absent figures could not be measured fairly."""
    print(json.dumps({"system": system, "version": version, **figures}), flush=True)
