"""Which cheap scores come nearest to removing edges for real: candidates beside exact effects, at block level.

1. Candidates, with their cost in passes (a forward and a backward pass) for L layers; all estimate L(edge removed) − L:

   - ``EAP`` 1, ``EAP-IG`` 5: what `rlcircuits.attribute` gives;
   - ``ends``: the gradient averaged over the clean and the wholly replaced input, 2;
   - ``source path``: one source at a time is scaled by 1/6, 3/6, 5/6 in all that reads it, gradients averaged: 3 (2L + 1);
   - ``GradDrop`` (Kramár et al. 2024): mean size over passes in which the branches of one layer give no gradient: L;
   - ``local``: the reading branch is run without the edge, exactly, and only what follows is linear:
     ⟨∂L/∂A, A(H − O) − A(H)⟩, about L/2 forward passes (AtP*'s exact attention, for whole branches);
   - ``exact norms``: the norm before the destination run exactly, the rest linear, 1; ``exact norms, sizes``: its terms' sizes
     (`rlcircuits.attribution.norms`);
   - ``mean``, ``larger``: of EAP and EAP-IG the geometric mean of sizes, and the larger of the two, 6.

   A path along what one destination reads is EAP itself but for a factor, as the norm takes no notice of scale; a path of one edge's own
   share is what `rlcircuits.ablate` does with a scale, at two re-runs an edge, and dearer than removal.
2. Exact effects: of every edge, or a sample with weights (`rlcircuits.exact_metrics`), whose agreement with each candidate is measured as in
   `rlcircuits.trust`.
3. Designs: how far the exact intensity estimated from a budget of runs is from that of all edges, over many draws: the learned design of
   `rlcircuits.exact_metrics`, sizes by |EAP|, and uniform draws, stratified by problem or not.

    python benchmarks/exactness.py CHECKPOINT --problems 12 --out results/exactness
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import rlcircuits as rc
from rlcircuits.attribution import exact_norm_scores
from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.layers import first, hooked
from rlcircuits.attribution.losses import Objective
from rlcircuits.attribution.passes import fast_pass
from rlcircuits.attribution.recording import Recorder, sources_of
from rlcircuits.exactness.collecting import collect
from rlcircuits.exactness.exact import _intensity, population
from rlcircuits.exactness.judging import agreement
from rlcircuits.exactness.sampling import Draws

STRONGEST = 0.05


class Scorer:
    """Candidates' scores of one trace of a Llama-like model, ``(source, destination)`` each."""

    def __init__(self, model: Any, trace: rc.Trace) -> None:
        self.hf = model.hf
        self.architecture, self.graph = Architecture.of(self.hf), rc.Graph.of(self.hf)
        self.batch = Objective.of("nll", self.hf, [trace], None).batch(self.hf, [trace])
        self.clean = sources_of(self.architecture, self.graph, self.hf, [trace])

    def _pass(self, start: Callable[[Tensor], Tensor] | None = None, hooks: Sequence[Any] = ()) -> np.ndarray:
        record = Recorder(self.architecture, self.graph, start)
        with hooked(list(hooks)):
            scores, _ = fast_pass(record, self.hf, self.batch, lambda _record: self.clean.sources, None)
        return scores[0].cpu().numpy()

    def along_inputs(self, shares: Sequence[float]) -> np.ndarray:
        """Gradients averaged over scaled inputs."""
        return np.mean([self._pass(lambda stream, a=a: a * stream) for a in shares], axis=0)

    def along_sources(self) -> np.ndarray:
        """Gradients averaged over one source's share in all that reads it."""
        found = np.full(self.graph.mask.shape, np.nan)
        for source in range(len(self.graph.sources)):
            each = []
            for share in (1 / 6, 3 / 6, 5 / 6):
                if not source:
                    each.append(self._pass(lambda stream, a=share: a * stream)[0])
                    continue
                layer = self.architecture.layers[(source - 1) // 2]
                module = layer.attention_out if source % 2 else layer.mlp_out
                scaled = module.register_forward_hook(lambda _module, _args, output, a=share: _scaled(output, a))
                each.append(self._pass(hooks=[scaled])[source])
            found[source] = np.mean(each, axis=0)
        return found

    def dropped(self) -> np.ndarray:
        """Mean size over passes without one layer's gradients, with EAP's sign."""
        plain, sizes = self._pass(), []
        for layer in self.architecture.layers:
            modules = (layer.attention_out, layer.mlp_out)
            sizes.append(np.abs(self._pass(hooks=[m.register_forward_hook(_without_gradient) for m in modules])))
        return np.sign(plain) * np.sum(sizes, axis=0) / max(1, len(sizes) - 1)

    def local(self) -> np.ndarray:
        """Each reading branch run exactly without the edge, what follows linear; the logits exactly."""
        called: dict[str, Any] = {}
        decoder = self.hf.model.layers

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, args: tuple, kwargs: dict, output: Any) -> None:
                tensor = first(output)
                called[name] = (args, kwargs, tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: called.__setitem__(f"{name} gradient", gradient.detach()))

            return hook

        handles = []
        for index, block in enumerate(decoder):
            for name, module in ((f"a{index}", block.self_attn), (f"m{index}", block.mlp)):
                handles.append(module.register_forward_hook(keep(name), with_kwargs=True))
        self._pass(hooks=handles)
        found = np.full(self.graph.mask.shape, np.nan)
        streams = torch.cumsum(torch.stack(self.clean.sources), 0)
        with torch.no_grad():
            whole = self._loss(streams[-1])
            for column, name in enumerate(self.graph.destinations):
                count = int(self.graph.mask[:, column].sum())
                stream = streams[count - 1]
                for source in range(count):
                    changed = stream - self.clean.sources[source]
                    if name == "logits":
                        found[source, column] = float(self._loss(changed) - whole)
                        continue
                    block = decoder[int(name[1:])]
                    _, kwargs, output = called[name]
                    if name[0] == "m":
                        after = block.mlp(block.post_attention_layernorm(changed))
                    else:
                        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
                        after = first(block.self_attn(hidden_states=block.input_layernorm(changed), **kwargs))
                    found[source, column] = float((called[f"{name} gradient"] * (after - output)).sum())
        return found

    def _loss(self, stream: Tensor) -> Tensor:
        """The loss when the logits read this stream."""
        read = self.architecture.norm_final.module.register_forward_pre_hook(lambda _module, _args: (stream,))
        with hooked([read]):
            return self.batch.losses(self.hf)[0]


def _scaled(output: Any, share: float) -> Any:
    return (share * output[0], *output[1:]) if isinstance(output, tuple) else share * output


def _without_gradient(_module: Any, _args: Any, output: Any) -> Any:
    tensor = first(output)
    silent = tensor.detach() + 0 * tensor  # a gradient of 0, not none
    return (silent, *output[1:]) if isinstance(output, tuple) else silent


def candidates(model: Any, traces: Sequence[rc.Trace], dear: bool) -> dict[str, tuple[np.ndarray, float]]:
    """By name scores ``(sample, source, destination)`` and seconds a trace; the dear ones take passes in proportion to the layers."""
    ways: dict[str, Callable[[Scorer], np.ndarray]] = {
        "EAP": lambda scorer: scorer.along_inputs([1.0]),
        "EAP-IG": lambda scorer: scorer.along_inputs([(k + 0.5) / 5 for k in range(5)]),
        "ends": lambda scorer: scorer.along_inputs([0.0, 1.0]),
        "local": Scorer.local,
    }
    if dear:
        ways |= {"source path": Scorer.along_sources, "GradDrop": Scorer.dropped}
    found = {}
    for name, way in ways.items():
        start = time.process_time()
        found[name] = (
            np.stack([way(Scorer(model, trace)) for trace in traces]),
            (time.process_time() - start) / len(traces),
        )
    start = time.process_time()
    signed, sizes = exact_norm_scores(model, traces, progress=False)
    cost = (time.process_time() - start) / len(traces)
    found |= {"exact norms": (signed.values, cost), "exact norms, sizes": (sizes.values, cost)}
    (plain, a), (averaged, b) = found["EAP"], found["EAP-IG"]
    found["mean"] = np.sign(plain) * np.sqrt(np.abs(plain * averaged)), a + b
    found["larger"] = np.where(np.abs(plain) > np.abs(averaged), plain, averaged), a + b
    return found


def measure(
    name: str,
    found: dict[str, tuple[np.ndarray, float]],
    mask: np.ndarray,
    cells: np.ndarray,
    effects: np.ndarray,
    weights: np.ndarray,
) -> pd.DataFrame:
    """Rows of model, candidate, quantity, value, low, high.

    Args:
        cells, effects: ``(run,)``, places in sample × edge and exact effects.
        weights: ``(1 + resamples, run)``; the first row is the estimate's.
    """
    rows = []
    for candidate, (scores, seconds) in found.items():
        flat = scores[:, mask].ravel()
        for quantity, values in agreement(flat, cells, effects, weights, STRONGEST).items():
            low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
            rows.append((name, candidate, quantity, float(values[0]), float(low), float(high)))
        rows.append((name, candidate, "CPU seconds a trace", seconds, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["model", "candidate", "quantity", "value", "low", "high"])


def designs(name: str, scores: Sequence[Any], exact: Any, draws: int) -> pd.DataFrame:
    """Rows of model, design, budget, error (root mean square, relative), bias, half-width (median, relative) and coverage of 95 % intervals."""
    mask = ~np.isnan(exact.values[0])
    graph = rc.Graph.build("block", (len(exact["source"]) - 1) // 2)
    cells = population(graph, np.argwhere(graph.mask), scores)
    effects = exact.values[:, mask].ravel().astype(float)
    truth, rows = np.abs(effects).mean(), []
    sizes = {"uniform": np.ones(len(effects)), "stratified": np.ones(len(effects)), "by |EAP|": np.abs(cells.scores[0])}
    for budget in (len(effects) // 4, len(effects) // 2):
        for design in ("learned", *sizes):
            found = []
            for seed in range(draws if design == "learned" else 10 * draws):
                if design == "learned":
                    drawn, values = collect(cells, lambda c: effects[c], budget, lambda *_: False, seed)
                else:
                    drawn = Draws(len(effects))
                    size = sizes[design] / sizes[design].mean() + (design == "by |EAP|")
                    strata = cells.samples if design == "stratified" else None
                    values = effects[drawn.draw(size, budget, np.random.default_rng(seed), strata)]
                found.append(_intensity(drawn, values, 0.95))
            estimate, low, high = np.array(found).T
            error = estimate / truth - 1
            rows.append(
                {
                    "model": name,
                    "design": design,
                    "cells": len(effects),
                    "budget": budget,
                    "draws": len(found),
                    "error": float(np.sqrt(np.mean(error**2))),
                    "bias": float(error.mean()),
                    "half-width": float(np.median((high - low) / 2 / truth)),
                    "coverage": float(np.mean((low <= truth) & (truth <= high))),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Measure a checkpoint whose every block edge can be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="+")
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--draws", type=int, default=40, help="of the learned design; 0: no designs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import paradigms

    tables, notes, drawn = [], [], []
    for path in options.checkpoint:
        model = rc.load_model(path, device="cpu", dtype="float32")
        problems = paradigms.family_problems("test", options.problems)
        traces = [answer.trace for answer in rc.generate(model, problems)]
        exact = rc.ablate(model, traces)
        mask = rc.Graph.of(model).mask
        effects = exact.values[:, mask].ravel().astype(float)
        member = json.loads((Path(path) / "manifest.json").read_text("utf-8"))["note"]
        weights = np.ones((1, len(effects)))
        if options.draws:
            scores = [rc.attribute(model, traces, ig_steps=steps) for steps in (1, 5)]
            scores += exact_norm_scores(model, traces)
            drawn.append(designs(member, scores, exact, options.draws))
        tables.append(measure(member, candidates(model, traces, True), mask, np.arange(len(effects)), effects, weights))
        notes.append(
            {"model": member, "problems": len(traces), "loss": float(exact["loss"].mean()), "effects": "every edge"}
        )
    if drawn:
        print(pd.concat(drawn).round(3).to_string(index=False))
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            pd.concat(drawn).to_parquet(options.out / "designs.parquet", index=False)
    write(pd.concat(tables), notes, options.out)


def write(table: pd.DataFrame, notes: list[dict[str, Any]], out: Path | None) -> None:
    """Show the table, and keep it with a note of what was measured."""
    wide = table.pivot_table(index=["model", "candidate"], columns="quantity", values="value", sort=False)
    print(wide.round(3).to_string())
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / "candidates.parquet", index=False)
    manifest = {
        "what": "candidate edge scores against exact removal, block level (benchmarks/exactness.py)",
        "date": datetime.date.today().isoformat(),
        "device": f"cpu ({platform.machine()}), one thread",
        "versions": {
            "torch": torch.__version__,
            "rlcircuits": version("rlcircuits"),
            "python": platform.python_version(),
        },
        "strongest": STRONGEST,
        "models": notes,
    }
    (out / "candidates.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
