"""When a claim about a change is supported: one rule for every table, page and sentence.

A claim says that a metric rises (+1) or falls (−1). It is **open** unless all of these can be said; those that were not
asked for do not count:

1. the interval leaves out no change: a difference of 0, a factor of 1;
2. the p-value, corrected for the family of comparisons it is one of, is at most `LEVEL`;
3. no single problem makes up more than `LARGEST_SHARE` of the change;
4. the change is larger than that of the nulls.

Then it is **supported** when the change lies on the claimed side, else **contradicted**.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from rlcircuits.errors import InputError

LEVEL = 0.05
LARGEST_SHARE = 0.5


class Support(NamedTuple):
    """What a comparison says of a claim: ``"supported"``, ``"contradicted"`` or ``"open"``, and why."""

    word: str
    reason: str


def support(
    effect: float,
    low: float,
    high: float,
    direction: int = 1,
    *,
    p: float | None = None,
    share: float | None = None,
    null: float | None = None,
    factor: bool = False,
) -> Support:
    """Judge a claim by the rule of this module.

    Args:
        effect, low, high: the change and its interval: a difference, or the logarithm of a factor.
        direction: +1 or −1, where the claim says that the change lies.
        p: two-sided and corrected; NaN, as of a change without a test, leaves the claim open.
        share: of the change that is one problem's, see `influence`; NaN, of metrics of a whole set of problems, does
            not count.
        null: the size that the nulls reach, on the scale of `effect`; NaN, none having been measured, leaves it open.
        factor: whether the change is the logarithm of a factor, so that reasons speak of 1 instead of 0.

    Raises:
        InputError: another direction.
    """
    if direction not in (1, -1):
        raise InputError(f"direction is {direction!r}: expected 1, the metric rises, or -1, it falls")
    none = "1" if factor else "0"
    if not math.isfinite(effect):
        return Support("open", "not measured")
    if not (math.isfinite(low) and math.isfinite(high)):
        return Support("open", "no interval")
    if low <= 0 <= high:
        return Support("open", f"the interval includes {none}")
    if p is not None and not p <= LEVEL:
        return Support("open", "no test" if math.isnan(p) else f"p = {p:.2g}")
    if share is not None and share > LARGEST_SHARE:
        return Support("open", f"one problem is {share:.0%} of the change")
    if null is not None and math.isnan(null):
        return Support("open", "no null was measured")
    if null is not None and abs(effect) <= null:
        return Support("open", f"the interval excludes {none}, but the effect is no larger than the nulls' spread")
    beyond = "" if null is None else ", beyond the nulls' spread"
    if direction * effect > 0:
        return Support("supported", f"the interval lies on the claimed side{beyond}")
    return Support("contradicted", f"the interval lies on the other side{beyond}")


def supported(row: pd.Series, direction: int = 1) -> Support:
    """`support` of a row of `compare`: its difference, and where the columns are there ``p_holm`` (else ``p``) and
    ``share``.
    """
    p = row.get("p_holm", row.get("p"))
    return support(
        float(row["difference"]), float(row["low"]), float(row["high"]), direction,
        p=None if p is None else float(p), share=float(row.get("share", math.nan)),
    )  # fmt: skip
