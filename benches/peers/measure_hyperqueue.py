"""HyperQueue: its own local cluster. Its client looks for the end once a second, so only long work is measured."""

from importlib.metadata import version

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

from common import CHAIN, PROCESSES, report, seconds


def run(client, job):
    client.wait_for_jobs([client.submit(job)])


def array(count):
    job = Job()
    for _ in range(count):
        job.program(["/bin/true"], stdout=None, stderr=None)
    return job


def chain(count):
    job = Job()
    last = ()
    for _ in range(count):
        last = (job.program(["/bin/true"], stdout=None, stderr=None, deps=last),)
    return job


def main():
    with LocalCluster(worker_config=WorkerConfig()) as cluster:
        client = cluster.client()
        run(client, array(10))
        many = array(PROCESSES)
        rate = PROCESSES / seconds(lambda: run(client, many))
        hops = chain(CHAIN)
        hop = seconds(lambda: run(client, hops)) / CHAIN * 1e3
        report("HyperQueue", version("hyperqueue"), processes_per_second=rate, hop_ms=hop)


main()
