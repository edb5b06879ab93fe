"""What the tools for a change cost at the sizes of published models: time, and memory beside what they are given.

``overlap``: two head graphs as of a 7B model (32 layers of 32 heads, 1.6 million edges) of 100 problems, float32, at random.

    python benchmarks/changes.py overlap
    python benchmarks/changes.py overlap --problems 20 --layers 8
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import xarray as xr

import rlcircuits as rc


def scores(layers: int, heads: int, problems: int, seeds: tuple[int, int]) -> xr.DataArray:
    """Heavy-tailed scores: what the first seed gives to all problems and what the second gives to each."""
    graph = rc.Graph.build("head", layers, heads)
    values = np.full((problems, *graph.mask.shape), np.nan, np.float32)
    shared = np.random.default_rng(seeds[0]).standard_normal(graph.n_edges, np.float32) ** 3
    own = np.random.default_rng(seeds[1])
    for row in values:
        row[graph.mask] = shared + own.standard_normal(len(shared), np.float32)
    coords = {"sample": [f"p{i}" for i in range(problems)], "source": list(graph.sources)}
    coords["destination"] = list(graph.destinations)
    return xr.DataArray(values, coords, ("sample", "source", "destination"), attrs={"level": "head"})


def overlap(layers: int = 32, heads: int = 32, problems: int = 100) -> dict[str, float]:
    """Seconds of `rlcircuits.overlap` and its peak memory, as a multiple of the two score arrays'."""
    a, b = (scores(layers, heads, problems, (0, seed)) for seed in (1, 2))
    before, begin, worked = _peak(), time.perf_counter(), time.process_time()
    found = rc.overlap(a, b)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
    given = a.nbytes + b.nbytes
    return {
        "edges": int(np.isfinite(found.means.values[0]).sum()),
        "problems": problems,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "scores_gb": round(given / 1e9, 3),
        "peak_gb": round(_peak() / 1e9, 3),
        "added_to_scores": round((_peak() - before) / given, 3),
    }


def _peak() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure what is asked for, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("overlap")
    for name, default in (("layers", 32), ("heads", 32), ("problems", 100)):
        command.add_argument(f"--{name}", type=int, default=default)
    asked = vars(parser.parse_args())
    print(json.dumps({"overlap": overlap}[asked.pop("what")](**asked)))


if __name__ == "__main__":
    main()
