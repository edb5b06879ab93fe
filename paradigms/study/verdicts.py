"""From effects to verdicts on the paper's claims, by a rule that was fixed before any result was seen.

1. A **claim** is a weighted sum of one metric's log ratios ln(tuned/base) over paradigms and α, on own tokens at block
   level, and the direction in which the paper says it lies (arXiv 2509.21044; method, section 5). Where a metric is not
   above 0, differences.
2. Its effect and 95 % interval are over seeds and problems (`paradigms.study.effects`), from the seeds in which all of
   it was measured.
3. A **null's** value is the same sum over α with the null in place of each paradigm; its spread is the root mean square
   over seeds and draws (`paradigms.study.nulls`). The **nulls' spread** is the largest of: another base, more
   supervised steps, another seed of a paradigm, weight noise.
4. **holds**: the interval excludes 0 in the claimed direction, and the effect is larger than the nulls' spread.
   **contradicted**: the interval excludes 0 against it, and the effect is larger than the nulls' spread.
   **not resolved**: everything else, with the reason.
5. "PPO and GRPO but not DPO" is contradicted as well when DPO's own intensity by rule 4 rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlcircuits.metrics import support

VERDICTS = ("holds", "contradicted", "not resolved")
_WORDS = {"supported": "holds", "contradicted": "contradicted", "open": "not resolved"}
ALPHA = 0.3
PAPER_ALPHAS = (0.03, 0.1, 0.3, 0.5)
RL = ("ppo", "grpo")


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Args:
        name: as in the tables.
        metric: of `METRICS`.
        direction: +1 or −1, where the paper says the effect lies.
        paradigms: paradigm -> weight.
        alphas: α -> weight.
        text: in words.
    """

    name: str
    metric: str
    direction: int
    paradigms: Mapping[str, float]
    alphas: Mapping[float, float]
    text: str

    def of(self, paradigm: str) -> Claim:
        """The same claim about one paradigm alone."""
        return Claim(self.name, self.metric, self.direction, {paradigm: 1.0}, self.alphas, self.text)


def slope_weights(alphas: Sequence[float]) -> dict[float, float]:
    """Weights whose sum over values at `alphas` is their least-squares slope, per unit of α.

    >>> sum(w * (2 + 3 * a) for a, w in slope_weights([0.1, 0.3, 0.5]).items())
    3.0
    """
    mean = sum(alphas) / len(alphas)
    total = sum((a - mean) ** 2 for a in alphas)
    return {a: (a - mean) / total for a in alphas}


_BOTH = dict.fromkeys(RL, 1 / len(RL))
_AT = {ALPHA: 1.0}
NOT_DPO = "PPO and GRPO but not DPO"
CLAIMS = (
    Claim("intensity up", "activation_intensity", 1, _BOTH, _AT, "RL fine-tuning raises activation intensity"),
    Claim("complexity up", "information_complexity", 1, _BOTH, _AT, "RL fine-tuning raises information complexity"),
    Claim("kurtosis down", "distribution_kurtosis", -1, _BOTH, _AT, "RL fine-tuning lowers distribution kurtosis"),
    Claim("diversity up", "inter_sample_diversity", 1, _BOTH, _AT, "RL fine-tuning raises inter-sample diversity"),
    Claim(
        NOT_DPO, "activation_intensity", 1, {**_BOTH, "dpo": -1.0}, _AT, "PPO and GRPO raise intensity, DPO does not"
    ),
    Claim(
        "grows with α",
        "activation_intensity",
        1,
        _BOTH,
        slope_weights(PAPER_ALPHAS),
        "the rise of intensity grows with α",
    ),
)
ALONE = ("intensity up", "complexity up", "kurtosis down", "diversity up", "grows with α")
"""Claims that are also judged for every paradigm alone."""


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on: effect, interval, the nulls' spread and which null it is of, and the reason in
    words.
    """

    verdict: str
    effect: float
    low: float
    high: float
    spread: float
    null: str
    reason: str


def judge(effect: float, low: float, high: float, direction: int, spreads: Mapping[str, float]) -> Verdict:
    """Rule 4, which is `rlcircuits.metrics.support` with the nulls' spread; its words are those fixed beforehand.

    Args:
        effect, low, high: of the claim's weighted sum.
        direction: +1 or −1.
        spreads: null -> its spread; those that are NaN were not measured and do not count.
    """
    known = {name: value for name, value in spreads.items() if math.isfinite(value)}
    null = max(known, key=known.get) if known else ""
    largest = known.get(null, math.nan)

    def verdict(what: str, reason: str) -> Verdict:
        return Verdict(what, effect, low, high, largest, null, reason)

    found = support(effect, low, high, direction, null=largest)
    reason = "fewer than two seeds give no interval over seeds" if found.reason == "no interval" else found.reason
    return verdict(_WORDS[found.word], reason)


def judge_claim(
    claim: Claim, measured: Callable[[Claim], tuple[float, float, float]], spreads: Mapping[str, float]
) -> Verdict:
    """Rules 4 and 5; `measured` gives effect, low and high of a claim."""
    found = judge(*measured(claim), claim.direction, spreads)
    if claim.name == NOT_DPO:
        alone = judge(*measured(CLAIMS[0].of("dpo")), 1, spreads)
        if alone.verdict == "holds":
            return Verdict(
                "contradicted",
                found.effect,
                found.low,
                found.high,
                found.spread,
                found.null,
                "DPO's own intensity rises too",
            )
    return found
