"""Tables and figures as pages show them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from rlcircuits.errors import InputError
from rlcircuits.lab.display import comparison, digits, figure_html, show


def test_what_is_not_defined_leaves_its_cell_empty():
    table = pd.DataFrame(
        {"base": [1.0, np.nan], "tuned": [2.0, np.nan], "difference": [1.0, np.nan]}, index=["gini", "x"]
    )
    shown = comparison(table.assign(low=np.nan, high=np.nan, p=np.nan))
    assert "nan" not in shown.to_string().lower() and shown.loc["x"].tolist() == [""] * 5


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
    assert "largest problem's share" not in shown
    shares = comparison(scored().assign(share=[0.96, float("nan")]))["largest problem's share"]
    assert list(shares) == ["96\u00a0%", ""]
    assert shown.loc[("mine", "activation intensity"), "p (Holm)"] == "0.001"


def test_figure_html_is_the_same_each_time_and_cannot_be_broken_out_of() -> None:
    title = "a </script><script>alert(1)</script> & \u00e9"
    fig = go.Figure(go.Scatter(x=np.arange(3), y=[1.5, np.nan, 2]), layout_title_text=title)
    once, again = (figure_html(fig, "a-name", caption='1 < 2 & "so"') for _ in range(2))
    assert once == again
    assert once.count("<script") == 1 and once.count("</script>") == 1
    assert 'id="a-name"' in once and "1 &lt; 2 &amp;" in once
    data = json.loads(re.search(r'id="a-name-data">(.*?)</script>', once)[1])
    assert data["layout"]["title"]["text"] == title
    assert json.dumps(data, sort_keys=True) == json.dumps(json.loads(fig.to_json()), sort_keys=True)
    assert len(once) < 30_000, "no plotly.js inside"


def test_alt_text_is_there_for_every_figure() -> None:
    fig = go.Figure(layout_title_text="<b>Finding</b>")
    assert re.search(r'role="img" aria-label=" ?Finding ?"', figure_html(fig, "one"))
    assert 'aria-label="seen"' in figure_html(fig, "one", caption="under", alt="seen")
    assert 'aria-label="under"' in figure_html(fig, "one", caption="under")
    assert 'aria-label="Figure one."' in figure_html(go.Figure(), "one")


@pytest.mark.parametrize("name", ["Two Words", "", "a_b", "9", "a--b", '"><script>', None])
def test_figure_names_are_ids(name: Any) -> None:
    with pytest.raises(InputError, match="cannot name a figure"):
        figure_html(go.Figure(), name)


def test_only_figures_are_shown() -> None:
    with pytest.raises(InputError, match="expected a plotly figure, got dict"):
        figure_html({}, "a")  # type: ignore[arg-type]


def test_show_gives_each_front_end_a_form_it_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: shown.append((data, more)))
    fig = go.Figure(go.Bar(y=[1, 2]), layout_title_text="Two bars")
    show(fig, "bars", caption="c")
    ((bundle, more),) = shown
    assert more == {"raw": True}
    assert bundle["text/html"] == figure_html(fig, "bars", "c")
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"
    assert bundle["text/plain"]
