"""One table of everything that was measured: medians, with the least and the most in parentheses."""

import datetime
import json
import platform
import statistics
import sys

COLUMNS = {
    "processes_per_second": ("processes/s", "{:,.0f}"),
    "calls_per_second": ("Python calls/s", "{:,.0f}"),
    "nothing_per_second": ("empty/s", "{:,.0f}"),
    "one_ms": ("one, ms", "{:.1f}"),
    "hop_ms": ("chain of processes, ms a hop", "{:.2f}"),
    "call_hop_ms": ("chain of calls, ms a hop", "{:.2f}"),
}


def cell(figures, form):
    if not figures:
        return "–"
    middle = form.format(statistics.median(figures))
    return middle if len(figures) == 1 else f"{middle} ({form.format(min(figures))}–{form.format(max(figures))})"


def main():
    systems = {}
    with open(sys.argv[1], encoding="utf-8") as results:
        for line in results:
            result = json.loads(line)
            systems.setdefault((result["system"], result["version"]), []).append(result)
    print(f"{datetime.date.today()}, Linux {platform.release()}, {len(next(iter(systems.values())))} rounds\n")
    print("| | version | " + " | ".join(name for name, _ in COLUMNS.values()) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for (system, version), rounds in systems.items():
        cells = [cell([r[key] for r in rounds if key in r], form) for key, (_, form) in COLUMNS.items()]
        print(f"| {system} | {version} | " + " | ".join(cells) + " |")
    bare = [result["bare_per_second"] for rounds in systems.values() for result in rounds if "bare_per_second" in result]
    print(f"| `posix_spawn` alone | – | {cell(bare, '{:,.0f}')} |" + " – |" * (len(COLUMNS) - 1))


main()
