"""Which edges changed, of thousands looked at: differences with intervals that hold for all of them at once.

1. d_ie = W_tuned − W_base of problem i on edge e; t_e = d̄_e / (s_e / √n).
2. **Null**: base and tuned are exchangeable within a problem, so d_i may change its sign, for all edges together, which
   keeps how edges go along with each other (Westfall and Young's max-T). For each choice of signs the largest |t| of
   any edge is kept; all 2ⁿ⁻¹ choices if there are no more than asked for, else random ones beside the observed.
3. p_e = share of choices whose largest |t| reaches |t_e|: the chance of *any* false edge is at most α among those with
   p ≤ α. c is the critical value, and d̄_e ± c · s_e / √n the interval: it leaves out 0 just where p ≤ α.
4. With few problems there are few choices: below 6 no p can be .05 or less, and there is no interval.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.metrics.definitions import edge_values
from rlcircuits.metrics.pairing import paired
from rlcircuits.storage import Step

EDGE_CHANGES = Step("edge-changes", 1)
#: edges at a time: choices of signs × edges stay within some tens of MB
TOGETHER = 4096


def edge_changes(
    base_scores: xr.DataArray,
    tuned_scores: xr.DataArray | None = None,
    n: int = 20,
    confidence: float = 0.95,
    n_resamples: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """The edges that changed most, largest mean |difference| first.

    Args:
        base_scores, tuned_scores: as for `compare`; with the first alone, the strongest edges, against 0.
        n: how many.
        confidence: with which all intervals hold together.
        n_resamples: choices of signs.
        seed: of them.

    Returns:
        Indexed by edge, ``"source->destination"``: ``base`` and ``tuned`` (mean scores, nats; with one model ``base``
        alone), ``difference`` (with one model its score), ``low``, ``high``, ``p``. ``attrs``: ``edges``, how many were
        looked at; ``differ``, how many of all have p ≤ 1 − `confidence`; ``choices``; ``smallest``, the smallest p that
        so many choices allow; ``problems``; ``confidence``.

    Raises:
        InputError: scores that cannot be paired, or a parameter out of range.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}: expected a number between 0 and 1, such as 0.95")
    for name, given in (("n", n), ("n_resamples", n_resamples)):
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
            raise InputError(f"{name} is {given!r}: expected a whole number, at least 1")
    sides = [base_scores] if tuned_scores is None else list(paired(base_scores, tuned_scores))
    if tuned_scores is None:
        edge_values(base_scores)  # its checks
    arrays = [one.transpose("sample", "source", "destination") for one in sides]
    edges = np.argwhere(~np.isnan(arrays[0].values[0]))
    flat = [one.values[:, edges[:, 0], edges[:, 1]] for one in arrays]
    problems = len(flat[0])
    signs = _signs(problems, n_resamples, seed)
    largest = np.zeros(len(signs))
    mean, error, t = (np.empty(len(edges)) for _ in range(3))
    for begin in range(0, len(edges), TOGETHER):
        part = slice(begin, begin + TOGETHER)
        d = flat[-1][:, part].astype(np.float64)
        if len(flat) > 1:
            d -= flat[0][:, part]
        mean[part] = d.mean(0)
        each, spread = _studentised(signs, d)
        t[part], error[part] = each[0], spread[0]
        np.maximum(largest, each.max(1), out=largest)
    reached = np.sort(largest)
    p = 1 - np.searchsorted(reached, t * (1 - 1e-9)) / len(reached)
    allowed = math.floor((1 - confidence) * len(reached) + 1e-9)
    critical = reached[-allowed - 1] if allowed else math.nan
    order = np.argsort(-np.abs(mean), kind="stable")[:n]
    names = [arrays[0][dim].values.astype(str) for dim in ("source", "destination")]
    table = pd.DataFrame(
        {
            **{side: one[:, order].astype(np.float64).mean(0) for side, one in zip(("base", "tuned"), flat)},
            "difference": mean[order],
            "low": mean[order] - critical * error[order],
            "high": mean[order] + critical * error[order],
            "p": p[order] if problems > 1 else np.nan,
        },
        index=pd.Index([f"{names[0][s]}->{names[1][d]}" for s, d in edges[order]], name="edge"),
    )
    table.attrs = {
        "edges": len(edges),
        "differ": int((p <= 1 - confidence + 1e-9).sum()) if problems > 1 else 0,
        "choices": len(signs),
        "smallest": 1 / len(signs) if problems > 1 else math.nan,
        "problems": problems,
        "confidence": confidence,
    }
    return table


def _signs(n: int, most: int, seed: int) -> np.ndarray:
    """Choices of signs ``(choice, problem)``, the observed one first; turning all signs leaves |t| as it is."""
    if n <= 20 and 2 ** (n - 1) <= most + 1:
        choices = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)[None] & 1
        return 1.0 - 2.0 * choices
    drawn = np.random.default_rng([seed, 5]).integers(0, 2, (most, n))
    return np.vstack([np.ones(n), 1.0 - 2.0 * drawn])


def _studentised(signs: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|t| and the standard error ``(choice, edge)``; where nothing varies, |t| is 0 or infinite."""
    n = len(d)
    means, squares = signs @ d / n, (d**2).sum(0)
    variance = np.maximum(squares - n * means**2, 0.0)
    variance[variance <= 1e-12 * squares] = 0.0
    error = np.sqrt(variance / max(1, n - 1) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == 0, 0.0, np.abs(means) / error)
    return t, error
