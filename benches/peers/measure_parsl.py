"""Parsl: the high-throughput executor with one worker for each core of the machine."""

import os
from importlib.metadata import version

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from common import CALLS, CHAIN, median_ms, report, seconds


@parsl.python_app
def nothing(_before=None):
    return None


def main():
    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(max_workers_per_node=os.cpu_count(), provider=provider, address="127.0.0.1")
    with parsl.load(Config(executors=[executor])):
        for call in [nothing() for _ in range(20)]:
            call.result()

        def many():
            for call in [nothing() for _ in range(CALLS)]:
                call.result()

        def chain():
            last = None
            for _ in range(CHAIN):
                last = nothing(last)
            last.result()

        report(
            "Parsl HTEX",
            version("parsl"),
            calls_per_second=CALLS / seconds(many),
            one_ms=median_ms(lambda: nothing().result()),
            call_hop_ms=seconds(chain) / CHAIN * 1e3,
        )


main()
