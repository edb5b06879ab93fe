"""The change itself, edge by edge: one model with what single edges carry in the other.

1. In model A an edge s → d is **patched**: d reads H − O_s + O′_s, where O′_s is what the source writes in model B on the same
   tokens. A is the base and B the tuned model to **bring** the change, and the other way round to **undo** it.
2. Of every edge, how patching it moves A's loss: to **first order** (`rlcircuits.attribute` with ``intervention="model"``:
   one pass of each model), **integrated** along the path on which all edges go over from A to B at the same pace
   (`rlcircuits.attribution.paths`), and **exactly**, by re-running A (`rlcircuits.ablate`).
3. **Completeness**: the integrated effects of all edges add up to L(A with every edge patched) − L(A). With every edge patched
   A's final norm and output embedding read B's final stream. What B's own make of it, L(B) − L(A with every edge patched),
   is carried by no edge; it is 0 where the two models share them. The embeddings are the source ``input`` and accounted for.
4. **Together**: edges are patched in order of how far each moves the loss towards B's, 1, 2, 5, … of them, and A is re-run.
   Where it then **stands** between base (0) and tuned model (1) is a ratio of means of losses, as in
   `rlcircuits.changes.grafting`; random edges are patched beside.

To first order and exactly single edges do not add up: two edges may bring the same thing, or need each other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlcircuits.answers import SIDES
from rlcircuits.attribution import Loss, Trace, ablate, attribute, patched_losses, token_losses
from rlcircuits.changes.resampling import RESAMPLES, all_and_resampled, expect_intervals, percentiles, ratios
from rlcircuits.changes.sides import Pair, both, of_problems, sided
from rlcircuits.errors import InputError, choose, expect_whole
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import pandas as pd

PATCHING = Step("patching", 1)
#: what is done, by the side that is run, and whose answers that is done on
DIRECTIONS = {"bring": ("base", "tuned"), "undo": ("tuned", "base")}
EFFECTS = ("first", "integrated", "exact")


@dataclass(frozen=True, eq=False, repr=False)
class Patching:
    """What `cross_patch` found.

    Attributes:
        data: by direction (bring, undo), a Dataset over ``sample``, ``source``, ``destination``, ``ranking`` (first,
            integrated, random 0, …) and ``patched`` (how many edges): ``first``, ``integrated``, ``exact`` effects in nats
            (NaN where not run), ``together`` (ranking, patched, sample), the losses with so many edges patched;
            ``here``, ``there`` and ``all`` (sample), the losses of the model that is run, of the other one, and with every
            edge patched; ``gap`` (sample), what the integrated effects of all edges add up to beyond ``all`` − ``here``.
        confidence, resamples, seed: of the intervals over problems.
    """

    data: Mapping[str, xr.Dataset]
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0

    def edges(self, n: int | None = 10) -> pd.DataFrame:
        """The edges that move the loss most, by their integrated effects.

        Args:
            n: how many of each direction; all when None.

        Returns:
            Columns ``direction``, ``edge``, ``first``, ``integrated``, ``exact`` (means over problems, nats; NaN where not
            run) and ``low``, ``high``, the interval of the integrated effect.
        """
        import pandas as pd

        frames = []
        for direction, data in self.data.items():
            flat = data[list(EFFECTS)].stack(edge=("source", "destination")).dropna("edge", how="all")
            means = {name: flat[name].mean("sample").values for name in EFFECTS}
            low, high = self._over_problems(flat["integrated"].transpose("sample", "edge").values)
            frame = pd.DataFrame(
                {"edge": [f"{s}->{d}" for s, d in flat["edge"].values], **means, "low": low, "high": high}
            )
            frame = frame.sort_values("integrated", key=abs, ascending=False, kind="stable").head(n or len(frame))
            frames.append(frame.assign(direction=direction))
        return pd.concat(frames, ignore_index=True)[["direction", "edge", *EFFECTS, "low", "high"]]

    def accounts(self) -> pd.DataFrame:
        """What the edges account for, by direction: ``here``, ``there`` (the two losses, means in nats), ``change`` between
        them, ``edges`` (the change with every edge patched), ``beyond`` (what the other's final norm and output embedding
        do), ``integrated``, ``first`` (the sums of the effects of all edges).
        """
        import pandas as pd

        rows = {}
        for direction, data in self.data.items():
            here, there, everything = (float(data[name].mean()) for name in ("here", "there", "all"))
            sums = {name: float(data[name].sum(["source", "destination"]).mean()) for name in ("integrated", "first")}
            rows[direction] = {
                "here": here,
                "there": there,
                "change": there - here,
                "edges": everything - here,
                "beyond": there - everything,
                **sums,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("direction")

    def curves(self) -> pd.DataFrame:
        """Where the model stands between base (0) and tuned model (1) with so many edges patched together.

        Returns:
            Columns ``direction``, ``ranking`` (first, integrated, random), ``patched``, ``share`` (of all edges), ``stands``,
            ``low``, ``high`` over problems; random is the mean over seeds.
        """
        import pandas as pd

        frames = []
        for direction, data in self.data.items():
            weights = all_and_resampled(data.sizes["sample"], self.resamples, self.seed)
            ends = [data["here"].values, data["there"].values]
            base, tuned = ends if direction == "bring" else ends[::-1]
            for ranking in ("first", "integrated", "random"):
                chosen = [str(name) for name in data["ranking"].values if str(name).startswith(ranking)]
                if not chosen:
                    continue
                losses = data["together"].sel(ranking=chosen).mean("ranking").transpose("patched", "sample").values
                values = ratios(weights @ (base - losses).T, (weights @ (base - tuned))[:, None])
                low, high = percentiles(values[1:], self.confidence)
                patched = data["patched"].values
                frame = pd.DataFrame(
                    {"patched": patched, "share": patched / data.attrs["n_edges"], "stands": values[0]}
                )
                frames.append(frame.assign(low=low, high=high, direction=direction, ranking=ranking))
        first = ["direction", "ranking"]
        return pd.concat(frames, ignore_index=True)[[*first, "patched", "share", "stands", "low", "high"]]

    def on(self, problems: Collection[str]) -> Patching:
        """The same of some of its problems alone."""
        return replace(self, data={name: of_problems(one, problems) for name, one in self.data.items()})

    def measures(self) -> dict[str, dict[str, xr.DataArray]]:
        """The effects, as `rlcircuits.export` and `rlcircuits.explore` take further measures of edges: by kind, and by the
        model that is run.
        """
        found = {
            kind: {
                DIRECTIONS[direction][0]: data[kind]
                for direction, data in self.data.items()
                if bool(data[kind].notnull().any())
            }
            for kind in EFFECTS
        }
        return {f"other model's, {kind}": sides for kind, sides in found.items() if sides}

    def _over_problems(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return percentiles((all_and_resampled(len(values), self.resamples, self.seed) @ values)[1:], self.confidence)

    @property
    def title(self) -> str:
        """What was found, in a line."""
        said = []
        curves = self.curves()
        for direction in self.data:
            one = curves[(curves["direction"] == direction) & (curves["ranking"] == "integrated")]
            done = one["stands"] if direction == "bring" else 1 - one["stands"]
            enough = one[done >= 0.5]
            if one["stands"].isna().all():
                said.append(f"{direction}: the two losses are the same")
            elif len(enough):
                row = enough.iloc[0]
                said.append(f"{row['patched']:.0f} edges ({row['share']:.1%}) {direction} half of the change")
            else:
                said.append(f"no number of edges tried {direction}s half of the change")
        return "; ".join(said)

    def __repr__(self) -> str:
        tables = (one.to_string(float_format="{:.3g}".format) for one in (self.accounts(), self.edges(5)))
        return "\n".join([self.title, *tables])


def cross_patch(
    pair: Pair,
    traces: Sequence[Trace] | Mapping[str, Sequence[Trace]],
    level: str = "block",
    directions: Sequence[str] = tuple(DIRECTIONS),
    steps: int = 5,
    exact: int | None = 0,
    counts: Sequence[int] | None = None,
    seeds: int = 3,
    cut: int | None = None,
    loss: str | Loss | Sequence[Sequence[float]] = "nll",
    batch_size: int | str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    resume: str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = True,
) -> Patching:
    """What each edge carries of the change between two models, and which few bring or undo it.

    Args:
        pair: a `rlcircuits.ModelPair`, a registered pair's name, or two loaded models, base first.
        traces: answers whose loss is measured; as ``{"base": …, "tuned": …}`` of both models, of which each direction takes
            those of the model that it leads to.
        level: of the graph.
        directions: ``"bring"`` (the base, patched from the tuned model), ``"undo"`` or both.
        steps: Gauss–Legendre nodes of the integrated effects; at least 2.
        exact: of how many edges, those of largest integrated effects, the exact effect is measured too; all when None.
        counts: how many edges are patched together; 1, 2, 5, 10, … and all when None.
        seeds: how many random rankings are patched beside.
        cut, loss, batch_size: as for `rlcircuits.attribute`; ``loss="kl"`` is the divergence from the model that a direction
            leads to, in whose measure that model stands at 0.
        device, dtype: for loading the pair.
        resume: a folder in which finished re-runs are kept; the same call goes on from them.
        confidence, resamples, seed: of the intervals over problems.
        progress: show a bar for work that takes longer than a few seconds.

    Raises:
        InputError: models or traces that do not fit each other, a direction that is neither, numbers out of range, or as
            for `rlcircuits.attribute`.
        StoreError: `resume` is a file, or cannot be written.
    """
    expect_intervals(confidence, resamples, seed)
    expect_whole("steps", steps, 2)
    expect_whole("seeds", seeds, 0)
    if exact is not None:
        expect_whole("exact", exact, 0)
    asked = [
        choose("direction", one, DIRECTIONS) for one in ([directions] if isinstance(directions, str) else directions)
    ]
    if not asked:
        raise InputError("no directions given: expected 'bring', 'undo' or both")
    models, rows = dict(zip(SIDES, both(pair, device, dtype))), sided(traces)
    data = {}
    for direction in asked:
        here, there = DIRECTIONS[direction]
        folder = None if resume is None else Path(resume) / direction
        some = rows[there]
        what = Loss("kl", reference=models[there]) if loss == "kl" else loss
        common: dict[str, Any] = {"cut": cut, "loss": what, "batch_size": batch_size, "progress": progress}
        common |= {"intervention": "model", "other": models[there]}
        kept = {name: None if folder is None else folder / name for name in EFFECTS[:2]}
        first = attribute(models[here], some, level, resume=kept["first"], **common)
        along = attribute(models[here], some, level, ig_steps=steps, path="edges", resume=kept["integrated"], **common)
        strongest = _strongest(along, exact)
        effects = xr.full_like(first, np.nan)
        if strongest is not None:
            effects = ablate(models[here], some, level, strongest, resume=folder, **common)
        towards = np.sign(float((along["end"] - along["loss"]).mean())) or 1.0
        orders = {"first": towards * first.mean("sample"), "integrated": towards * along.mean("sample")}
        n_edges = int(first.notnull()[0].sum())
        sizes = _counts(n_edges, counts)
        rankings = [_order(one) for one in orders.values()]
        rankings += [np.random.default_rng(i).permutation(n_edges) for i in range(seeds)]
        together = patched_losses(models[here], some, level, rankings, sizes, resume=folder, **common)
        losses = _mean_losses(models[there], some, what, cut, batch_size, progress)
        data[direction] = xr.Dataset(
            {
                "first": first.drop_vars(["loss", "tokens"]),
                "integrated": along.drop_vars(["loss", "tokens", "gap", "end"]),
                "exact": effects.drop_vars(["loss", "tokens"]),
                "together": (("ranking", "patched", "sample"), together),
                "here": ("sample", first["loss"].values),
                "there": ("sample", losses),
                "all": ("sample", along["end"].values),
                "gap": ("sample", along["gap"].values),
            },
            {"ranking": [*orders, *(f"random {i}" for i in range(seeds))], "patched": sizes},
            {"level": level, "n_edges": n_edges, "steps": steps, "loss": first.attrs["loss"]},
        )
    return Patching(data, confidence, resamples, seed)


def _strongest(scores: xr.DataArray, n: int | None) -> xr.DataArray | None:
    """Which edges to run exactly: the n of largest mean effects, all when None; None for no edge."""
    mean = abs(scores.mean("sample"))
    edges = mean.notnull()
    if n == 0:
        return None
    if n is not None and n < int(edges.sum()):
        least = np.sort(mean.values[edges.values])[-n]
        edges = edges & (mean >= least)
    return edges.drop_vars([name for name in edges.coords if name not in edges.dims])


def _order(strength: xr.DataArray) -> np.ndarray:
    """Edges, as places in the row-major list of them, from the one that moves the loss furthest where it should go."""
    values = strength.transpose("source", "destination").values
    return np.argsort(-values[~np.isnan(values)], kind="stable")


def _counts(n_edges: int, counts: Sequence[int] | None) -> list[int]:
    if counts is None:
        steps = [m * 10**power for power in range(len(str(n_edges))) for m in (1, 2, 5)]
        return [n for n in steps if n < n_edges] + [n_edges]
    for n in counts:
        expect_whole("count", n, 1)
    if not counts or max(counts) > n_edges:
        raise InputError(f"counts are {list(counts)}: expected numbers of edges from 1 to {n_edges:,}")
    return sorted(set(counts))


def _mean_losses(
    model: Any, traces: Sequence[Trace], loss: Any, cut: int | None, batch_size: int | str, progress: bool
) -> np.ndarray:
    """The loss of each trace, ``(sample,)``, weighted as `loss` says."""
    given = Loss.of(loss)
    each = token_losses(model, traces, cut, batch_size, progress, loss)
    if given.weights is None:
        return np.array([one.mean() for one in each])
    weights = [np.asarray(row, float)[: len(one)] for row, one in zip(given.weights, each)]
    return np.array([(one * w).sum() / w.sum() for one, w in zip(each, weights)])
