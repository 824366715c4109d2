"""Dask distributed: a local cluster with one process for each core of the machine."""

import os
from importlib.metadata import version

from distributed import Client, LocalCluster

from common import CALLS, CHAIN, median_ms, report, seconds


def nothing(_before=None):
    return None


def main():
    with LocalCluster(n_workers=os.cpu_count(), threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.gather([client.submit(nothing, pure=False) for _ in range(20)])

            def many():
                client.gather([client.submit(nothing, pure=False) for _ in range(CALLS)])

            def chain():
                last = None
                for _ in range(CHAIN):
                    last = client.submit(nothing, last, pure=False)
                last.result()

            report(
                "Dask distributed",
                version("distributed"),
                calls_per_second=CALLS / seconds(many),
                one_ms=median_ms(lambda: client.submit(nothing, pure=False).result()),
                call_hop_ms=seconds(chain) / CHAIN * 1e3,
            )


if __name__ == "__main__":
    main()
