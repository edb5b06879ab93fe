"""The study in words: sentences computed from its tables, so that no word can contradict a number.

1. A claim's sentence begins with its verdict; effect and interval follow as factors (exp of the log ratio) or
   differences.
2. Sentences on dynamics, exactness, interventions and sensitivity say *leads*, *follows*, *survives* … only where the
   interval does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from paradigms.study.controlled import Results
from paradigms.study.effects import EQUAL_LOSS
from paradigms.study.figures import change, in_order, null_spread
from paradigms.study.verdicts import CLAIMS, RL
from rlcircuits.metrics import METRICS, support

_OPENING = {"holds": "**Holds**", "contradicted": "**Contradicted**", "not resolved": "**Not resolved**"}
_TEXT = {claim.name: claim.text for claim in CLAIMS}


def listed(names: Sequence[str]) -> str:
    """Names with commas and a last "and"; "none" when there are none.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    names = list(names)
    return "none" if not names else names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(names: Sequence[str], verb: str) -> str:
    """How many, and which.

    >>> counted(["a", "b"], "hold"), counted([], "hold")
    ('2 hold (a and b)', '0 hold')
    """
    return f"{len(names)} {verb} ({listed(names)})" if names else f"0 {verb}"


def amount(effect: float, low: float, high: float, scale: str, claim: str = "") -> str:
    """An effect with its interval: a factor for a log ratio, else a signed number.

    >>> amount(math.log(2), math.log(1.5), math.log(3), "log ratio")
    '× 2.00 [1.50, 3.00]'
    """
    if not math.isfinite(effect):
        return "not measured"
    if claim == "grows with α":
        return (
            f"{effect:+.2f} [{low:+.2f}, {high:+.2f}] per unit of α"
            if math.isfinite(low)
            else f"{effect:+.2f} (no interval)"
        )
    if scale == "log ratio":
        shown, ends = f"× {math.exp(effect):.2f}", [f"{math.exp(v):.2f}" for v in (low, high) if math.isfinite(v)]
    else:
        shown, ends = f"{effect:+.3g}", [f"{v:+.3g}" for v in (low, high) if math.isfinite(v)]
    return f"{shown} [{', '.join(ends)}]" if len(ends) == 2 else f"{shown} (no interval)"


def verdict_sentence(row: pd.Series) -> str:
    """One claim about one base in one sentence, from its row of ``verdicts``."""
    found = amount(row["effect"], row["low"], row["high"], row["scale"], row["claim"])
    null = ""
    if row["null"] and math.isfinite(row["spread"]):
        factor = row["scale"] == "log ratio" and row["claim"] != "grows with α"
        spread = f"a factor of {math.exp(row['spread']):.2f} either way" if factor else f"{row['spread']:.2f}"
        null = f"; the largest null's spread is {spread} ({row['null']})"
    reason = row["reason"]
    if row["scale"] == "log ratio" and row["claim"] != "grows with α":  # shown as a factor, of which no change is 1
        reason = reason.replace("includes 0", "includes 1").replace("excludes 0", "excludes 1")
    return f"{_OPENING[row['verdict']]}: {_TEXT[row['claim']]}. {found}, {reason}{null}."


def verdict_grid(verdicts: pd.DataFrame, scope: str = "PPO and GRPO") -> pd.DataFrame:
    """Claims by bases: the verdict and its effect, for reading; rows in the order of `CLAIMS`."""
    rows = verdicts[verdicts["scope"] == scope]
    cells = rows.assign(
        cell=[f"{r.verdict}: {amount(r.effect, r.low, r.high, r.scale, r.claim)}" for r in rows.itertuples()]
    )
    grid = cells.pivot(index="claim", columns="base", values="cell")
    order = [claim.name for claim in CLAIMS if claim.name in grid.index]
    return grid.loc[order, list(dict.fromkeys(rows["base"]))]


def overall(verdicts: pd.DataFrame) -> str:
    """How many claims hold, are contradicted and stay open, per base."""
    rows = verdicts[verdicts["scope"] == "PPO and GRPO"]
    said = []
    for base, one in rows.groupby("base", sort=False):
        named = {v: [r.claim for r in one.itertuples() if r.verdict == v] for v in _OPENING}
        said.append(
            f"For the {base} base, of {len(one)} claims {counted(named['holds'], 'hold')}, "
            f"{counted(named['contradicted'], 'contradicted')} and {counted(named['not resolved'], 'not resolved')}."
        )
    both = rows.groupby("claim")["verdict"].nunique()
    if rows["base"].nunique() > 1:
        differ = [claim for claim in both.index if both[claim] > 1]
        said.append(f"The two bases differ in: {listed(differ)}.")
    return f"PPO and GRPO pooled, as the rule was fixed. {' '.join(said)}" if said else "No claim was judged."


def token_sentences(effects: pd.DataFrame, alpha: float = 0.3) -> str:
    """How much of each RL paradigm's intensity is other tokens, and how much another circuit; intensity at equal
    loss.
    """
    rows = effects[(effects["level"] == "block") & (effects["alpha"] == alpha)]
    said = []
    for (base, paradigm), one in rows[rows["paradigm"].isin([*RL, "dpo"])].groupby(["base", "paradigm"], sort=False):
        intensity = one[one["metric"] == "activation_intensity"].set_index("tokens")
        equal = one[(one["metric"] == "intensity_at_equal_loss") & (one["tokens"] == "own")]
        parts = [
            f"{name} {amount(*(intensity.loc[name, c] for c in ('log_ratio', 'log_low', 'log_high')), 'log ratio')}"
            for name in ("own", "other tokens", "other circuit")
            if name in intensity.index
        ]
        if len(equal):
            parts.append(f"at equal loss {amount(*equal.iloc[0][['effect', 'low', 'high']], 'log ratio')}")
        said.append(f"- {paradigm}, {base}: intensity on {', '.join(parts)}.")
    return "\n".join(said)


def beyond(effects: pd.DataFrame, values: pd.DataFrame, metric: str, alpha: float = 0.3) -> dict[str, list[str]]:
    """Per base the paradigms, the control among them, in which a metric moves: the interval on own tokens at block
    level excludes 0, and the effect is larger than every null's spread.
    """
    rows = effects[
        (effects["metric"] == metric)
        & (effects["alpha"] == alpha)
        & (effects["level"] == "block")
        & (effects["tokens"] == "own")
    ]
    rows = change(rows[rows["kind"].isin(["paradigm", "control"])])
    found: dict[str, list[str]] = {}
    for base, one in rows.groupby("base", sort=False):
        spreads = [v for v in null_spread(values, base, metric, alpha).values() if math.isfinite(v)]
        null = max(spreads, default=math.nan)
        clear = [r.paradigm for r in one.itertuples() if support(r.middle, r.left, r.right, null=null).word != "open"]
        found[base] = in_order(clear)
    return found


def confidence_sentences(effects: pd.DataFrame, values: pd.DataFrame, alpha: float = 0.3) -> str:
    """Intensity with the model's confidence taken out in two ways, for every paradigm and the control, beside the
    nulls.
    """
    rows = effects[(effects["alpha"] == alpha) & (effects["level"] == "block") & (effects["tokens"] == "own")]
    rows = change(rows[rows["kind"].isin(["paradigm", "control"])])
    said = []
    for base, one in rows.groupby("base", sort=False):
        at = one.set_index(["metric", "paradigm"])
        for metric, name in (
            ("intensity_per_gradient", "intensity per gradient at the logits"),
            (EQUAL_LOSS, "intensity at equal loss"),
        ):
            parts = [
                f"{p} {amount(*at.loc[(metric, p), ['middle', 'left', 'right']], 'log ratio')}"
                for p in in_order(one["paradigm"])
                if (metric, p) in at.index
            ]
            spreads = {null: v for null, v in null_spread(values, base, metric, alpha).items() if math.isfinite(v)}
            widest = (
                f" The largest null's spread is a factor of {math.exp(max(spreads.values())):.2f} "
                f"({max(spreads, key=spreads.get)})."
                if spreads
                else ""
            )
            said.append(f"- {base}, {name}: {', '.join(parts)}.{widest}")
    return "\n".join(said)


def in_short(results: Results, alpha: float = 0.3) -> str:
    """The chapter in a few sentences."""
    clear = {
        metric: beyond(results.effects, results.values, metric, alpha)
        for metric in ("activation_intensity", "intensity_per_gradient")
    }
    said = [f"- {overall(results.verdicts)}"]
    for metric, name in (
        ("activation_intensity", "Intensity"),
        ("intensity_per_gradient", "Intensity divided by the gradient at the logits, so with confidence taken out,"),
    ):
        parts = [f"{listed(paradigms)} ({base})" for base, paradigms in clear[metric].items()]
        said.append(f"- {name} moves beyond every null in: {'; '.join(parts)}.")
    said.append(f"- {signs(results.exact_effects, alpha)}")
    return "\n".join(said)


def signs(exact_effects: pd.DataFrame, alpha: float) -> str:
    """Of each of the paper's metrics by itself, how many changes keep their sign when edges are removed for real."""
    parts = []
    if len(exact_effects):
        wide = exact_effects[exact_effects["alpha"] == alpha].pivot_table(
            index=["metric", "base", "paradigm"], columns="method", values="log_ratio"
        )
        for name, metric in METRICS.items():
            if metric.paper and name in wide.index.get_level_values("metric") and {"EAP", "exact"} <= set(wide):
                one = wide.loc[name][["EAP", "exact"]].dropna()
                same = int((np.sign(one["EAP"]) == np.sign(one["exact"])).sum())
                parts.append(f"{metric.label} {same} of {len(one)}")
    if not parts:
        return "Signs were not compared with exact removal."
    return f"Changes (paradigm × base) that keep their sign under exact removal at α = {alpha:g}: {listed(parts)}."


def lead_sentences(lags: pd.DataFrame, metric: str = "activation_intensity", alpha: float = 0.3) -> str:
    """Whether a metric leads accuracy along training, per base and paradigm."""
    if not len(lags):
        return "No checkpoints were measured."
    rows = lags[(lags["lag"] == "lead") & (lags["metric"] == metric) & (lags["alpha"] == alpha)]
    groups: dict[str, list[str]] = {"leads": [], "follows": [], "neither measurably leads nor follows": []}
    for row in rows.itertuples():
        word = list(groups)[2]
        if math.isfinite(row.low):
            word = "leads" if row.low > 0 else "follows" if row.high < 0 else word
        ends = f" [{row.low:+.2f}, {row.high:+.2f}]" if math.isfinite(row.low) else ", no interval"
        found = f"{row.correlation:+.2f}{ends}" if math.isfinite(row.correlation) else "too few changes"
        groups[word].append(f"{row.paradigm} ({row.base}; {found})")
    return "\n".join(
        f"- {METRICS[metric].label.capitalize()} **{word}** accuracy in: {listed(names)}."
        for word, names in groups.items()
    )


def exactness_sentences(exactness: pd.DataFrame, exact_effects: pd.DataFrame, alpha: float = 0.3) -> str:
    """EAP beside exact ablation in numbers, and whether the effects on the paper's metrics keep their sign."""
    if not len(exactness):
        return "No exact ablation was measured."
    said = []
    for base, one in exactness.groupby("base", sort=False):
        values = one.groupby(["method", "quantity"])["value"]
        middle, quarters = values.median(), values.quantile([0.25, 0.75])
        numbers = [
            f"{method}: median rank correlation {middle[method, 'rank correlation']:.2f}, slope "
            f"{middle[method, 'slope']:.1f} (quartiles {quarters[method, 'slope', 0.25]:.1f} and "
            f"{quarters[method, 'slope', 0.75]:.1f})"
            for method in ("EAP", "EAP-IG")
            if (method, "slope") in middle.index
        ]
        said.append(f"- {base}: {'; '.join(numbers)}.")
        kept = [
            f"{method} {middle[method, 'CPR']:.2f}"
            for method in ("EAP", "EAP-IG", "random")
            if (method, "CPR") in middle.index
        ]
        if kept:
            said.append(
                f"- {base}: circuits of the strongest edges, with the rest removed exactly, keep (CPR, 1 is all) "
                f"{', '.join(kept)}."
            )
    if len(exact_effects):
        said.append(f"- {signs(exact_effects, alpha)}")
    return "\n".join(said)


def cause_sentences(cause: pd.DataFrame) -> str:
    """What the interventions did."""
    said = []
    scaled = cause[(cause["intervention"] == "logits scaled")] if len(cause) else cause
    if len(scaled):
        moved = scaled[scaled["quantity"] == "accuracy"]["effect"].abs().max()
        intensity = np.exp(scaled[scaled["quantity"] == "activation_intensity"]["effect"])
        said.append(
            f"- Logits scaled: intensity went from × {intensity.min():.3g} to × {intensity.max():.3g} while accuracy "
            f"moved by at most {moved:.3f}; it cannot move, as the arg max of every logit stays. So intensity by "
            "itself is no cause of accuracy, and a difference in intensity alone says nothing about what a model can "
            "do."
        )
    pushed = cause[cause["intervention"] == "intensity pushed"] if len(cause) else cause
    for (base, arm), one in pushed.groupby(["base", "setting"], sort=False) if len(pushed) else ():
        at = one.set_index("quantity")
        parts = [
            f"intensity {amount(*(at.loc['activation_intensity', c] for c in ('effect', 'low', 'high')), 'log ratio')}",
            f"accuracy {amount(*(at.loc['accuracy', c] for c in ('effect', 'low', 'high')), 'difference')}",
            "supervised loss "
            f"{amount(*(at.loc['supervised_loss', c] for c in ('effect', 'low', 'high')), 'difference')}",
        ]
        moved = at.loc["accuracy", "low"] > 0 or at.loc["accuracy", "high"] < 0
        said.append(
            f"- Intensity pushed to {arm} ({base}), against the same steps without a push: {', '.join(parts)}; "
            f"accuracy **{'moves' if moved else 'does not measurably move'}**."
        )
    hot = (
        cause[(cause["intervention"] == "sampling temperature") & cause["setting"].str.contains("−")]
        if len(cause)
        else cause
    )
    for (base, setting), one in hot.groupby(["base", "setting"], sort=False) if len(hot) else ():
        at = one[(one["alpha"] == 0.3) | one["alpha"].isna()].set_index("quantity")
        policy = at.loc["policy entropy"] if "policy entropy" in at.index else None
        spread = ("information_complexity", "edge_entropy", "output_edge_entropy", "log_histogram_entropy")
        known = [m for m in spread if m in at.index]
        follow = [METRICS[m].label for m in known if at.loc[m, "low"] > 0 or at.loc[m, "high"] < 0]
        entropy = (
            ""
            if policy is None
            else "the policy's entropy changes by "
            f"{amount(policy['effect'], policy['low'], policy['high'], 'difference')} nats; "
        )
        said.append(
            f"- Sampling temperature in GRPO's training, {setting} ({base}): {entropy}entropy metrics of the circuit "
            f"whose interval excludes 0: {listed(follow)}."
        )
    return "\n".join(said) or "No intervention was made."


def sensitivity_sentences(table: pd.DataFrame) -> str:
    """Which of the paper's metrics' conclusions survive which other settings."""
    if not len(table):
        return "No other settings were measured."
    rows = table[table["metric"].isin([n for n, m in METRICS.items() if m.paper]) & (table["variant"] != "reference")]
    said = []
    for metric, one in rows.groupby("metric", sort=False):
        share = one.groupby("variant", sort=False)["survives"].mean()
        fragile = [f"{variant} ({value:.0%} survive)" for variant, value in share.items() if value < 1]
        where = f"; not all under {listed(fragile)}" if fragile else ""
        first = table[(table["metric"] == metric) & (table["variant"] == "reference")]
        clear = (
            f" ({int(first['resolved'].sum())} of {len(first)} effects exclude 0 to begin with)" if len(first) else ""
        )
        said.append(
            f"- {METRICS[metric].label.capitalize()}: {one['survives'].mean():.0%} of {len(one)} conclusions "
            f"survive{where}{clear}."
        )
    return "\n".join(said)


def member_grid(results: Results) -> pd.DataFrame:
    """Accuracy by base and paradigm over seeds: mean, lowest, highest, how many were trained and how many were not.

    It is the strict accuracy as well as the flexible one: the family's grader takes only what follows the last ``#``.
    """
    table = results.members[~results.members["paradigm"].str.contains(",")]
    grid = table.groupby(["base", "paradigm"], sort=False).agg(
        accuracy=("accuracy", "mean"), lowest=("accuracy", "min"), highest=("accuracy", "max"), kl=("kl", "mean"),
        length=("length", "mean"),
        trained=("accuracy", "count"), failed=("accuracy", lambda a: int(a.isna().sum())),
    )  # fmt: skip
    return grid.round(3)
