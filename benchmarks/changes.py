"""What the tools for a change cost at the sizes of published models: time, and memory beside what they are given.

``overlap``: two head graphs as of a 7B model (32 layers of 32 heads, 1.6 million edges) of 100 problems, float32, at random.
``weights``: two made-up checkpoints in shards, with some layers of the shapes of Qwen2.5-7B and its two vocabulary matrices;
the tuned one differs by a change of rank 8. Memory depends on the largest matrix, not on how many there are.

    python benchmarks/changes.py overlap
    python benchmarks/changes.py weights --layers 1 --directions 16
    python benchmarks/changes.py overlap --problems 20 --layers 8
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors.torch import save_file

import rlcircuits as rc
from rlcircuits.models import weights as weights_of


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


def weights(layers: int = 1, directions: int = 16, vocabulary: int = 152_064) -> dict[str, float]:
    """Seconds and peak memory of `rlcircuits.weight_change`; the checkpoints are made by another process."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / name for name in ("base", "tuned")]
        maker = multiprocessing.get_context("spawn").Process(target=_make, args=(sides, layers, vocabulary))
        maker.start()
        maker.join()
        before, begin, worked = _peak(), time.perf_counter(), time.process_time()
        base, tuned = (weights_of._read(side) for side in sides)
        table = weights_of._table(base, {"tuned": tuned}, "cpu", directions or None, pd)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
    return {
        "parameters": int(table["parameters"].sum()),
        "checkpoint_gb": round(2 * int(table["parameters"].sum()) / 1e9, 2),
        "directions": directions,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "before_gb": round(before / 1e9, 3),
        "peak_gb": round(_peak() / 1e9, 3),
    }


def _make(sides: list[Path], layers: int, vocabulary: int) -> None:
    """Both checkpoints in bfloat16, a shard for each matrix."""
    width, inner, narrow = 3584, 18_944, 512
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (narrow, width),
            "self_attn.v_proj": (narrow, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    torch.manual_seed(0)
    for side in sides:
        side.mkdir()
    for i, (name, (rows, columns)) in enumerate(shapes.items()):
        weight = torch.randn(rows, columns) * 0.02
        save_file({name: weight.bfloat16()}, sides[0] / f"model-{i:05}.safetensors")
        weight.addmm_(torch.randn(rows, 8), torch.randn(8, columns), alpha=1e-3)
        save_file({name: weight.bfloat16()}, sides[1] / f"model-{i:05}.safetensors")


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
    command = commands.add_parser("weights")
    for name, default in (("layers", 1), ("directions", 16), ("vocabulary", 152_064)):
        command.add_argument(f"--{name}", type=int, default=default)
    asked = vars(parser.parse_args())
    print(json.dumps({"overlap": overlap, "weights": weights}[asked.pop("what")](**asked)))


if __name__ == "__main__":
    main()
