"""From what the tasks measured to the study's tables. Deterministic: the same artefacts give the same tables.

1. `pair_tables`: of one paradigm or null, the ``effects`` over seeds and problems, and the ``values`` of every seed
   behind them.
2. `exactness_tables`, `dynamics_tables`, `cause_table`, `sensitivity_table`: means over seeds with Student's intervals
   (or the two-level interval of `paradigms.study.effects` where problems can be resampled).
3. `verdict_table`: the claims, judged by `paradigms.study.verdicts`.

A log ratio is ln(tuned/base); exp of it is the factor by which a metric changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paradigms.study.dynamics import lead_and_lag, student_interval
from paradigms.study.effects import CONTRASTS, cell_effects, contrast_of, hierarchical_interval, logarithms
from paradigms.study.measurement import Measurement, load
from paradigms.study.nulls import ANOTHER_BASE, CONTROL, NOISE, TWO_SEEDS, spread
from paradigms.study.tasks import REFERENCE_ALPHA, Settings, Task, failure
from paradigms.study.verdicts import ALONE, CLAIMS, Claim, judge_claim
from rlcircuits.metrics import METRICS, holm

Done = Sequence[tuple[Task, str]]
"""Tasks with the folders of their artefacts."""

DYNAMIC = (
    "activation_intensity",
    "information_complexity",
    "distribution_kurtosis",
    "inter_sample_diversity",
    "edge_entropy",
)
NULLS = ("another base", "more supervised steps", "two seeds", "weight noise")


def kind_of(label: str) -> str:
    """``"paradigm"``, ``"control"``, ``"null"`` or ``"cause"``."""
    if label.startswith("null: "):
        return "null"
    if label == CONTROL:
        return "control"
    return "cause" if "," in label or "×" in label or label == "push" else "paradigm"


def null_of(label: str) -> str | None:
    """Which of `NULLS` a label is, if any."""
    kinds = {ANOTHER_BASE: NULLS[0], CONTROL: NULLS[1], TWO_SEEDS: NULLS[2], NOISE: NULLS[3]}
    return next((null for prefix, null in kinds.items() if label.startswith(prefix)), None)


def usable(done: Done, kind: str) -> list[tuple[Task, Path]]:
    """The tasks of a kind that could be done, in a fixed order: the family's own order of bases first."""
    from paradigms.family import BASES

    place = {base: number for number, base in enumerate(BASES)}
    found = [(task, Path(folder)) for task, folder in done if task.kind == kind and failure(folder) is None]
    return sorted(
        found, key=lambda one: (place.get(one[0].base, len(place)), one[0].base, one[0].label, one[0].seed, one[0].draw)
    )


# --- pairs ----------------------------------------------------------------------------------------


def pair_tables(members: Sequence[tuple[Task, Path]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects and values of one base and label.

    Returns:
        effects: ``base``, ``paradigm``, ``kind``, ``level``, ``alpha``, ``tokens`` and the columns of
            `effects.cell_effects`.
        values: one row per seed, draw, level, α and metric: the corners ``bb``, ``tt``, ``tb``, ``bt`` (NaN where not
            measured), ``t_cut``, ``n_problems``, ``accuracy_before``, ``accuracy_after`` (greedy, on the study's test
            problems).
    """
    tasks = [task for task, _ in members]
    measured = [load(folder / "measurement.npz") for _, folder in members]
    about = {"base": tasks[0].base, "paradigm": tasks[0].label, "kind": kind_of(tasks[0].label)}
    effects, values = [], []
    for level, alpha in measured[0].cells:
        cells = [one.cells[level, alpha] for one in measured]
        crossed = len(cells[0].corners) > 2
        for contrast in CONTRASTS if crossed else ("own",):
            columns = cell_effects(cells, contrast, tests=cells[0].pooled_swap is not None)
            effects.append(pd.DataFrame({**about, "level": level, "alpha": alpha, "tokens": contrast, **columns}))
        for task, one, cell in zip(tasks, measured, cells):
            corners = pd.DataFrame(dict(zip(cell.corners, cell.observed())))
            facts = {"n_problems": cell.n, "t_cut": one.facts["t_cut"][f"{alpha:g}"]}
            facts |= {"accuracy_before": one.facts["base_accuracy"], "accuracy_after": one.facts["accuracy"]}
            where = {
                **about,
                "seed": task.seed,
                "draw": task.draw,
                "level": level,
                "alpha": alpha,
                "metric": cell.metrics,
            }
            values.append(pd.DataFrame({**where, **corners, **facts}))
    return pd.concat(effects, ignore_index=True), pd.concat(values, ignore_index=True)


def corrected(effects: pd.DataFrame) -> pd.DataFrame:
    """Add ``ratio`` = exp(log_ratio) and ``p_holm``: Holm over paradigms, α and `METRICS` of a base, level and choice
    of tokens.
    """
    effects = effects.assign(ratio=np.exp(effects["log_ratio"].astype(float)), p_holm=np.nan)
    family = effects[(effects["kind"] == "paradigm") & effects["metric"].isin(list(METRICS))]
    for _, group in family.groupby(["base", "level", "tokens"]):
        effects.loc[group.index, "p_holm"] = holm(group["p"])
    return effects


# --- verdicts -------------------------------------------------------------------------------------


def claim_effect(
    claim: Claim, measured: Mapping[str, Mapping[int, Measurement]]
) -> tuple[float, float, float, int, bool]:
    """Effect, low and high of a claim over seeds and problems, the number of seeds, and whether it is of log ratios.

    A single seed gives no interval: one over problems alone would say nothing about the paradigm.
    """
    paradigms = list(claim.paradigms)
    if any(p not in measured for p in paradigms):
        return np.nan, np.nan, np.nan, 0, True
    seeds = sorted(set.intersection(*(set(measured[p]) for p in paradigms)))
    found = {}
    for logarithm in (True, False) if seeds else ():
        observed, boot = 0.0, 0.0
        for paradigm in paradigms:
            for alpha, weight in claim.alphas.items():
                cells = [measured[paradigm][seed].cells["block", alpha] for seed in seeds]
                at = cells[0].metrics.index(claim.metric)
                values = contrast_of(cells, "own", logarithm)
                share = weight * claim.paradigms[paradigm]
                observed = observed + share * values[0][:, at : at + 1]
                boot = boot + share * values[1][:, at : at + 1]
        found = dict(zip(("effect", "low", "high"), (float(v[0]) for v in hierarchical_interval(observed, boot))))
        if len(seeds) < 2:
            found |= {"low": np.nan, "high": np.nan}
        if np.isfinite(found["effect"]):
            return found["effect"], found["low"], found["high"], len(seeds), logarithm
    return np.nan, np.nan, np.nan, len(seeds), False


def null_spreads(claim: Claim, values: pd.DataFrame, logarithm: bool) -> dict[str, float]:
    """Spread of each null in the claim's sum over α, from the ``values`` of one base."""
    rows = values[(values["level"] == "block") & (values["metric"] == claim.metric)]
    rows = rows[rows["alpha"].isin(list(claim.alphas))]
    change = (
        (logarithms(rows["tt"].to_numpy()) - logarithms(rows["bb"].to_numpy()))
        if logarithm
        else rows["tt"] - rows["bb"]
    )
    rows = rows.assign(null=rows["paradigm"].map(null_of), part=change * rows["alpha"].map(claim.alphas))
    rows = rows[rows["null"].notna()]
    sums = (
        rows.groupby(["null", "paradigm", "seed", "draw"])["part"]
        .agg(lambda parts: parts.sum(skipna=False))
        .reset_index()
    )
    return {null: spread(group["part"]) for null, group in sums.groupby("null")}


def verdict_table(pairs: Sequence[tuple[Task, Path]], values: pd.DataFrame) -> pd.DataFrame:
    """One row per base, claim and scope: ``base``, ``claim``, ``scope`` ("PPO and GRPO", or one paradigm), ``metric``,
    ``direction``, ``verdict``, ``effect``, ``low``, ``high``, ``scale`` ("log ratio" or "difference"), ``spread``,
    ``null``, ``reason``, ``n_seeds``.
    """
    rows = []
    for base in dict.fromkeys(task.base for task, _ in pairs):
        measured: dict[str, dict[int, Measurement]] = {}
        for task, folder in pairs:
            if task.base == base and kind_of(task.label) in ("paradigm", "control"):
                measured.setdefault(task.label, {})[task.seed] = load(folder / "measurement.npz")
        alone = [label for label in measured if kind_of(label) == "paradigm"]
        scopes = [("all", claim) for claim in CLAIMS]
        scopes += [(label, claim.of(label)) for claim in CLAIMS if claim.name in ALONE for label in alone]
        for scope, claim in scopes:
            grid = measured[alone[0]][next(iter(measured[alone[0]]))].cells if alone else {}
            if any(("block", alpha) not in grid for alpha in claim.alphas):
                continue
            effect, low, high, n_seeds, logarithm = claim_effect(claim, measured)
            spreads = null_spreads(claim, values[values["base"] == base], logarithm)
            found = judge_claim(claim, lambda one, measured=measured: claim_effect(one, measured)[:3], spreads)
            rows.append(
                {
                    "base": base, "claim": claim.name, "scope": "PPO and GRPO" if scope == "all" else scope,
                    "metric": claim.metric,
                    "direction": claim.direction, "verdict": found.verdict, "effect": effect, "low": low, "high": high,
                    "scale": "log ratio" if logarithm else "difference", "spread": found.spread, "null": found.null,
                    "reason": found.reason, "n_seeds": n_seeds,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


# --- exactness, dynamics --------------------------------------------------------------------------


def exactness_tables(done: Done) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``exactness``: every seed's rows. ``exact_effects``: tuned against base by each method's metrics, over seeds.

    The second has ``base``, ``paradigm``, ``alpha``, ``method``, ``metric``, ``log_ratio`` (or ``effect``), ``low``,
    ``high``, ``n_seeds``.
    """
    tables = []
    for task, folder in usable(done, "exactness"):
        about = {"base": task.base, "seed": task.seed, "paradigm": task.label}
        tables.append(pd.read_parquet(folder / "exactness.parquet").assign(**about))
    if not tables:
        return pd.DataFrame(), pd.DataFrame()
    whole = pd.concat(tables, ignore_index=True)
    metrics = whole[whole["quantity"].isin(list(METRICS))]
    wide = metrics.pivot_table(
        index=["base", "paradigm", "alpha", "method", "quantity", "seed"], columns="side", values="value"
    )
    wide["log_ratio"] = logarithms(wide["tuned"].to_numpy()) - logarithms(wide["base"].to_numpy())
    rows = []
    for where, group in wide.groupby(level=[0, 1, 2, 3, 4], sort=False):
        mean, low, high, n = student_interval(group["log_ratio"].to_numpy())
        rows.append((*where, mean, low, high, float((group["tuned"] - group["base"]).mean()), n))
    columns = ["base", "paradigm", "alpha", "method", "metric", "log_ratio", "low", "high", "difference", "n_seeds"]
    return whole, pd.DataFrame(rows, columns=columns)


def dynamics_tables(done: Done, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``dynamics``: metrics at each checkpoint beside the curve's accuracy and KL. ``lags``: does a metric lead
    accuracy?

    The second has ``base``, ``paradigm``, ``metric``, ``alpha``, ``lag`` (a number as text, or "lead"),
    ``correlation``, ``low``, ``high``, ``n_seeds``.
    """
    tables = []
    for task, folder in usable(done, "dynamics"):
        about = {"base": task.base, "seed": task.seed, "paradigm": task.label}
        tables.append(pd.read_parquet(folder / "dynamics.parquet").assign(**about))
    if not tables:
        return pd.DataFrame(), pd.DataFrame()
    whole = pd.concat(tables, ignore_index=True)
    along = curves[["base", "seed", "paradigm", "update", "accuracy", "kl", "entropy", "length"]]
    whole = whole.merge(along, on=["base", "seed", "paradigm", "update"], how="left", validate="many_to_one")
    rows = []
    for (base, paradigm, alpha), group in whole.groupby(["base", "paradigm", "alpha"], sort=False):
        for metric in DYNAMIC:
            x = group.pivot_table(index="seed", columns="update", values=metric, dropna=False).to_numpy()
            y = group.pivot_table(index="seed", columns="update", values="accuracy", dropna=False).to_numpy()
            x = logarithms(x) if metric == "activation_intensity" else x
            if x.shape == y.shape and x.shape[1] > 2:
                rows.append(lead_and_lag(x, y).assign(base=base, paradigm=paradigm, alpha=alpha, metric=metric))
    return whole, pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


# --- cause ----------------------------------------------------------------------------------------


def cause_table(done: Done, effects: pd.DataFrame, values: pd.DataFrame, members: pd.DataFrame) -> pd.DataFrame:
    """The interventions: ``base``, ``intervention``, ``setting``, ``quantity``, ``alpha``, ``effect``, ``low``,
    ``high``, ``scale``, ``n_seeds``.

    - ``sampling temperature``: GRPO at each temperature against the base (metrics as log ratios on own tokens, block
      level; accuracy and the policy's entropy as differences), and setting "1.3 − 0.7" against each other, paired by
      seed.
    - ``logits scaled``: the base with its logits times c against the base.
    - ``intensity pushed``: half and double against the control that took the same steps, and the control against the
      base is not shown; accuracy and supervised loss as differences, metrics as log ratios.
    """
    rows: list[dict[str, Any]] = []
    own = effects[(effects["level"] == "block") & (effects["tokens"] == "own")]
    named = {"grpo": ("sampling temperature", "1")}
    for label in own["paradigm"].unique():
        if label.startswith("grpo, temperature "):
            named[label] = ("sampling temperature", label.rsplit(" ", 1)[1])
        elif label.startswith("logits × "):
            named[label] = ("logits scaled", label.removeprefix("logits × "))
    for label, (intervention, setting) in named.items():
        bases = set(own["base"])
        if (
            intervention == "sampling temperature"
        ):  # the ordinary temperature only where there are others to compare with
            bases = set(own.loc[own["paradigm"].str.startswith("grpo, temperature "), "base"])
        for row in own[(own["paradigm"] == label) & own["base"].isin(bases)].itertuples():
            logs = np.isfinite(row.log_ratio)
            found = (row.log_ratio, row.log_low, row.log_high) if logs else (row.effect, row.low, row.high)
            rows.append(
                _cause(
                    row.base,
                    intervention,
                    setting,
                    row.metric,
                    row.alpha,
                    found,
                    row.n_seeds,
                    "log ratio" if logs else "difference",
                )
            )
        here = values[values["base"].isin(bases)], members[members["base"].isin(bases)]
        rows += _final_differences(*here, label, intervention, setting)
    rows += _temperature_contrast(values, members, sorted(s for i, s in named.values() if i == "sampling temperature"))
    rows += _pushed(done)
    return pd.DataFrame(rows)


def _cause(
    base: str, intervention: str, setting: str, quantity: str, alpha: float, found: Sequence[float], n: int, scale: str
) -> dict[str, Any]:
    names = ("base", "intervention", "setting", "quantity", "alpha", "effect", "low", "high", "scale", "n_seeds")
    return dict(zip(names, (base, intervention, setting, quantity, alpha, *found[:3], scale, n)))


def _final_differences(
    values: pd.DataFrame, members: pd.DataFrame, label: str, intervention: str, setting: str
) -> Iterable[dict[str, Any]]:
    """Accuracy (of the answers that were measured) and, of trained models, the policy's entropy, less their base's;
    over seeds.
    """
    for base, group in values[values["paradigm"] == label].groupby("base"):
        each = group.groupby("seed")[["accuracy_before", "accuracy_after"]].first()
        mean, low, high, n = student_interval((each["accuracy_after"] - each["accuracy_before"]).to_numpy(float))
        yield _cause(base, intervention, setting, "accuracy", np.nan, (mean, low, high), n, "difference")
    for base, group in members.groupby("base"):
        root = group[group["paradigm"] == "sft"].set_index("seed")
        tuned = group[group["paradigm"] == label].set_index("seed")
        if len(tuned):
            mean, low, high, n = student_interval(
                (tuned["entropy"] - root["entropy"].reindex(tuned.index)).to_numpy(float)
            )
            yield _cause(base, intervention, setting, "policy entropy", np.nan, (mean, low, high), n, "difference")


def _temperature_contrast(
    values: pd.DataFrame, members: pd.DataFrame, settings: Sequence[str]
) -> Iterable[dict[str, Any]]:
    """The hottest against the coolest training, paired by seed: log ratios of the tuned models' metrics."""
    if len(settings) < 2:
        return
    names = ["grpo" if s == "1" else f"grpo, temperature {s}" for s in (settings[0], settings[-1])]
    setting = f"{settings[-1]} − {settings[0]}"
    rows = values[(values["level"] == "block") & values["paradigm"].isin(names)]
    for (base, metric, alpha), group in rows.groupby(["base", "metric", "alpha"]):
        wide = group.pivot_table(index="seed", columns="paradigm", values=["bb", "tt"])
        if not all(("tt", name) in wide for name in names):
            continue
        cool, hot = (logarithms(wide["tt"][n].to_numpy()) - logarithms(wide["bb"][n].to_numpy()) for n in names)
        mean, low, high, n = student_interval(hot - cool)
        yield _cause(base, "sampling temperature", setting, metric, alpha, (mean, low, high), n, "log ratio")
    for base, group in members.groupby("base"):
        wide = group.pivot_table(index="seed", columns="paradigm", values=["accuracy", "entropy"])
        for quantity in ("accuracy", "entropy"):
            if all((quantity, name) in wide for name in names):
                mean, low, high, n = student_interval((wide[quantity][names[1]] - wide[quantity][names[0]]).to_numpy())
                name = "policy entropy" if quantity == "entropy" else quantity
                yield _cause(base, "sampling temperature", setting, name, np.nan, (mean, low, high), n, "difference")


def _pushed(done: Done) -> Iterable[dict[str, Any]]:
    found = usable(done, "push")
    if not found:
        return
    whole = pd.concat(
        [pd.read_parquet(folder / "push.parquet").assign(base=t.base, seed=t.seed) for t, folder in found]
    )
    for base, group in whole.groupby("base"):
        arms = {arm: rows.set_index("seed").sort_index() for arm, rows in group.groupby("arm")}
        for arm in (a for a in arms if a != "control"):
            for quantity in ("accuracy", "supervised_loss", "loss", *METRICS):
                after, before = arms[arm][quantity].to_numpy(float), arms["control"][quantity].to_numpy(float)
                logs = quantity in METRICS
                change = logarithms(after) - logarithms(before) if logs else after - before
                mean, low, high, n = student_interval(change)
                yield _cause(
                    base,
                    "intensity pushed",
                    arm,
                    quantity,
                    1.0,
                    (mean, low, high),
                    n,
                    "log ratio" if logs else "difference",
                )


# --- sensitivity ----------------------------------------------------------------------------------


def sensitivity_table(done: Done) -> pd.DataFrame:
    """Every metric's effect (own tokens, block level, α = 0.3) under other settings.

    Columns: ``base``, ``paradigm``, ``metric``, ``variant``, ``effect``, ``low``, ``high`` (log ratios, else
    differences: ``scale``), ``n_seeds``, ``n_problems``, ``resolved`` (the interval excludes 0), and ``survives``: same
    sign and same `resolved` as the reference.
    """
    groups: dict[tuple[str, str], list[tuple[Task, Path]]] = {}
    for task, folder in usable(done, "sensitivity"):
        groups.setdefault((task.base, task.label), []).append((task, folder))
    rows: list[dict[str, Any]] = []
    for (base, paradigm), members in groups.items():
        rows += [{"base": base, "paradigm": paradigm, **row} for row in _variants([folder for _, folder in members])]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table["resolved"] = (table["low"] > 0) | (table["high"] < 0)
    reference = table[table["variant"] == "reference"].set_index(["base", "paradigm", "metric"])
    at = reference.loc[pd.MultiIndex.from_frame(table[["base", "paradigm", "metric"]])]
    same = np.sign(table["effect"].to_numpy()) == np.sign(at["effect"].to_numpy())
    both = table["resolved"].to_numpy() & at["resolved"].to_numpy()
    neither = ~table["resolved"].to_numpy() & ~at["resolved"].to_numpy()
    table["survives"] = (both & same) | neither
    return table


def _variants(folders: Sequence[Path]) -> Iterable[dict[str, Any]]:
    for file in sorted(folders[0].glob("variant-*.npz")):
        measured = [load(folder / file.name) for folder in folders]
        cells = [one.cells["block", REFERENCE_ALPHA] for one in measured]
        columns = cell_effects(cells, "own", tests=False)
        for i, metric in enumerate(columns["metric"]):
            if metric in METRICS:
                logs = np.isfinite(columns["log_ratio"][i])
                names = ("log_ratio", "log_low", "log_high") if logs else ("effect", "low", "high")
                effect, low, high = (float(columns[name][i]) for name in names)
                n_problems = float(columns["n_problems"][i])
                yield {
                    "metric": metric, "variant": measured[0].facts["variant"], "effect": effect, "low": low,
                    "high": high,
                    "scale": "log ratio" if logs else "difference", "n_seeds": len(cells), "n_problems": n_problems,
                }  # fmt: skip
    arrays = [dict(np.load(folder / "histograms.npz")) for folder in folders]
    for name in arrays[0]:
        variant, metric = name.split("|")
        logs = np.stack([logarithms(one[name]) for one in arrays])
        scale = "log ratio" if np.isfinite(logs[:, :, 0]).all() else "difference"
        change = np.diff(logs if scale == "log ratio" else np.stack([one[name] for one in arrays]), axis=1)
        found = hierarchical_interval(change[:, :, 0], change[:, :, 1:])
        effect, low, high = (float(value[0]) for value in found)
        yield {
            "metric": metric,
            "variant": variant,
            "effect": effect,
            "low": low,
            "high": high,
            "scale": scale,
            "n_seeds": len(arrays),
            "n_problems": np.nan,
        }


# --- members --------------------------------------------------------------------------------------


def member_tables(trained: pd.DataFrame, done: Done) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``members`` (one row per base, seed and paradigm, also those that failed) and ``curves`` (every point of every
    run).
    """
    failed: dict[tuple[str, int, str], list[str]] = {}
    for task, folder in done:
        reason = failure(folder)
        if reason is not None:
            failed.setdefault((task.base, task.seed, task.label), []).append(f"{task.kind}: {reason}")
    rows, curves = [], []
    for row in trained.itertuples():
        about = {"base": row.base, "seed": int(row.seed), "paradigm": row.member}
        status = "; ".join([row.status, *failed.get((row.base, int(row.seed), row.member), [])])
        last: dict[str, float] = {}
        if isinstance(row.folder, str):
            curve = pd.read_parquet(Path(row.folder) / "curves.parquet")
            curve = curve.rename(columns={} if "update" in curve else {"step": "update"})
            curves.append(curve.assign(**about))
            last = curve.iloc[-1].to_dict()
            summary = json.loads((Path(row.folder) / "member.json").read_text("utf-8"))
            last |= {
                "accuracy": summary["accuracy"],
                "training_seconds": summary["training_seconds"],
                "prompts_seen": summary["prompts_seen"],
            }
        names = ("update", "prompts_seen", "accuracy", "kl", "entropy", "length", "training_seconds")
        rows.append({**about, **{name: float(last.get(name, np.nan)) for name in names}, "status": status})
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def settings_of(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values."""
    from dataclasses import asdict

    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
