"""Numbers as text: as many digits as they deserve, in which a page breaks no line, and a dash for what there is not."""

from __future__ import annotations

import math

NONE = "–"


def number(value: float, n: int = 3) -> str:
    """`n` significant digits; 0.0000812 becomes 8.12e−05 and 25600.0 becomes 25,600.

    >>> number(25600.4), number(float("nan")), number(-0.5)
    ('25,600', '–', '−0.5')
    """
    if not math.isfinite(value):
        return NONE if math.isnan(value) else ("∞" if value > 0 else "−∞")
    whole = 10**n <= abs(value) < 10 ** (n + 3) or value == 0
    return (f"{value:,.0f}" if whole else f"{value:.{n}g}").replace("-", "−")


def signed(value: float, n: int = 3) -> str:
    """As `number`, with + before what is above 0."""
    return f"+{number(value, n)}" if value > 0 and math.isfinite(value) else number(value, n)


def interval(low: float, high: float, n: int = 2) -> str:
    """``[low, high]``; empty where there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, n)},\u00a0{number(high, n)}]"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent, as 44 %."""
    return NONE if math.isnan(share) else f"{100 * share:.{digits}f}\u00a0%".replace("-", "−")


def points(low: float) -> str:
    """A difference of two shares in points, with its sign."""
    return NONE if math.isnan(low) else f"{100 * low:+.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """``p = .012``; ``p < .001``; empty where there is none."""
    if math.isnan(p):
        return ""
    return "p < .001" if p < 0.001 else f"p = {p:.2g}".replace("0.", ".", 1)
