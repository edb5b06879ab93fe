"""The study's finding: tables and sentences on whole answers, computed from the tables of the study.

1. `standing`: one metric at one α, of every paradigm alone, judged by the one rule (`rlcircuits.metrics.support`) beside
   the nulls. PPO and GRPO are never pooled here.
2. `removals`: first-order, integrated and exact intensity of the same problems, side by side.
3. `claims_grid`: every claim of the paper × α × base, with the cell that was fixed beforehand marked.
4. Sentences: each says of a paradigm only what its row says. A factor's interval is judged against 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from paradigms.study.controlled import Results
from paradigms.study.dynamics import student_interval
from paradigms.study.effects import EQUAL_LOSS
from paradigms.study.figures import null_spread
from paradigms.study.nulls import CONTROL, NOISE
from paradigms.study.verdicts import ALPHA, CLAIMS, NOT_DPO, RL
from paradigms.study.words import listed
from rlcircuits.metrics import support

WHOLE = 1.0
INTENSITY, PER_GRADIENT = "activation_intensity", "intensity_per_gradient"
NAMES = {
    "ppo": "PPO", "grpo": "GRPO", "dpo": "DPO", "online-dpo": "online DPO", "rft": "RFT", CONTROL: "more SFT",
    "qwen2": "Qwen2", "llama": "Llama", "smollm2": "SmolLM2",
}  # fmt: skip
METHODS = ("EAP", "EAP-IG", "exact")
MARKS = {"supported": "✓", "contradicted": "✗", "open": "○"}


def arranged(paradigms: Iterable[str]) -> list[str]:
    """Distinct paradigms in the order of `NAMES`, rewards first, any others after them."""
    distinct = list(dict.fromkeys(paradigms))
    return [p for p in NAMES if p in distinct] + sorted(p for p in distinct if p not in NAMES)


def named(name: str) -> str:
    """A paradigm or a base as the text calls it."""
    return NAMES.get(name, name)


def factor(middle: float, left: float, right: float) -> str:
    """A log ratio with its interval as a factor.

    >>> factor(math.log(2), math.log(1.5), math.log(3))
    '× 2.00 [1.50, 3.00]'
    """
    if not math.isfinite(middle):
        return "not measured"
    ends = f"[{math.exp(left):.2f}, {math.exp(right):.2f}]" if math.isfinite(left + right) else "(no interval)"
    return f"× {math.exp(middle):.2f} {ends}"


def span(logs: Iterable[float], digits: int = 1) -> str:
    """The range of several factors.

    >>> span([math.log(2), math.log(3)]), span([])
    ('× 2.0 to × 3.0', 'not measured')
    """
    factors = [math.exp(value) for value in logs if math.isfinite(value)]
    if not factors:
        return "not measured"
    low, high = f"× {min(factors):.{digits}f}", f"× {max(factors):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def standing(results: Results, metric: str = INTENSITY, alpha: float = WHOLE) -> pd.DataFrame:
    """Every paradigm and the control on own tokens at block level, judged as "the metric rises".

    Returns:
        Index base, paradigm; ``middle``, ``left``, ``right`` (log ratios, else differences: ``logs``), ``n_seeds``,
        ``null`` (the largest null's spread), ``null_name``, ``noise`` (the mean change by weight noise of the size of
        the paradigm's own update), ``word`` and ``reason`` of `rlcircuits.metrics.support`.
    """
    rows = results.effects
    rows = rows[
        (rows["metric"] == metric) & (rows["alpha"] == alpha) & (rows["level"] == "block") & (rows["tokens"] == "own")
    ]
    rows = log_ratios(rows)
    found = []
    for base, one in rows.groupby("base", sort=False):
        at = one.set_index("paradigm")
        nulls = null_spread(results.values, base, metric, alpha)
        if metric == EQUAL_LOSS:  # a regression has no value of one seed to take a spread of: mean sizes instead
            nulls = {
                "weight noise" if name.startswith(NOISE) else name.removeprefix("null: "): abs(float(size))
                for name, size in at.loc[at["kind"] == "null", "middle"].sort_values(key=abs).items()
            }
        nulls = {name: float(size) for name, size in nulls.items() if math.isfinite(size)}
        null_name = max(nulls, key=nulls.__getitem__, default="")
        for paradigm in arranged(at.index[at["kind"].isin(["paradigm", "control"])]):
            row = at.loc[paradigm]
            null, noise = nulls.get(null_name, math.nan), NOISE + paradigm
            judged = support(*row[["middle", "left", "right"]].astype(float), null=null, factor=bool(row["logs"]))
            found.append(
                {
                    "base": base, "paradigm": paradigm, **row[["middle", "left", "right", "logs", "n_seeds"]],
                    "null": null, "null_name": null_name,
                    "noise": float(at.loc[noise, "middle"]) if noise in at.index else math.nan,
                    **judged._asdict(),
                }
            )  # fmt: skip
    columns = ["base", "paradigm", "middle", "left", "right", "logs", "n_seeds", "null", "null_name", "noise"]
    table = pd.DataFrame(found, columns=[*columns, "word", "reason"])
    return table.set_index(["base", "paradigm"])


def log_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``effects`` of one metric with ``middle``, ``left``, ``right`` and ``logs``: log ratios, for a base in which
    none is defined differences. `EQUAL_LOSS` is a log ratio by its definition, kept in the columns of differences.
    """
    found = []
    for _, one in rows.groupby("base", sort=False):
        equal = bool((one["metric"] == EQUAL_LOSS).all())
        logs = not equal and bool(np.isfinite(one["log_ratio"].astype(float)).any())
        names = ("log_ratio", "log_low", "log_high") if logs else ("effect", "low", "high")
        columns = dict(zip(("middle", "left", "right"), (one[n].astype(float) for n in names)))
        found.append(one.assign(**columns, logs=logs or equal))
    return pd.concat(found) if found else rows.assign(middle=0.0, left=0.0, right=0.0, logs=True)


def removals(results: Results, alpha: float = WHOLE) -> pd.DataFrame:
    """Intensity by each of `METHODS` on the same problems, over seeds.

    Returns:
        Index base, paradigm, method; ``middle``, ``left``, ``right``: log ratios to the base.
    """
    rows = results.exact_effects
    if not len(rows):
        return pd.DataFrame(columns=["middle", "left", "right"])
    rows = rows[(rows["alpha"] == alpha) & (rows["metric"] == INTENSITY) & rows["method"].isin(METHODS)]
    rows = rows.rename(columns={"log_ratio": "middle", "low": "left", "high": "right"})
    return rows.set_index(["base", "paradigm", "method"])[["middle", "left", "right"]]


def removal_contrasts(results: Results, against: str = "rft", alpha: float = WHOLE) -> pd.DataFrame:
    """Exact intensity of each paradigm over that of another, paired by seed: log ratios with Student's intervals.

    Returns:
        Index base, paradigm; ``middle``, ``left``, ``right``.
    """
    rows = results.exactness
    found = {}
    if len(rows):
        rows = rows[(rows["alpha"] == alpha) & (rows["quantity"] == INTENSITY) & (rows["method"] == "exact")]
        wide = rows.pivot_table(index=["base", "paradigm", "seed"], columns="side", values="value")
        logs = np.log(wide["tuned"] / wide["base"]).unstack("paradigm")
        for base in dict.fromkeys(rows["base"]):
            one = logs.loc[base]
            for paradigm in arranged(p for p in one if p not in (against, CONTROL) and against in one):
                found[base, paradigm] = student_interval((one[paradigm] - one[against]).to_numpy())[:3]
    index = pd.MultiIndex.from_tuples(found, names=["base", "paradigm"]) if found else None
    return pd.DataFrame(list(found.values()), columns=["middle", "left", "right"], index=index)


# --- the paper's claims ---------------------------------------------------------------------------


def claims_grid(results: Results, paradigms: Sequence[str] = RL) -> pd.DataFrame:
    """Every claim about each paradigm alone: claim and paradigm by base and α, as a mark and a factor.

    ✓ supported, ✗ contradicted, ○ open, by the rule that was fixed beforehand; a blank where nothing was measured. The
    α of that rule is marked with ◆; several α that score the very same tokens are one column. The slope over α has no α: it stands in the cell of the rule's.
    """
    alphas = _columns(results.values)
    bases = list(dict.fromkeys(results.effects["base"]))
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for claim in CLAIMS:
        for alpha, label in alphas.items():
            table = standing(results, claim.metric, alpha)
            for base in bases:
                where = (named(base), label)
                for paradigm in paradigms:
                    text = _cell(results, table, claim.name, claim.direction, base, paradigm, alpha)
                    name = "but not DPO" if claim.name == NOT_DPO else claim.name
                    cells.setdefault((name, named(paradigm)), {})[where] = text
    grid = pd.DataFrame.from_dict(cells, orient="index")
    grid.index = pd.MultiIndex.from_tuples(grid.index, names=["claim", "of"])
    grid.columns = pd.MultiIndex.from_tuples(grid.columns, names=["base", "α"])
    return grid.sort_index(axis=1, level=0, sort_remaining=False)[[named(base) for base in bases]]


def _columns(values: pd.DataFrame) -> dict[float, str]:
    """α and its column's name; of several that score as many tokens in every row the largest, named after all."""
    cuts = values.groupby("alpha")["t_cut"].agg(lambda cut: tuple(sorted(set(cut))))
    found = {}
    for _, alike in cuts.groupby(cuts, sort=False):
        alphas = sorted(alike.index)
        at = ALPHA if ALPHA in alphas else alphas[-1]
        found[at] = ", ".join(f"{a:g}" for a in alphas) + (" ◆" if at == ALPHA else "")
    return dict(sorted(found.items()))


def _cell(
    results: Results, table: pd.DataFrame, claim: str, direction: int, base: str, paradigm: str, alpha: float
) -> str:
    """One cell of `claims_grid`."""
    if claim == "grows with α":
        rows = results.verdicts
        rows = rows[(rows["claim"] == claim) & (rows["base"] == base) & (rows["scope"] == paradigm)]
        if alpha != ALPHA or not len(rows):
            return ""
        row = rows.iloc[0]
        word = {"holds": "supported", "not resolved": "open"}.get(row["verdict"], row["verdict"])
        return f"{MARKS[word]} {row['effect']:+.1f}"
    if (base, paradigm) not in table.index:
        return ""
    row = table.loc[(base, paradigm)]
    if claim == NOT_DPO:
        if (base, "dpo") not in table.index:
            return ""
        dpo, difference = table.loc[(base, "dpo")], _over_seeds(results, base, paradigm, "dpo", alpha)
        judged = support(*difference, direction, null=row["null"])
        word = "contradicted" if dpo["word"] == "supported" else judged.word
        return f"{MARKS[word]} {math.exp(difference[0]):.2g}" if math.isfinite(difference[0]) else MARKS[word]
    judged = support(row["middle"], row["left"], row["right"], direction, null=row["null"])
    if not math.isfinite(row["middle"]):
        return MARKS[judged.word]
    return f"{MARKS[judged.word]} " + (f"{math.exp(row['middle']):.2g}" if row["logs"] else f"{row['middle']:+.2g}")


def _over_seeds(results: Results, base: str, one: str, other: str, alpha: float) -> tuple[float, float, float]:
    """ln intensity of one paradigm less that of another, paired by seed, with Student's interval."""
    rows = results.values
    rows = rows[
        (rows["base"] == base) & (rows["alpha"] == alpha) & (rows["level"] == "block") & (rows["metric"] == INTENSITY)
    ]
    after = rows[rows["paradigm"].isin([one, other])].pivot_table(index="seed", columns="paradigm", values="tt")
    if one not in after or other not in after:
        return math.nan, math.nan, math.nan
    return student_interval(np.log(after[one] / after[other]).to_numpy())[:3]


def counts(grid: pd.DataFrame) -> dict[str, int]:
    """How many cells of a grid are supported, contradicted and open."""
    marks = [str(cell)[0] for cell in grid.to_numpy().ravel() if isinstance(cell, str) and cell]
    return {word: marks.count(mark) for word, mark in MARKS.items()}


def grid_sentence(grid: pd.DataFrame) -> str:
    """How a grid of claims comes out, claim by claim."""
    said = []
    for claim, one in grid.groupby(level=0, sort=False):
        parts = [f"{n} {word}" for word, n in counts(one).items() if n]
        said.append(f"{claim}: {', '.join(parts) or 'not measured'}")
    return f"Cells by claim: {'; '.join(said)}."


# --- sentences ------------------------------------------------------------------------------------


def by_word(table: pd.DataFrame) -> dict[str, list[str]]:
    """Paradigms by what they are on *every* base: a word of `MARKS`, or ``"differs"`` between bases."""
    found: dict[str, list[str]] = {word: [] for word in (*MARKS, "differs")}
    for paradigm in arranged(table.index.get_level_values("paradigm")):
        words = set(table.xs(paradigm, level="paradigm")["word"])
        found[words.pop() if len(words) == 1 else "differs"].append(paradigm)
    return found


def _of(table: pd.DataFrame, paradigms: Sequence[str], column: str = "middle") -> np.ndarray:
    rows = table[table.index.get_level_values("paradigm").isin(list(paradigms))]
    return rows[column].to_numpy(float)


def in_one_sentence(results: Results) -> str:
    """The finding."""
    table = standing(results)
    if table.empty:
        return "Whole answers were not measured."
    groups, n_bases = by_word(table), table.index.get_level_values("base").nunique()
    where = "on both bases" if n_bases == 2 else "on the one base" if n_bases == 1 else f"on all {n_bases} bases"
    up = groups["supported"]
    if up:
        said = f"the paper's intensity rises {span(_of(table, up))} {where} after {listed([named(p) for p in up])}"
    else:
        said = f"no paradigm raises the paper's intensity beyond the nulls {where}"
    parts = []
    for paradigm in groups["differs"]:
        rows = table.xs(paradigm, level="paradigm")
        clear = listed([named(base) for base in rows.index if rows.loc[base, "word"] == "supported"])
        parts.append(
            f"after {named(paradigm)} on {clear} alone" if clear != "none" else f"not shown after {named(paradigm)}"
        )
    rest = [named(p) for p in (*groups["open"], *groups["contradicted"])]
    if rest and up:
        parts.append(f"not shown after {listed(rest)}")
    said += f" ({'; '.join(parts)})" if parts else ""
    exact = removals(results)
    exact = exact[exact.index.get_level_values("method") == "exact"] if len(exact) else exact
    if not len(exact):
        return f"On whole answers, estimated to first order, {said}; nothing was removed for real."
    return (
        f"On whole answers, estimated to first order, {said}; when the same edges are removed for real, intensity "
        f"is {span(exact['middle'], 2)} after every one of them."
    )


def removal_sentence(results: Results) -> str:
    """Whether exact removal tells reward and preference from imitation."""
    contrasts = removal_contrasts(results)
    if contrasts.empty:
        return "Exact removal was not compared between paradigms."
    clear = [
        f"{named(p)} ({named(b)})"
        for (b, p), row in contrasts.iterrows()
        if math.isfinite(row["left"]) and not row["left"] <= 0 <= row["right"]
    ]
    said = f"By exact removal, intensity relative to RFT's own, paired by seed, is {span(contrasts['middle'], 2)}"
    if not clear:
        return f"{said}; all {len(contrasts)} intervals include 1: removal does not tell them from imitation."
    return f"{said}; the interval excludes 1 in {len(clear)} of {len(contrasts)}: {listed(clear)}."


def confidence_sentence(results: Results) -> str:
    """What is left of intensity with confidence taken out, beside the nulls."""
    said = []
    for metric, how in ((PER_GRADIENT, "Per gradient at the logits"), (EQUAL_LOSS, "At equal loss")):
        table = standing(results, metric)
        if table.empty or not np.isfinite(table["middle"]).any():
            said.append(f"{how}: not measured.")
            continue
        trained, imitating = ["ppo", "grpo", "dpo", "online-dpo"], ["rft", CONTROL]
        others = span(_of(table, imitating)) if len(_of(table, imitating)) else "not measured"
        noise = span(table["noise"])
        lead = f"{how}, reward- and preference-trained models stand at {span(_of(table, trained))}"
        said.append(f"{lead}, RFT and more SFT at {others}, weight noise of the same sizes at {noise}.")
        groups = by_word(table)
        alone = [
            f"{named(p)} on {named(base)} alone"
            for p in groups["differs"]
            for base, row in table.xs(p, level="paradigm").iterrows()
            if row["word"] == "supported"
        ]
        up = listed([named(p) for p in groups["supported"]])
        said.append(f"Beyond every null on every base: {up}" + (f"; {listed(alone)}." if alone else "."))
    return " ".join(said)


def sure_table(results: Results) -> pd.DataFrame:
    """First-order intensity on whole answers: by paradigm and base the factor, the rule's word, and seeds of a rise."""
    table, rows = standing(results), results.values
    rows = rows[(rows["alpha"] == WHOLE) & (rows["level"] == "block") & (rows["metric"] == INTENSITY)]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for (base, paradigm), row in table.iterrows():
        seeds = rows[(rows["base"] == base) & (rows["paradigm"] == paradigm)].groupby("seed")[["bb", "tt"]].mean()
        up = int((seeds["tt"] > seeds["bb"]).sum())
        cells.setdefault(named(paradigm), {}).update(
            {
                (named(base), "tuned / base"): factor(*row[["middle", "left", "right"]].astype(float)),
                (named(base), "a rise is"): row["word"],
                (named(base), "seeds up"): f"{up}/{len(seeds)}",
            }
        )
    found = pd.DataFrame.from_dict(cells, orient="index").rename_axis("after")
    found.columns = pd.MultiIndex.from_tuples(found.columns) if len(found) else found.columns
    return found


def prefixed_sentence(results: Results) -> str:
    """The outcome of the rule as it was fixed: PPO and GRPO pooled, at α = 0.3."""
    rows = results.verdicts[results.verdicts["scope"] == "PPO and GRPO"]
    if not len(rows):
        return "The rule that was fixed beforehand was not applied."
    said = []
    for base, one in rows.groupby("base", sort=False):
        of = {word: int((one["verdict"] == word).sum()) for word in ("holds", "contradicted", "not resolved")}
        against = listed([r.claim for r in one.itertuples() if r.verdict == "contradicted"])
        said.append(
            f"{named(base)}: of {len(one)} claims {of['holds']} supported, {of['contradicted']} contradicted"
            + (f" ({against})" if of["contradicted"] else "")
            + f", {of['not resolved']} open"
        )
    return f"As fixed beforehand (α = {ALPHA:g}, PPO and GRPO pooled): {'; '.join(said)}."


def finding_table(results: Results) -> pd.DataFrame:
    """The figure's numbers: by base and paradigm the factors of intensity on whole answers, with intervals over seeds."""
    table, methods = standing(results), removals(results)
    per_gradient, equal = standing(results, PER_GRADIENT), standing(results, EQUAL_LOSS)

    def text(rows: pd.DataFrame, where: tuple[str, ...]) -> str:
        return factor(*rows.loc[where, ["middle", "left", "right"]].astype(float)) if where in rows.index else ""

    found = {
        (named(base), named(paradigm)): {
            "EAP": text(table, (base, paradigm)),
            "the rule": row["word"],
            **{f"{m}, 20": text(methods, (base, paradigm, m)) for m in METHODS},
            "per gradient": text(per_gradient, (base, paradigm)),
            "equal loss": text(equal, (base, paradigm)),
        }
        for (base, paradigm), row in table.iterrows()
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["base", "after"])
