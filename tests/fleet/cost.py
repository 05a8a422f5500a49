"""What a fleet costs in a bucket, on paper: bytes, objects and requests a day.

`cost.py [--containers N] [--file-bytes N] [--hours-a-file N] [--incidents N] [--bytes-a-value N] [--values-a-row N]` prints the table of docs/fleet.md, which `check.py`
holds against it; and against what one node really ships, by `objects` and `puts`.
"""

import argparse
import math

TABLES = 9  # that a node writes in each hour: containers, events, io_devices, ledger, metrics, node, processes, samples; incidents when there are any
PART = 8 << 20
NODES = (10, 1000, 10000)


def parts(size):
    """PUTs of a file, and GETs to look whether a large one is there."""
    return (1, 0) if size <= PART else (math.ceil(size / PART) + 2, 1)


def a_day(containers, file_bytes, hours_a_file, incidents, bytes_a_value, values_a_row):
    """Bytes, objects, PUTs and GETs of one node and day."""
    samples = containers * 3600 * values_a_row * bytes_a_value * hours_a_file
    others = samples * 0.1  # what the smaller tables take together, at the most
    files = math.ceil(samples / file_bytes)
    merges = 24 / hours_a_file
    puts, gets = parts(samples / files)
    with_incidents = min(incidents, merges)
    bundle = 200_000
    return {
        "bytes": (samples + others) * merges + incidents * bundle,
        "objects": merges * (files + TABLES - 2) + with_incidents + incidents,
        "puts": merges * (files * puts + TABLES - 2) + with_incidents + incidents,
        "gets": merges * files * gets,
    }


def large(n):
    for unit in ("", " k", " M", " G", " T"):
        if n < 1000:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g} P"


def table(knobs):
    one = a_day(**knobs)
    lines = ["| nodes | bytes | objects | PUT | GET | a list of the day's incidents: LIST, GET |", "|---|---|---|---|---|---|"]
    for nodes in NODES:
        files = nodes * min(knobs["incidents"], 24 / knobs["hours_a_file"])
        cells = [large(nodes * one[key]) + ("B" if key == "bytes" else "") for key in ("bytes", "objects", "puts", "gets")]
        lines.append(f"| {nodes:,} | {' | '.join(cells)} | {math.ceil(files / 1000) + 1:,}, {files:,.0f} |")
    return "\n".join(lines)


KNOBS = {"containers": 200, "file_bytes": 64 << 20, "hours_a_file": 1, "incidents": 2, "bytes_a_value": 0.56, "values_a_row": 70}


def main():
    args = argparse.ArgumentParser()
    for name, default in KNOBS.items():
        args.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    print(table(vars(args.parse_args())))


if __name__ == "__main__":
    main()
