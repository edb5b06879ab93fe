"""Tables as pages show them; figures are tested with the book."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rlcircuits.lab.display import comparison, digits


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00008123, "8.12e−05"),
        (-0.04567, "−0.0457"),
        (25600.0, "25,600"),
        (1234.56, "1,235"),
        (0.0, "0"),
        (np.float32(0.5), "0.5"),
        (1.23456e9, "1.23e+09"),
        (float("nan"), ""),
        (float("-inf"), "−inf"),
        (7, 7),
        (np.int64(1920), 1920),
        (True, True),
        ("a-b", "a-b"),
        (None, None),
    ],
)
def test_digits(value, shown):
    table = pd.DataFrame({"a": pd.Series([value], dtype=object)})
    assert digits(table).loc[0, "a"] == shown


def test_a_number_is_shown_to_its_own_size():
    """What a fixed number of decimals loses: small numbers stay apart from zero and from one another."""
    values = np.random.default_rng(0).lognormal(sigma=8, size=200)
    shown = digits(pd.DataFrame({"x": values})).x
    back = shown.str.replace("−", "-").str.replace(",", "").astype(float)
    np.testing.assert_allclose(back, values, rtol=0.0051)


def scored() -> pd.DataFrame:
    rows = {"base": [1e-5, 1.0], "tuned": [3e-5, 0.5], "difference": [2e-5, -0.5], "low": [1e-5, -0.8]}
    rows |= {"high": [3e-5, 0.1], "p": [0.0002, 0.2], "ratio": [3, 0.5], "interval": ["BCa"] * 2, "note": ["", ""]}
    return pd.DataFrame(rows, index=pd.Index(["activation_intensity", "gini"], name="metric"))


def test_a_comparison_keeps_its_numbers_in_few_columns():
    shown = comparison(scored())
    assert list(shown.columns) == ["base", "tuned", "difference", "95 % interval", "p"]
    assert list(shown.index) == ["activation intensity", "Gini coefficient"]
    assert list(shown.iloc[1]) == ["1", "0.5", "−0.5", "[−0.8,\u00a00.1]", "0.2"]


def test_a_comparison_of_pairs_names_them_and_tells_every_note():
    noted = scored().assign(note=["", "one problem only"], p_holm=[0.001, 0.2])
    shown = comparison(pd.concat({"family/ppo": noted, "mine": noted}, names=["pair", "metric"]))
    assert shown.loc[("ppo", "Gini coefficient"), "note"] == "one problem only"
    assert shown.loc[("mine", "activation intensity"), "p (Holm)"] == "0.001"
