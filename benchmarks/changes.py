"""What the tools for a change cost: time beside a plain pass, at the sizes of published models, and memory beside what is given.

``cross``: scores of edges with another model's messages (first order, and integrated over five nodes) beside `rlcircuits.attribute`
as it is and beside one plain forward and backward pass, as in `benchmarks.attribution`.
``graft``: every chimaera of a pair, both ways, on both models' answers: the family's on 300 problems, the real model's on a few.
``overlap``: two head graphs as of a 7B model (32 layers of 32 heads, 1.6 million edges) of 100 problems, float32, at random.
``study``: a whole study of the real model's pair, on one thread.
``weights``: two made-up checkpoints in shards, with a layer of the shapes of Qwen2.5-7B and its two vocabulary matrices; the tuned
one differs by a change of rank 8. Memory depends on the largest matrix, not on how many there are.

    python -m benchmarks.changes cross overlap --out results/benchmarks

Each suite runs in a process of its own, one thread for models; its rows take the place of those that the table has of it.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors.torch import save_file

import rlcircuits as rc
from benchmarks.attribution import SMALL, Row, Shape, Where, against, build, floor, interleaved, keep, processor, trace
from rlcircuits.models import weights as weights_of

LEVELS = ("block", "qkv", "head")
#: cost of first-order scores with another model's messages beside plain ones
TARGET = 2.1
#: seconds: overlap; grafts of the family's pair on 300 problems, of the real model's on 20; a study of that
OVERLAP_SECONDS, FAMILY_SECONDS, REAL_SECONDS = 10.0, 30.0, 600.0
STUDY_SECONDS = {"from nothing": 1200.0, "answers there": 180.0}
NODES = 5


def cross(shape: Shape = SMALL, tokens: int = 64, rounds: int = 3) -> list[Row]:
    """Scores with another model's messages against plain ones, level by level, in turns."""
    torch.set_num_threads(1)
    where = Where(rounds=rounds)
    base, other, one = build(shape, where), build(shape, where), trace(tokens, shape.vocabulary)
    found = []
    for level in LEVELS:
        plain = functools.partial(rc.attribute, base, [one], level, batch_size=1, progress=False)
        patched = functools.partial(plain, intervention="model", other=other)
        works: dict[str, Callable[[], object]] = {
            "floor": functools.partial(floor, base, one),
            level: plain,
            f"{level}, other model": patched,
            f"{level}, other model, {NODES} nodes": functools.partial(patched, ig_steps=NODES, path="edges"),
        }
        times = interleaved(works, where, warm=1)
        beside = against(times, level)
        for case, row in against(times, "floor").items():
            target = TARGET if case == f"{level}, other model" else float("nan")
            found.append(
                {"suite": "cross", "case": case, "shape": shape.name, "tokens": tokens, **row}
                | {"ratio_plain": beside[case]["ratio"], "target": target}
            )
    return found


def graft(problems: int = 300, real: int = 4, store: str = "runs") -> list[Row]:
    """Every chimaera of ``family/grpo`` and of ``smollm2/grpo``, on so many problems (0: not at all); time is linear in them."""
    found = []
    for name, set_name, n, target, full in (
        ("family/grpo", "family", problems, FAMILY_SECONDS, 300),
        ("smollm2/grpo", "stories", real, REAL_SECONDS, 20),
    ):
        if not n:
            continue
        pair = rc.pair(name, store=store)
        given = rc.problem_set(set_name, limit=n)
        one = rc.study(pair, given, alpha=1.0, n=n, keep="all", beta=0.0, gamma=1e9, delta=2.0, store=store)[name]
        models, chosen = (pair.load("base"), pair.load("tuned")), one.selection
        traces = {"base": chosen.base_traces, "tuned": chosen.tuned_traces}
        begin, worked = time.perf_counter(), time.process_time()
        made = rc.graft(models, traces, cut=chosen.t_cut, progress=False)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
        found.append(
            {"suite": "graft", "case": name, "problems": len(chosen.problems), "chimaeras": made.data.sizes["chimaera"]}
            | {"seconds": seconds, "cpu_seconds": cpu, "of": full, "seconds_of": seconds * full / len(chosen.problems)}
            | {"target": target}
        )
    return found


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


def overlap(layers: int = 32, heads: int = 32, problems: int = 100) -> list[Row]:
    """Seconds of `rlcircuits.overlap` and its peak memory, as a multiple of the two score arrays'."""
    a, b = (scores(layers, heads, problems, (0, seed)) for seed in (1, 2))
    before, begin, worked = _peak(), time.perf_counter(), time.process_time()
    found = rc.overlap(a, b)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
    given = a.nbytes + b.nbytes
    edges = int(np.isfinite(found.means.values[0]).sum())
    return [
        {"suite": "overlap", "case": f"{edges:,} edges", "problems": problems, "seconds": seconds, "cpu_seconds": cpu}
        | {"target": OVERLAP_SECONDS, "given_gib": given / 2**30, "peak_gib": _peak() / 2**30}
        | {"peak_ratio": 1 + (_peak() - before) / given}
    ]


def weights(layers: int = 1, directions: int = 16, vocabulary: int = 152_064) -> list[Row]:
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
    numbers = int(table["parameters"].sum())
    return [
        {"suite": "weights", "case": f"{numbers / 1e9:.1f} B parameters, {directions} directions", "seconds": seconds}
        | {
            "cpu_seconds": cpu,
            "given_gib": 4 * numbers / 2**30,
            "before_gib": before / 2**30,
            "peak_gib": _peak() / 2**30,
        }
    ]


def study(pair: rc.ModelPair | str = "smollm2/grpo", problems: rc.ProblemSet | None = None, n: int = 100) -> list[Row]:
    """Seconds and peak memory of `rlcircuits.study` from nothing, and of the same when the answers are there."""
    torch.set_num_threads(1)
    given, found = problems or rc.problem_set("stories"), []
    with tempfile.TemporaryDirectory() as folder:
        for case, target in STUDY_SECONDS.items():
            begin, worked = time.perf_counter(), time.process_time()
            one = next(iter(rc.study(pair, given, n=n, store=folder).pairs.values()))
            seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
            found.append(
                {"suite": "study", "case": case, "asked": len(given), "problems": len(one.selection.problems)}
                | {"seconds": seconds, "cpu_seconds": cpu, "target": target, "peak_gib": _peak() / 2**30}
            )
            for kept in Path(folder).iterdir():
                if kept.name != "answers":
                    shutil.rmtree(kept)
    return found


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


SUITES: dict[str, Callable[[], list[Row]]] = {
    "cross": cross, "graft": graft, "overlap": overlap, "study": study, "weights": weights,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, with --out, keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder for changes.parquet and changes.json")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.suites) - set(SUITES)):
        parser.error(f"unknown suite {unknown[0]!r}: expected {', '.join(SUITES)}")
    for name in options.suites or SUITES:
        print(f"==> {name}: {str(SUITES[name].__doc__).splitlines()[0]}", flush=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            rows = pd.DataFrame(own.submit(SUITES[name]).result())
        print(rows.drop(columns="suite").round(3).to_string(index=False), flush=True)
        if options.out:
            kept = options.out / "changes.parquet"
            before = [pd.read_parquet(kept).query("suite != @name")] if kept.exists() else []
            keep(pd.concat([*before, rows], ignore_index=True), options.out / "changes", processor(), Where(rounds=3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
