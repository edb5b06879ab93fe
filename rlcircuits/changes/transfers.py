"""How much of one model's circuit the other still runs on.

1. Each model is run with only the edges of a circuit, the rest replaced (`rlcircuits.faithfulness`): its **own** circuit, the
   **other** model's, and **random** ones of as many edges.
2. A circuit of k edges are the first k by a model's mean scores, which are made with the same replacement as the runs unless
   they are given.
3. CPR and CMD are the areas under the curves by share, as there. ``lost`` is what the other's circuit lacks of one's own,
   CPR(own) − CPR(other) or CMD(other) − CMD(own), with its interval over the same resampled problems. A circuit that is the
   other model's by right (nothing changed) loses nothing.
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
from rlcircuits.attribution import INTERVENTIONS, SHARES, Loss, Trace, areas, attribute, faithfulness
from rlcircuits.changes.resampling import RESAMPLES, all_and_resampled, expect_intervals, percentiles, ratios
from rlcircuits.changes.sides import Pair, both, of_problems, sided
from rlcircuits.errors import InputError, choose
from rlcircuits.storage import Step

if TYPE_CHECKING:
    import pandas as pd

TRANSFER = Step("transfer", 1)
CIRCUITS = ("own", "other", "random")
#: the ranking that each area is defined by
AREAS = {"CPR": "signed", "CMD": "absolute"}


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """What `transfer` found.

    Attributes:
        data: by replacement, a Dataset over ``model`` (which is run: base, tuned), ``circuit`` (whose: own, other),
            ``ranking`` (signed, absolute), ``share`` (coordinate ``edges``), ``seed`` and ``sample``: ``loss`` (model,
            circuit, ranking, share, sample), ``random_loss`` (model, seed, share, sample), ``full_loss``, ``empty_loss``
            (model, sample), in nats.
        confidence, resamples, seed: of the intervals over problems.
    """

    data: Mapping[str, xr.Dataset]
    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0

    def table(self) -> pd.DataFrame:
        """One row for each replacement, model, circuit and area.

        Returns:
            Columns ``intervention``, ``model``, ``circuit`` (own, other, random), ``area`` (CPR: more is better; CMD: 0 is
            best), ``value``, ``low``, ``high`` over problems (random: the mean over seeds), and ``lost`` against the
            model's own circuit with ``lost_low``, ``lost_high``.
        """
        import pandas as pd

        rows = []
        for intervention, data in self.data.items():
            shares = data["share"].values.tolist()
            for model in SIDES:
                for area, ranking in AREAS.items():
                    curves = dict(zip(CIRCUITS, self._curves(data.sel(model=model), ranking)))
                    values = {name: areas(shares, curve)[list(AREAS).index(area)] for name, curve in curves.items()}
                    sign = 1 if area == "CPR" else -1
                    for circuit, found in values.items():
                        row: dict[str, Any] = {
                            "intervention": intervention,
                            "model": model,
                            "circuit": circuit,
                            "area": area,
                        }
                        row |= self._interval("", found)
                        row |= self._interval("lost", sign * (values["own"] - found))
                        rows.append(row)
        return pd.DataFrame(rows)

    def curves(self, ranking: str = "signed") -> pd.DataFrame:
        """Faithfulness by share: columns ``intervention``, ``model``, ``circuit``, ``share``, ``edges``,
        ``faithfulness``, ``low``, ``high``.

        Args:
            ranking: ``"signed"`` or ``"absolute"``, see `rlcircuits.circuit`.
        """
        import pandas as pd

        choose("ranking", ranking, ("signed", "absolute"))
        frames = []
        for intervention, data in self.data.items():
            for model in SIDES:
                for circuit, curve in zip(CIRCUITS, self._curves(data.sel(model=model), ranking)):
                    frame = pd.DataFrame({"share": data["share"].values, "edges": data["edges"].values})
                    low, high = percentiles(curve[1:], self.confidence)
                    frame = frame.assign(faithfulness=curve[0], low=low, high=high)
                    frames.append(frame.assign(intervention=intervention, model=model, circuit=circuit))
        first = ["intervention", "model", "circuit"]
        return pd.concat(frames, ignore_index=True)[[*first, "share", "edges", "faithfulness", "low", "high"]]

    def on(self, problems: Collection[str]) -> Transfer:
        """The same of some of its problems alone."""
        some = {name: of_problems(one, problems) for name, one in self.data.items()}
        return replace(self, data={name: one for name, one in some.items() if one.sizes["sample"]})

    def _curves(self, one: xr.Dataset, ranking: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Faithfulness of own, other's and random circuits ``(1 + resample, share)``; first of all problems, then of each
        resample of them, the same for all three.
        """
        weights = all_and_resampled(one.sizes["sample"], self.resamples, self.seed)
        empty, full = one["empty_loss"].values, one["full_loss"].values

        def of(losses: np.ndarray) -> np.ndarray:
            return ratios(weights @ (empty - losses).T, (weights @ (empty - full))[:, None])

        own, other = (of(one["loss"].sel(circuit=circuit, ranking=ranking).values) for circuit in CIRCUITS[:2])
        seeds = one["random_loss"].values
        random = np.mean([of(losses) for losses in seeds], 0) if len(seeds) else np.full_like(own, np.nan)
        return own, other, random

    def _interval(self, name: str, values: np.ndarray) -> dict[str, float]:
        low, high = percentiles(values[1:], self.confidence)
        names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
        return dict(zip(names, (float(values[0]), float(low), float(high))))

    @property
    def title(self) -> str:
        """What was found, in a line."""
        table = self.table().query("area == 'CPR'")
        first = table[table["intervention"] == table["intervention"].iloc[0]].set_index(["model", "circuit"])["value"]
        said = "; ".join(
            f"the {model} model on {'its own' if circuit == 'own' else f'the {circuit} model’s' if circuit == 'other' else 'random'}"
            f" circuits {first[model, circuit]:.2f}"
            for model in SIDES
            for circuit in CIRCUITS
        )
        return f"CPR, {table['intervention'].iloc[0]} replacement: {said}"

    def __repr__(self) -> str:
        return f"{self.title}\n{self.table().to_string(float_format='{:.3g}'.format, index=False)}"


def transfer(
    pair: Pair,
    traces: Sequence[Trace] | Mapping[str, Sequence[Trace]],
    level: str = "block",
    scores: Mapping[str, xr.DataArray] | None = None,
    interventions: Sequence[str] = ("zero", "mean"),
    corrupted: Sequence[Trace] | Mapping[str, Sequence[Trace]] | None = None,
    shares: Sequence[float] = SHARES,
    seeds: int = 5,
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
) -> Transfer:
    """Faithfulness of each model's circuit within the other, beside its own and random ones.

    Args:
        pair: a `rlcircuits.ModelPair`, a registered pair's name, or two loaded models, base first.
        traces: what both models are run on, or each on its own: ``{"base": …, "tuned": …}``, the same problems in the same
            order.
        level: of the graph.
        scores: of each model, ``{"base": …, "tuned": …}``, for circuits that follow them whatever the replacement; each
            model's first-order scores with that replacement, on its traces, when None.
        interventions: what takes the place of edges outside a circuit: ``"zero"``, ``"mean"``, ``"corrupted"``.
        corrupted: partners of the traces, for ``"corrupted"``, see `rlcircuits.attribute`; given as `traces` are.
        shares, seeds: as for `rlcircuits.faithfulness`.
        cut, loss, batch_size: as for `rlcircuits.attribute`.
        device, dtype: for loading the pair.
        resume: a folder in which finished losses are kept, see `rlcircuits.faithfulness`.
        confidence, resamples, seed: of the intervals over problems.
        progress: show a bar for work that takes longer than a few seconds.

    Raises:
        InputError: models or traces that do not fit each other, scores of one model alone, an intervention that is none of
            these, or as for `rlcircuits.faithfulness`.
    """
    expect_intervals(confidence, resamples, seed)
    names = [interventions] if isinstance(interventions, str) else list(interventions)
    for one in names:
        choose("intervention", one, [name for name in INTERVENTIONS if name != "model"])
    if not names:
        raise InputError("no interventions given: expected at least one of zero, mean, corrupted")
    if ("corrupted" in names) != (corrupted is not None):
        raise InputError("interventions=['corrupted', …] and corrupted=… belong together")
    if scores is not None and set(scores) != set(SIDES):
        raise InputError(
            f"scores are of {', '.join(map(str, scores)) or 'no model'}: expected those of base and of tuned"
        )
    models = dict(zip(SIDES, both(pair, device, dtype)))
    rows, partners = sided(traces), None if corrupted is None else sided(corrupted, paired=False)
    common: dict[str, Any] = {"cut": cut, "loss": loss, "batch_size": batch_size, "progress": progress}
    data = {}
    for name in names:
        given: dict[str, dict[str, Any]] = {
            side: {"intervention": name, "corrupted": partners[side] if partners and name == "corrupted" else None}
            for side in SIDES
        }
        ranks = scores or {side: attribute(models[side], rows[side], level, **given[side], **common) for side in SIDES}
        found = {}
        for side, other in zip(SIDES, SIDES[::-1]):
            folder = None if resume is None else Path(resume) / f"{side}-{name}"
            how = {"shares": shares, "resume": folder, **given[side], **common}
            own = faithfulness(models[side], rows[side], ranks[side], seeds=seeds, **how)
            theirs = faithfulness(models[side], rows[side], ranks[other], seeds=0, **how)
            found[side] = xr.Dataset(
                {
                    "loss": xr.concat([own["loss"], theirs["loss"]], "circuit"),
                    **{key: own[key] for key in ("random_loss", "full_loss", "empty_loss")},
                }
            ).assign_coords(circuit=list(CIRCUITS[:2]))
        data[name] = xr.concat([found[side] for side in SIDES], "model").assign_coords(model=list(SIDES))
        data[name].attrs = {"level": own.attrs["level"], "n_edges": own.attrs["n_edges"], "loss": own.attrs["loss"]}
    return Transfer(data, confidence, resamples, seed)


def partners(
    traces: Mapping[str, Sequence[Trace]],
) -> tuple[dict[str, list[Trace]], dict[str, list[Trace]]] | None:
    """Traces of base and tuned that have a partner as long, and their partners: other problems' traces of just as many prompt
    and answer tokens, each the next of its kind in a circle.

    Args:
        traces: ``{"base": …, "tuned": …}``, the same problems in the same order.

    Returns:
        The traces of the problems that have one on both sides, and their partners; None where no problem has.
    """
    found = {side: _next_of_its_kind(some) for side, some in traces.items()}
    both_sides = set.intersection(*(set(one) for one in found.values()))
    if not both_sides:
        return None
    kept = {side: [trace for trace in some if trace.problem in both_sides] for side, some in traces.items()}
    return kept, {side: [found[side][trace.problem] for trace in some] for side, some in kept.items()}


def _next_of_its_kind(traces: Sequence[Trace]) -> dict[str, Trace]:
    kinds: dict[tuple[int, int], list[Trace]] = {}
    for trace in traces:
        kinds.setdefault((len(trace.prompt), len(trace.answer)), []).append(trace)
    return {
        one.problem: other
        for kind in kinds.values()
        for one, other in zip(kind, [*kind[1:], kind[0]])
        if one.prompt != other.prompt
    }
