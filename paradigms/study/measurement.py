"""Measuring one pair of models for the controlled study: everything that later statistics resample, and no raw scores.

1. The pair's answers give the problems (`rlcircuits.select`: both right, n = 100) and, for each α, T_cut.
2. For each level and α, attribute both models' answers under both models (or each its own only), in float64: of
   confident models the losses, and so the scores, are below float32's resolution of ln p.
3. Per problem: each metric of `METRICS` that has a value per sample; the loss; the norm of the loss's gradient at the
   logits g = ‖∂L/∂logits‖ = √(Σ_t ‖softmax_t − onehot_t‖²)/T, which scales every score of the sample; intensity / g.
4. Of the two metrics of whole sets (information complexity, diversity): their value, their value for each problem
   resample of `resampling.problem_counts`, and the difference tuned − base under each swap of `resampling.swap_signs`.

`save` and `load` keep a `Measurement` in one compressed file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from paradigms.study.effects import CORNERS, POOLED, SeedCell
from paradigms.study.resampling import RESAMPLES, SWAPS, problem_counts, swap_signs
from rlcircuits.errors import InputError
from rlcircuits.metrics import METRICS, WHOLE_SET, edge_values, histogram_bins, histogram_entropy, standardised

if TYPE_CHECKING:
    from rlcircuits.answers import Answer
    from rlcircuits.attribution import Trace

SAMPLED = tuple(name for name, metric in METRICS.items() if metric.per_sample is not None)
BESIDE = ("loss", "logit_gradient", "intensity_per_gradient")
"""Measured beside `METRICS`, per sample: L in nats, g, and intensity / g."""


@dataclass(eq=False)
class Measurement:
    """One pair's cells, by (level, α), and what was selected.

    Attributes:
        cells: (level, α) -> its `SeedCell`.
        facts: accuracies, T̄, numbers of problems, T_cut by α.
    """

    cells: dict[tuple[str, float], SeedCell] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def measure(
    models: tuple[Any, Any],
    answers: tuple[Sequence[Answer], Sequence[Answer]],
    alphas: Sequence[float],
    levels: Sequence[str],
    crossed: bool,
    tests: bool,
    seed: int,
    n: int = 100,
    mean: str = "paper",
    keep: str = "both-correct",
    known: dict[Any, Any] | None = None,
) -> Measurement:
    """Measure a pair (steps 1 to 4).

    Args:
        models: base and tuned, as `rlcircuits.load_model` gives them, in float64 for step 2.
        answers: of base and tuned to the same problems.
        crossed: also score each model on the other's answers.
        tests: also keep the swaps of step 4.
        seed: of the family, for the swaps.
        n, mean, keep: as in `rlcircuits.select`.
        known: scores of the base on its own answers from other pairs with the same base; what is new is added.

    Raises:
        InputError: as `rlcircuits.select`, or fewer than two problems left.
    """
    from rlcircuits.answers import select

    found = Measurement()
    accuracy = [float(np.mean([a.correct for a in side])) for side in answers]
    found.facts = {"base_accuracy": accuracy[0], "accuracy": accuracy[1], "t_cut": {}}
    corners = CORNERS if crossed else CORNERS[:2]
    done: dict[tuple[str, int], SeedCell] = {}  # short answers: several α may cut at the same token
    gradients: dict[tuple[str, int], np.ndarray] = {}
    for alpha in alphas:
        chosen = select(*answers, alpha=alpha, n=n, mean=mean, keep=keep)
        if len(chosen.problems) < 2:
            raise InputError(f"{len(chosen.problems)} problem is left to compare the models on: expected at least two")
        found.facts |= {"t_bar": chosen.t_bar, "n_problems": len(chosen.problems)}
        found.facts["t_cut"][f"{alpha:g}"] = cut = chosen.t_cut
        traces = {"b": chosen.base_traces, "t": chosen.tuned_traces}
        for level in levels:
            if (level, cut) not in done:
                scores = {}
                for corner in corners:
                    model = models["bt".index(corner[0])]
                    if corner == "bb" and known is not None:
                        scores[corner] = _with_known(known, model, traces["b"], level, cut)
                        continue
                    if (corner, cut) not in gradients:
                        gradients[corner, cut] = logit_gradient(model, traces[corner[1]], cut)
                    scores[corner] = attributed(model, traces[corner[1]], level, cut, gradients[corner, cut])
                done[level, cut] = seed_cell(scores, tests, seed)
            found.cells[level, float(alpha)] = done[level, cut]
    return found


def attributed(
    model: Any, traces: Sequence[Trace], level: str, cut: int | None, gradient: np.ndarray | None = None
) -> xr.DataArray:
    """Scores as `rlcircuits.attribute` gives them, with a further coordinate ``logit_gradient`` (see step 3)."""
    from rlcircuits.attribution import attribute

    scores = attribute(model, traces, level, cut=cut, progress=False)
    gradient = logit_gradient(model, traces, cut) if gradient is None else gradient
    return scores.assign_coords(logit_gradient=("sample", gradient))


def _with_known(
    known: dict[Any, Any], model: Any, traces: Sequence[Trace], level: str, cut: int | None
) -> xr.DataArray:
    """`attributed`, of which the samples that are in `known` are taken from there."""
    keys = [(level, cut, trace.problem, *trace.answer) for trace in traces]
    if new := [trace for key, trace in zip(keys, traces) if key not in known]:
        found = attributed(model, new, level, cut)
        known.update(zip([key for key in keys if key not in known], (found[[i]] for i in range(len(new)))))
    return xr.concat([known[key] for key in keys], "sample")


def logit_gradient(model: Any, traces: Sequence[Trace], cut: int | None) -> np.ndarray:
    """‖∂L/∂logits‖ per sample, in nats, ``(sample,)``: √(Σ_t ‖softmax_t − onehot_t‖²) / T over the T tokens scored."""
    import torch

    from rlcircuits.attribution import padded, plain

    hf = plain(model)
    traces = [trace.cut(cut) for trace in traces]
    ids, positions, targets = padded(traces, hf.get_input_embeddings().weight.device)
    with torch.no_grad():
        logits = hf(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
        p = logits.softmax(-1)
        kept = targets != -100
        p.scatter_add_(-1, targets.clamp(min=0)[..., None], -torch.ones_like(p[..., :1]))
        squares = (p**2).sum(-1) * kept
        return (squares.sum(1).sqrt() / kept.sum(1)).cpu().numpy().astype(np.float64)


def sample_values(scores: xr.DataArray) -> np.ndarray:
    """Every per-sample metric, then `BESIDE`, float64 ``(sample, metric)``."""
    columns = [METRICS[name].per_sample(scores).values for name in SAMPLED]
    gradient = scores["logit_gradient"].values
    intensity = columns[SAMPLED.index("activation_intensity")]
    ratio = np.divide(intensity, gradient, out=np.full_like(intensity, np.nan), where=gradient > 0)
    return np.stack([*columns, scores["loss"].values, gradient, ratio], axis=1).astype(np.float64)


def seed_cell(
    scores: Mapping[str, xr.DataArray], tests: bool, seed: int, resamples: int = RESAMPLES, swaps: int = SWAPS
) -> SeedCell:
    """A `SeedCell` from the scores of each corner."""
    corners = tuple(scores)
    sampled = np.stack([sample_values(scores[corner]) for corner in corners])
    edges = [edge_values(scores[corner]) for corner in corners]
    n = edges[0].shape[0]
    counts = problem_counts(n, resamples)
    pooled = np.empty((len(corners), len(POOLED)))
    boot = np.empty((len(corners), len(POOLED), resamples), np.float32)
    for k, values in enumerate(edges):
        for m, name in enumerate(POOLED):
            statistic = WHOLE_SET[name](values)
            pooled[k, m] = statistic(np.ones((1, n)))[0]
            boot[k, m] = statistic(counts)
    swap = None
    if tests:
        kept = (swap_signs(n, seed, swaps) > 0).astype(np.float64)
        as_base, as_tuned = np.concatenate([kept, 1 - kept], 1), np.concatenate([1 - kept, kept], 1)
        both = np.concatenate([edges[corners.index("bb")], edges[corners.index("tt")]])
        swap = np.empty((len(POOLED), swaps), np.float32)
        for m, name in enumerate(POOLED):
            statistic = WHOLE_SET[name](both)
            swap[m] = statistic(as_tuned) - statistic(as_base)
    return SeedCell((*SAMPLED, *BESIDE, *POOLED), corners, sampled, pooled, boot, swap, seed)


def complexity_statistic(values: np.ndarray, counts: np.ndarray, bins: int, epsilon: float) -> np.ndarray:
    """`information_complexity` with any `bins` and `epsilon`, for problem resamples, ``(resample,)``.

    Args:
        values: ``(sample, edge)``.
        counts: ``(resample, sample)``.
    """
    sizes = np.abs(values)
    maxima = sizes.max(axis=1)
    largest = np.where(counts > 0, maxima, 0.0).max(axis=1)
    found = np.empty(len(counts))
    for end in np.unique(largest):
        flat = histogram_bins(sizes, end, bins) + np.arange(len(sizes))[:, None] * bins
        each = np.bincount(flat.ravel(), minlength=len(sizes) * bins).reshape(-1, bins).astype(float)
        rows = largest == end
        found[rows] = histogram_entropy(counts[rows] @ each, epsilon)
    return found


def diversity_statistic(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`inter_sample_diversity` for problem resamples, ``(resample,)``; a problem is never paired with itself."""
    z = standardised(values)
    correlation = z @ z.T
    np.fill_diagonal(correlation, 0.0)
    pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
    total = ((counts @ correlation) * counts).sum(axis=1)
    return 1 - np.divide(total, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def save(measurement: Measurement, file: str | os.PathLike[str]) -> None:
    """Write a measurement to one ``.npz`` file."""
    arrays, index = {}, []
    for number, ((level, alpha), cell) in enumerate(measurement.cells.items()):
        index.append(
            {"level": level, "alpha": alpha, "corners": cell.corners, "metrics": cell.metrics, "seed": cell.seed}
        )
        for name in ("sampled", "pooled", "pooled_boot", "pooled_swap"):
            if getattr(cell, name) is not None:
                arrays[f"{number}/{name}"] = getattr(cell, name)
    with Path(file).open("wb") as stream:
        np.savez(stream, about=np.array(json.dumps({"facts": measurement.facts, "cells": index})), **arrays)


def load(file: str | os.PathLike[str]) -> Measurement:
    """The measurement that `save` wrote."""
    with np.load(file) as arrays:
        about = json.loads(str(arrays["about"]))
        found = Measurement(facts=about["facts"])
        for number, one in enumerate(about["cells"]):
            parts = {
                name: arrays.get(f"{number}/{name}") for name in ("sampled", "pooled", "pooled_boot", "pooled_swap")
            }
            found.cells[one["level"], one["alpha"]] = SeedCell(
                tuple(one["metrics"]), tuple(one["corners"]), seed=one["seed"], **parts
            )
    return found
