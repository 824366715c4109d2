#!/usr/bin/env python3
"""Prints the table of docs/placement.md: what the planner makes of recorded workflows on two and three sites.

    benches/traces.py target/release/atoll TRACE.json…

Beside Atoll's own yardsticks stands METIS (Debian package `metis`), where `gpmetis` is installed: the best of several of
its partitions that keeps the bound, with every file counted once for each site that reads it elsewhere.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BOUNDS = {2: 0.6, 3: 0.45}
SEEDS = 8


def bench(atoll, sites, files):
    command = [atoll, "bench", "trace", *files, "--sites", str(sites), "--policy", "bytes", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Graph:
    """Tasks with their run times, and files with makers and readers, of an instance of WfFormat 1.5."""

    def __init__(self, path):
        workflow = json.loads(Path(path).read_text())["workflow"]
        tasks = workflow["specification"]["tasks"]
        sizes = {file["id"]: file["sizeInBytes"] for file in workflow["specification"]["files"]}
        seconds = {task["id"]: task["runtimeInSeconds"] for task in workflow["execution"]["tasks"]}
        number = {task["id"]: place for place, task in enumerate(tasks)}
        makers = {}
        for task in tasks:
            for file in task.get("outputFiles", []):
                makers.setdefault(file, number[task["id"]])
        readers = {}
        for task in tasks:
            for file in set(task.get("inputFiles", [])):
                if file in makers and makers[file] != number[task["id"]]:
                    readers.setdefault(file, []).append(number[task["id"]])
        self.micros = [int(seconds[task["id"]] * 1e6) for task in tasks]
        self.files = [(makers[file], sizes[file], found) for file, found in readers.items()]

    def neighbours(self):
        found = [{} for _ in self.micros]
        for maker, size, readers in self.files:
            for reader in readers:
                found[maker][reader] = found[maker].get(reader, 0) + size
                found[reader][maker] = found[reader].get(maker, 0) + size
        return found

    def crossing(self, part):
        elsewhere = lambda maker, readers: {part[reader] for reader in readers} - {part[maker]}
        return sum(size * len(elsewhere(maker, readers)) for maker, size, readers in self.files)

    def share(self, part, sites):
        loads = [0] * sites
        for micros, site in zip(self.micros, part):
            loads[site] += micros
        return max(loads) / max(1, sum(loads))


def metis(graph, sites):
    """The fewest bytes of its partitions that keep the bound, or nothing."""
    neighbours = graph.neighbours()
    # It counts in 32 bits.
    scale = max(1, sum(sum(found.values()) for found in neighbours) / 1e9)
    weigh = max(1, sum(graph.micros) / 1e9)
    lines = [f"{len(neighbours)} {sum(len(found) for found in neighbours) // 2} 011"]
    for micros, found in zip(graph.micros, neighbours):
        edges = " ".join(f"{other + 1} {max(1, int(size / scale))}" for other, size in sorted(found.items()))
        lines.append(f"{max(1, int(micros / weigh))} {edges}")
    best = None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph"
        path.write_text("\n".join(lines) + "\n")
        factor = int((BOUNDS[sites] * sites - 1) * 1000)
        ways = [["-ptype=kway", "-objtype=cut"], ["-ptype=kway", "-objtype=vol"], ["-ptype=rb"]]
        for seed in range(SEEDS):
            for way in ways:
                command = ["gpmetis", *way, f"-ufactor={factor}", f"-seed={seed}", "-ncuts=4", str(path), str(sites)]
                subprocess.run(command, check=True, capture_output=True)
                part = [int(line) for line in Path(f"{path}.part.{sites}").read_text().split()]
                if graph.share(part, sites) <= BOUNDS[sites]:
                    bytes_crossing = graph.crossing(part)
                    best = bytes_crossing if best is None else min(best, bytes_crossing)
    return best


def size(count):
    if count is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"


def ratio(value):
    return "–" if value is None else f"{value:.2f}"


def main():
    atoll, *files = sys.argv[1:]
    has_metis = shutil.which("gpmetis") is not None
    print("| trace | sites | made | crosses | share | min-cut | METIS | makespan | × HEFT | most at a site | seen first |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for sites in BOUNDS:
        for file, trace in zip(files, bench(atoll, sites, files)["results"]["traces"]):
            second_opinion = metis(Graph(file), sites) if has_metis else None
            cells = [
                trace["trace"].removesuffix(".json"),
                str(sites),
                size(trace["bytes_produced"]),
                size(trace["bytes_crossing"]),
                f"{100 * trace['share_crossing']:.2f} %",
                size(trace["min_cut"]["bytes_crossing"]),
                size(second_opinion),
                f"{trace['makespan_seconds']:.0f} s",
                ratio(trace["makespan_of_heft"]),
                f"{100 * trace['site_share_max']:.0f} %",
                size(trace["without_history"]["bytes_crossing"]),
            ]
            print("| " + " | ".join(cells) + " |")


main()
