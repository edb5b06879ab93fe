"""Circuits: the strongest edges of the scores, and how much of the model's behaviour they carry on their own.

1. A **circuit** C of n edges: rank all E edges by their mean score over samples (``signed``: what lowers the loss most
   comes first; ``absolute``: by the size of that mean, whichever its sign), ties in the order of the graph, and keep
   the first n.
2. **Ablate the rest exactly**: re-run the model with every edge outside C removed at once (each destination reads the
   sum of the outputs that its edges in C bring and of what replaces those of the others: nothing, unless an
   intervention says otherwise). m(C) = − loss of that run, in nats; m(N) is the untouched model, m(∅) the run without
   any edge.
3. **Faithfulness**  f(C) = (m(C) − m(∅)) / (m(N) − m(∅)),  a ratio of means over samples: 1 for the model itself, 0 for
   no edges. It may exceed 1 (the circuit does better than the model) or be negative (worse than nothing).
4. For k in 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100 % keep the first ⌊k E⌋ edges. The two areas integrate over k, by the
   trapezoidal rule between those k on a linear axis, from 0.1 % to 100 %:

   - **CPR**, the integrated circuit performance ratio  ∫ f(C_k) dk,  circuits ranked by signed score. More is better.
   - **CMD**, the integrated circuit-model distance  ∫ |1 − f(C_k)| dk,  circuits ranked by absolute score. 0 is best.

   A circuit that is the model at every k has CPR 0.999 and CMD 0. CPR rewards edges that help; CMD all that matter.
5. **Random edges** beside: each seed ranks the edges uniformly at random, and 3 and 4 are measured for them too.
6. With ``resume``, each batch's losses are appended to a journal (`rlcircuits.storage.journals`) when it is done. A row
   there is named by what was kept, not by how it was ranked, so other scores, shares and seeds of the same model and
   traces find the circuits they share.

With ``intervention="corrupted"`` and a difference of logits at head level, CPR and CMD are those of MIB, which drops edges that no
path connects to input and output after it has counted them: patched or not, they change nothing. Under zero ablation they are
kept here, since biases make their sources write.

Source: Mueller et al. 2025, MIB: A Mechanistic Interpretability Benchmark (arXiv 2504.13151), its circuit localisation track.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr

from rlcircuits.attribution.graph import Graph
from rlcircuits.attribution.losses import Loss, Objective
from rlcircuits.attribution.rankings import Runs
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.replacements import Replacement
from rlcircuits.attribution.traces import Trace, checked
from rlcircuits.errors import InputError, choose
from rlcircuits.metrics import edge_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANKS = ("absolute", "signed")
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def circuit(scores: xr.DataArray, n: float, rank: str = "absolute") -> xr.DataArray:
    """The strongest edges of scores, by their mean over samples.

    Args:
        scores: ``(sample, source, destination)``, as from `rlcircuits.attribute`, or one sample's
            ``(source, destination)``.
        n: how many edges as a whole number, or their share as a float in [0, 1]: ``1`` is one edge, ``1.0`` all. A
            share of E edges keeps ⌊share · E⌋, the share taken as the decimal it is written as.
        rank: ``"absolute"``, by |mean score|, or ``"signed"``, the most positive (those whose removal would raise the
            loss most) first. Edges of equal score come in the order of the graph: by source, then by destination.

    Returns:
        bool ``(source, destination)``, True for the edges kept; attrs: edges, rank and the scores' level.

    Raises:
        InputError: unusable scores, an unknown rank, or `n` out of range.
    """
    order, mask = _order(scores, rank)
    kept = np.zeros(mask.shape, bool)
    chosen = np.argwhere(mask)[order[: _count(n, len(order))]]
    kept[chosen[:, 0], chosen[:, 1]] = True
    return xr.DataArray(
        kept,
        dims=("source", "destination"),
        coords={dim: scores[dim].values for dim in ("source", "destination")},
        name="circuit",
        attrs={"edges": len(chosen), "rank": rank, **{k: scores.attrs[k] for k in ("level",) if k in scores.attrs}},
    )


def faithfulness(
    model: Any,
    traces: Sequence[Trace],
    scores: xr.DataArray,
    shares: Sequence[float] = SHARES,
    seeds: int = 5,
    cut: int | str | None = "auto",
    batch_size: int | str = "auto",
    confidence: float = 0.95,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
) -> xr.Dataset:
    """How faithful the circuits of the strongest edges are to the model, measured by re-running, and the areas CPR and
    CMD.

    Args:
        model: as for `rlcircuits.attribute`.
        traces: what the circuits are run on; those the scores are of, or held-out ones.
        scores: of every edge of the model's graph at any level, however they were made; circuits follow their mean over
            samples. What is outside a circuit is removed as `intervention` says, whatever the scores estimate.
        shares: of edges kept, rising, in [0, 1]; MIB's ten by default. The areas reach from the first to the last.
        seeds: how many random rankings (seeds 0, 1, …) are measured beside; 0 for none.
        cut: score only so many answer tokens; ``"auto"``: as many as the scores did.
        batch_size, progress: as for `attribute`; a batch's rows are (trace, circuit) runs.
        confidence: coverage of the intervals.
        resume: a folder in which finished losses are kept while the call runs; an interrupted call, made again, goes on
            from there, and a finished one runs nothing. Calls that differ in model weights, traces, level, cut,
            intervention or loss keep files of their own there. The same call with the same `batch_size` gives the same
            bits as without interruption.
        intervention, corrupted, other: what takes the place of the outputs that edges outside the circuit would bring,
            as for `attribute`: MIB's faithfulness has ``"corrupted"``, in which no edges at all is the corrupted run
                itself.
        loss: −m, as for `attribute`; MIB's m is a difference of logits.

    Returns:
        Dataset over ``sample``, ``share`` (with the coordinate ``edges``, how many are kept), ``ranking`` (signed,
        absolute), ``seed`` and ``bound`` (low, high):

        - ``full_loss``, ``empty_loss`` (sample) and ``loss`` (ranking, share, sample), in nats per token (logits for a
          difference of logits);
        - ``sample_faithfulness`` (ranking, share, sample), NaN where full and empty loss are equal, and
          ``faithfulness`` (ranking, share), the ratio of means;
        - ``CPR``, ``CMD`` and per sample ``sample_CPR``, ``sample_CMD``; ``CPR_interval``, ``CMD_interval`` (bound):
          percentiles of 9,999 bootstrap resamples of the samples (NaN for a single one);
        - ``random_loss`` (seed, share, sample), ``random_sample_faithfulness``, ``random_faithfulness`` (seed, share),
          ``random_CPR``, ``random_CMD`` (seed), and their ``…_interval``: Student's t for the mean over seeds (NaN for
          fewer than two).

        The same call gives the same numbers.

    Raises:
        InputError: as for `attribute`; scores of another graph or not of all its edges; shares, seeds or confidence out
            of range; or a loss that is not finite.
        StoreError: `resume` is a file, or cannot be written.
    """
    hf = plain(model)
    counts = _checked(shares, seeds, confidence, _order(scores, "signed")[0].size)
    cut = _cut(scores, cut)
    traces = checked(hf, traces, cut)
    graph = _graph(hf, scores)
    objective = Objective.of(loss, hf, traces, cut)
    replacement = Replacement.of(hf, graph.level, traces, intervention, corrupted, other, cut, batch_size, progress)
    rankings = [_order(scores, rank)[0] for rank in ("signed", "absolute")]
    rankings += [np.random.default_rng(seed).permutation(graph.n_edges) for seed in range(seeds)]
    runs = Runs(hf, graph, objective, replacement, traces, cut, batch_size, progress, resume)
    losses = runs.losses(rankings, (0, *counts, graph.n_edges))
    empty, full = losses[0, 0], losses[0, -1]
    if empty.mean() <= full.mean() and intervention != "model":  # between two models either may do better
        warnings.warn(
            f"without any edge the loss is {empty.mean():.3g} nats, not above the model's own {full.mean():.3g}: "
            "faithfulness, CPR and CMD say little here",
            stacklevel=2,
        )
    result = _dataset(losses[:, 1:-1], full, empty, [float(share) for share in shares], seeds, confidence)
    result = result.assign_coords(sample=[t.problem for t in traces], edges=("share", counts))
    result.attrs = {
        "level": graph.level,
        "n_edges": graph.n_edges,
        "cut": "all" if cut is None else int(cut),
        "intervention": intervention,
        "loss": objective.label,
        "confidence": float(confidence),
        "model": getattr(model, "name", "") or hf.config.name_or_path or type(hf).__name__,
    }
    return result


def areas(shares: Sequence[float], faithfulness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∫ f dk and ∫ |1 − f| dk by the trapezoidal rule, over the last axis of `faithfulness` ``(…, share)``.

    >>> [float(area) for area in areas([0.0, 0.5, 1.0], np.array([0.0, 1.0, 1.0]))]
    [0.75, 0.25]
    """
    return np.trapezoid(faithfulness, shares, axis=-1), np.trapezoid(np.abs(1 - faithfulness), shares, axis=-1)


def _dataset(
    losses: np.ndarray, full: np.ndarray, empty: np.ndarray, shares: list[float], seeds: int, confidence: float
) -> xr.Dataset:
    """Everything that follows from the losses ``(ranking, share, sample)``; signed and absolute rankings come first."""
    gap = empty - full
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(gap == 0, np.nan, (empty - losses) / gap) + 0.0  # no −0
        mean = np.where(gap.mean() == 0, np.nan, (empty - losses).mean(-1) / gap.mean()) + 0.0
    cpr, cmd = areas(shares, mean)
    sample_cpr, sample_cmd = areas(shares, each.swapaxes(1, 2))
    low_high = [_bootstrap(losses[r], gap, empty, shares, r, confidence) for r in (0, 1)]
    by = {"ranking": slice(0, 2), "seed": slice(2, None)}
    values: dict[str, Any] = {"full_loss": ("sample", full), "empty_loss": ("sample", empty)}
    for prefix, dim in (("", "ranking"), ("random_", "seed")):
        values |= {
            f"{prefix}loss": ((dim, "share", "sample"), losses[by[dim]]),
            f"{prefix}sample_faithfulness": ((dim, "share", "sample"), each[by[dim]]),
            f"{prefix}faithfulness": ((dim, "share"), mean[by[dim]]),
        }
    values |= {
        "CPR": cpr[0],
        "CMD": cmd[1],
        "sample_CPR": ("sample", sample_cpr[0]),
        "sample_CMD": ("sample", sample_cmd[1]),
        "CPR_interval": ("bound", low_high[0]),
        "CMD_interval": ("bound", low_high[1]),
        "random_CPR": ("seed", cpr[2:]),
        "random_CMD": ("seed", cmd[2:]),
        "random_faithfulness_interval": (("bound", "share"), _over_seeds(mean[2:], confidence)),
        "random_CPR_interval": ("bound", _over_seeds(cpr[2:], confidence)),
        "random_CMD_interval": ("bound", _over_seeds(cmd[2:], confidence)),
    }
    coords = {"ranking": ["signed", "absolute"], "share": shares, "seed": np.arange(seeds), "bound": ["low", "high"]}
    return xr.Dataset(values, coords)


def _bootstrap(
    losses: np.ndarray, gap: np.ndarray, empty: np.ndarray, shares: list[float], which: int, confidence: float
) -> np.ndarray:
    """Percentile interval ``(2,)`` of CPR (`which` 0) or CMD (1), samples drawn with replacement."""
    if len(gap) < 2:
        return np.full(2, np.nan)
    drawn = np.random.default_rng(0).integers(len(gap), size=(9999, len(gap)))
    gained = np.stack([(empty - row)[drawn].mean(1) for row in losses], -1)  # (resample, share)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = areas(shares, gained / gap[drawn].mean(1)[:, None])[which]
    tail = (1 - confidence) / 2
    return np.nanquantile(area, [tail, 1 - tail]) if np.isfinite(area).any() else np.full(2, np.nan)


def _over_seeds(values: np.ndarray, confidence: float) -> np.ndarray:
    """Student's interval ``(2, …)`` of the mean over the first axis."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
    return np.stack([values.mean(0) - half, values.mean(0) + half])


def _order(scores: xr.DataArray, rank: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges from the strongest, as places in the row-major list of edges, and which pairs are edges
    ``(source, destination)``.
    """
    choose("rank", rank, RANKS)
    if isinstance(scores, xr.DataArray) and "sample" not in scores.dims:
        scores = scores.drop_vars("sample", errors="ignore").expand_dims("sample")
    mean = edge_values(scores).mean(0)
    mask = ~np.isnan(scores.transpose("sample", "source", "destination").values[0])
    return np.argsort(-(np.abs(mean) if rank == "absolute" else mean), kind="stable"), mask


def _count(n: float, n_edges: int) -> int:
    whole = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    if whole and 0 <= n <= n_edges:
        return int(n)
    if isinstance(n, (float, np.floating)) and 0 <= n <= 1:
        return math.floor(Fraction(str(float(n))) * n_edges)
    raise InputError(
        f"n is {n!r}: expected a whole number of edges, 0 to {n_edges:,}, or a share as a float from 0.0 to 1.0"
    )


def _checked(shares: Sequence[float], seeds: int, confidence: float, n_edges: int) -> list[int]:
    """How many edges each share keeps.

    Raises:
        InputError: something out of range.
    """
    shares = list(shares) if isinstance(shares, (Sequence, np.ndarray)) and not isinstance(shares, str) else []
    numbers = all(isinstance(s, (int, float, np.number)) and not isinstance(s, bool) and 0 <= s <= 1 for s in shares)
    if len(shares) < 2 or not numbers or any(a >= b for a, b in pairwise(shares)):
        raise InputError(
            f"shares are {shares}: expected at least two rising numbers from 0 to 1, such as "
            "rlcircuits.attribution.circuits.SHARES"
        )
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 0:
        raise InputError(f"seeds is {seeds!r}: expected how many random rankings to measure, 0 or more")
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    return [_count(float(share), n_edges) for share in shares]


def _cut(scores: xr.DataArray, cut: int | str | None) -> int | None:
    if cut != "auto":
        return cast("int | None", cut)
    scored = scores.attrs.get("cut", "all")
    return None if scored == "all" else int(scored)


def _graph(hf: PreTrainedModel, scores: xr.DataArray) -> Graph:
    """The model's graph at the level of the scores.

    Raises:
        InputError: the scores have other nodes, or lack an edge.
    """
    names = [str(name) for name in scores["destination"].values]
    level = scores.attrs.get("level") or (
        "head" if any(".h" in n for n in names) else "qkv" if any("<" in n for n in names) else "block"
    )
    graph = Graph.of(hf, level)
    if [str(name) for name in scores["source"].values] != list(graph.sources) or names != list(graph.destinations):
        raise InputError(
            f"the scores are of a graph of {scores.sizes['source']} sources and {scores.sizes['destination']} "
            f"destinations, the model's at level {level!r} has {len(graph.sources)} and {len(graph.destinations)}: "
            "give the scores of this model"
        )
    mask = _order(scores, "signed")[1]
    if (mask != graph.mask).any():
        s, d = np.argwhere(mask != graph.mask)[0]
        what = "lack" if graph.mask[s, d] else "have"
        raise InputError(
            f"the scores {what} {graph.sources[s]}->{graph.destinations[d]}, unlike the model's graph: expected a "
            f"score for each of its {graph.n_edges:,} edges, as rlcircuits.attribute gives"
        )
    return graph


def patched_losses(
    model: Any,
    traces: Sequence[Trace],
    level: str,
    rankings: Sequence[np.ndarray],
    counts: Sequence[int],
    cut: int | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    intervention: str = "zero",
    corrupted: Sequence[Trace] | None = None,
    other: Any = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
) -> np.ndarray:
    """Losses ``(ranking, count, sample)`` with the first edges of each ranking replaced together, by re-running.

    Args:
        model, traces, level, cut, batch_size, progress, intervention, corrupted, other, loss: as for `attribute`.
        rankings: every edge of the graph, as its place in the row-major list of edges, from the first to be replaced.
        counts: how many edges are replaced.
        resume: as for `faithfulness`.

    Raises:
        InputError: as for `attribute`.
    """
    hf = plain(model)
    traces = checked(hf, traces, cut)
    graph = Graph.of(hf, level)
    objective = Objective.of(loss, hf, traces, cut)
    replacement = Replacement.of(hf, level, traces, intervention, corrupted, other, cut, batch_size, progress)
    runs = Runs(hf, graph, objective, replacement, traces, cut, batch_size, progress, resume)
    return runs.losses([order[::-1] for order in rankings], [graph.n_edges - n for n in counts])
