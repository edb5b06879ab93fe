"""How much two circuits overlap: the edges that matter to one model, and those that matter to the other.

1. A model's edges are ranked by their mean score over problems, its nodes by the sum of what their outgoing edges have: the
   first-order effect of removing all that the node writes. How far two models' rankings agree is measured as in
   `rlcircuits.changes.rankings`: Jaccard index of the strongest edges at each share, rank-biased overlap, correlations.
2. **Intervals** over problems: value ± z · (standard deviation over bootstrap resamples of the problems, the same ones for
   both). Percentiles would be wrong here: a resample repeats problems, which makes its rankings noisier and their overlap
   smaller than the sample's own.
3. Overlap means nothing without what it would be if nothing were shared, or nothing had changed:

   - **random**: rankings in random order, in closed form;
   - **own**: the same model on two random halves of its problems, many times; **across**: one model on one half, the other
     model on the other half. A circuit is not stable under resampling (arXiv 2510.00845), so what tells two models apart is
     across against own, from equally many, different problems; the value itself shares its problems' noise.
4. One array at a time is laid out by edges alone. Resampled means are one product of matrices for several resamples at once,
   and only the strongest edges of each are sorted, so that millions of edges take seconds.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.changes.rankings import Agreement, Ranked, expect_shares
from rlcircuits.changes.resampling import expect_intervals, resampled
from rlcircuits.errors import InputError, choose, expect_whole
from rlcircuits.metrics import aligned, edge_values

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
RANKS = ("absolute", "signed")
#: resamples and splits of graphs of up to so many edges, and of larger ones
_LARGE, _FEW, _MANY = 2**15, (60, 16), (400, 100)
#: numbers of resampled means held at a time, for each of two models
_NUMBERS = 2**25


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """What `overlap` found.

    Attributes:
        table: by ``of`` ("edges", "nodes") and ``quantity`` ("Jaccard 0.05", …, "rank-biased overlap", "Pearson",
            "Spearman", "Pearson of sizes", "Spearman of sizes"): ``value`` of the two models, and ``low``, ``high``; the
            same three of the nulls: ``random``, ``random_low``, ``random_high`` (quantiles of random orders); ``own_a``,
            ``own_b`` and ``across``, means over splits, with the quantiles of splits. NaN where there are too few problems.
        means: ``(model, source, destination)``, the mean scores in nats; models "a" and "b"; NaN where there is no edge.
        names: what the two scores call their models.
        n: problems.
        shares: of edges, rising.
        p: persistence of the rank-biased overlap, of edges and of nodes.
        rank: how edges are ranked.
        confidence: coverage of the intervals and the quantiles.
        resamples, splits: how many there were.
    """

    table: pd.DataFrame
    means: xr.DataArray
    names: tuple[str, str]
    n: int
    shares: tuple[float, ...]
    p: tuple[float, float]
    rank: str
    confidence: float
    resamples: int
    splits: int

    def edges(self, share: float | None = None) -> pd.DataFrame:
        """The edges that are among the strongest share of either model.

        Args:
            share: above 0 and at most 1; the smallest of `shares` when None.

        Returns:
            Indexed by edge, the largest |b − a| first: ``a``, ``b``, ``change`` (mean scores and b − a, in nats), ``in_a``,
            ``in_b``.

        Raises:
            InputError: a share out of range.
        """
        share = self.shares[0] if share is None else expect_shares([share])[0]
        values = self.means.values
        where = np.argwhere(np.isfinite(values[0]))
        a, b = (one[tuple(where.T)] for one in values)
        agreement = Agreement(len(a), [share], rank=self.rank)
        in_a, in_b = (agreement.ranked(one).place < agreement.kept[0] for one in (a, b))
        chosen = np.flatnonzero(in_a | in_b)
        chosen = chosen[np.argsort(-np.abs(b - a)[chosen], kind="stable")]
        sources, destinations = (self.means[dim].values.astype(str) for dim in ("source", "destination"))
        names = [f"{sources[i]}->{destinations[j]}" for i, j in where[chosen]]
        columns = {"a": a, "b": b, "change": b - a, "in_a": in_a, "in_b": in_b}
        index = pd.Index(names, name="edge")
        return pd.DataFrame({name: column[chosen] for name, column in columns.items()}, index=index)

    @property
    def title(self) -> str:
        """What was compared, in a line."""
        first, second = self.names
        return f"Overlap of two circuits (a: {first}, b: {second}) on {self.n} problem{'s' * (self.n != 1)}"

    def shown(self) -> pd.DataFrame:
        """The table, each number as "value [low, high]"."""
        names = [name for name in map(str, self.table) if not name.endswith(("low", "high"))]
        shown = {}
        for name in names:
            ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
            shown[name] = [_shown(*row) for row in self.table[[name, *ends]].to_numpy(float)]
        return pd.DataFrame(shown, index=self.table.index)

    def __repr__(self) -> str:
        return f"{self.title}\n{self.shown().to_string()}"

    def _repr_html_(self) -> str:
        note = (
            f"value: interval over problems ({self.resamples} resamples); random: orders by chance; own: the same model on "
            f"two halves of the problems, across: two models on two halves ({self.splits} splits)"
        )
        return (
            f'<div class="mathjax_ignore tex2jax_ignore"><p><b>{html.escape(self.title)}</b></p>'
            f"{self.shown().to_html(escape=True, border=0)}<p>{html.escape(note)}</p></div>"
        )


def _shown(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if math.isnan(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def overlap(
    a: xr.DataArray,
    b: xr.DataArray,
    shares: Sequence[float] = SHARES,
    p: float | None = None,
    rank: str = "absolute",
    confidence: float = 0.95,
    resamples: int | None = None,
    splits: int | None = None,
    seed: int = 0,
) -> Overlap:
    """How much two models' circuits overlap, beside what chance and the choice of problems would give.

    Args:
        a, b: scores ``(sample, source, destination)`` of two models on the same problems, in any order, and the same graph,
            as from `rlcircuits.attribute`.
        shares: of edges (and of nodes) that count as the strongest; of E edges ⌊share · E⌋, at least one.
        p: persistence of the rank-biased overlap, between 0 and 1; None for a mean depth 1 / (1 − p) of 1 % of the items,
            at least 10.
        rank: ``"absolute"``, by |mean score|, or ``"signed"``, as for `rlcircuits.circuit`.
        confidence: coverage of the intervals, and between the quantiles of the nulls.
        resamples, splits: bootstrap resamples, and random halves of the problems; None for 400 and 100, or 60 and 16 for more
            than 32,768 edges.
        seed: of both.

    Returns:
        An `Overlap`. One problem has no interval, and neither has it halves.

    Raises:
        InputError: scores that are none, of other problems or another graph, or a parameter out of range.
    """
    shares = expect_shares(shares)
    choose("rank", rank, RANKS)
    if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p < 1):
        raise InputError(f"p is {p!r}: expected a number between 0 and 1, such as 0.9, or None")
    for one in (a, b):
        few = isinstance(one, xr.DataArray) and "sample" in one.dims
        edge_values(one.isel(sample=slice(0, 1)) if few else one)  # its checks
    a, b = aligned(a, b, ("a", "b"))
    mask = ~np.isnan(a.values[0])
    small = mask.sum() <= _LARGE
    resamples, splits = (
        value if value is not None else (_MANY if small else _FEW)[i] for i, value in enumerate((resamples, splits))
    )
    expect_intervals(confidence, resamples, seed)
    expect_whole("resamples", resamples, 2)
    expect_whole("splits", splits, 1)
    with ThreadPoolExecutor(2) as pool:
        laid_out = list(pool.map(lambda scores: _laid_out(scores, mask), (a, b)))
    means = np.full((2, *mask.shape), np.nan)
    tables, persistences = {}, []
    for name, two in zip(("edges", "nodes"), zip(*laid_out)):
        with ThreadPoolExecutor(2) as pool:
            whole = list(pool.map(lambda scores: scores.mean(0, dtype=float), two))
        if name == "edges":
            means[:, mask] = whole
        agreement = Agreement(two[0].shape[1], shares, p, rank)
        persistences.append(agreement.persistence)
        tables[name] = _table(agreement, two, whole, confidence, resamples, splits, seed)
    dims = ("source", "destination")
    return Overlap(
        table=pd.concat(tables, names=["of", "quantity"]),
        means=xr.DataArray(
            means, {"model": ["a", "b"], **{d: a[d].values for d in dims}}, ("model", *dims), name="mean"
        ),
        names=(str(a.attrs.get("model", "")), str(b.attrs.get("model", ""))),
        n=a.sizes["sample"],
        shares=tuple(shares),
        p=(persistences[0], persistences[1]),
        rank=rank,
        confidence=confidence,
        resamples=resamples,
        splits=splits,
    )


def _laid_out(scores: xr.DataArray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``(sample, edge)``, and ``(sample, node)`` summed over outgoing edges; a row at a time.

    Raises:
        InputError: a score that is not finite, or missing for some samples only.
    """
    values = scores.values.reshape(scores.sizes["sample"], -1)
    places = np.flatnonzero(mask)
    edges = np.empty((len(values), len(places)), values.dtype if values.dtype.kind == "f" else float)
    for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):  # edges side by side
        edges[:, run[0] : run[-1] + 1] = values[:, places[run[0]] : places[run[-1]] + 1]
    if any(np.count_nonzero(np.isnan(row)) != mask.size - len(places) for row in values) or not all(
        np.isfinite(row).all() for row in edges
    ):
        edge_values(scores)  # says which
    starts = np.searchsorted(places, np.flatnonzero(mask.any(1)) * mask.shape[1])
    return edges, np.stack([np.add.reduceat(row, starts, dtype=float) for row in edges])


def _table(
    agreement: Agreement,
    two: Sequence[np.ndarray],
    means: Sequence[np.ndarray],
    confidence: float,
    resamples: int,
    splits: int,
    seed: int,
) -> pd.DataFrame:
    """Every quantity with its interval and its nulls, of two models' scores ``(sample, item)`` and their means ``(item,)``."""
    from scipy.stats import norm

    (a, b), names = two, agreement.names
    n = len(a)
    with ThreadPoolExecutor(2) as pool:
        value = agreement.of(*pool.map(lambda mean: agreement.ranked(mean, every=True), means))
    columns = {"value": value, "low": np.full(len(names), np.nan), "high": np.full(len(names), np.nan)}
    random = agreement.random(confidence)
    columns |= {"random": random[:, 0], "random_low": random[:, 1], "random_high": random[:, 2]}
    halves = np.full((splits, 3, len(names)), np.nan)
    if n > 1:
        again = _again(agreement, resampled(n, resamples, seed)[:, None], a, b, agreement.of)
        half = float(norm.ppf((1 + confidence) / 2)) * again.std(0, ddof=1)
        columns["low"] = np.clip(value - half, agreement.lowest, 1.0)
        columns["high"] = np.clip(value + half, agreement.lowest, 1.0)

        def of_halves(a1: Ranked, b1: Ranked, a2: Ranked, b2: Ranked) -> np.ndarray:
            across = (agreement.of(a1, b2) + agreement.of(a2, b1)) / 2
            return np.stack([agreement.of(a1, a2), agreement.of(b1, b2), across])

        halves = _again(agreement, _halves(n, splits, seed), a, b, of_halves)
    tail = (1 - confidence) / 2
    for i, name in enumerate(("own_a", "own_b", "across")):
        low, high = np.quantile(halves[:, i], [tail, 1 - tail], axis=0)
        columns |= {name: halves[:, i].mean(0), f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(columns, index=pd.Index(names, name="quantity"))


def _halves(n: int, splits: int, seed: int) -> np.ndarray:
    """Weights ``(split, 2, problem)`` of the means over two disjoint halves; of an odd number the second has one more."""
    rng = np.random.default_rng([seed, 1])
    weights = np.zeros((splits, 2, n))
    for split in weights:
        order = rng.permutation(n)
        for weight, half in zip(split, (order[: n // 2], order[n // 2 :])):
            weight[half] = 1 / len(half)
    return weights


def _again(
    agreement: Agreement, weights: np.ndarray, a: np.ndarray, b: np.ndarray, measure: Callable[..., np.ndarray]
) -> np.ndarray:
    """What `measure` gives for weighted means over problems, of both models and of each row of weights in turn.

    Args:
        weights: ``(repetition, row, problem)``.
    """
    repetitions, rows, _ = weights.shape
    step = min(repetitions, max(1, _NUMBERS // (agreement.n * rows)))

    def one(means: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return measure(*(agreement.ranked(row) for both in zip(*means) for row in both))

    found: list[np.ndarray] = []
    room = [np.empty((step * rows, agreement.n), scores.dtype) for scores in (a, b)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1) if step < repetitions else 1) as pool:
        for begin in range(0, repetitions, step):
            part = weights[begin : begin + step]
            flat = part.reshape(-1, part.shape[-1])
            means = [
                np.matmul(flat.astype(scores.dtype), scores, out=out[: len(flat)]).reshape(*part.shape[:2], -1)
                for scores, out in zip((a, b), room)
            ]
            found += pool.map(one, zip(*means))
    return np.stack(found)
