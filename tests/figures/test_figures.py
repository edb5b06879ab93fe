"""Figures: the numbers they show are those given, what they say is said in words too, and text stays text."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from scipy import stats

from rlcircuits import figures
from rlcircuits.attribution.graph import Graph
from rlcircuits.errors import InputError
from rlcircuits.metrics import definitions as metrics
from rlcircuits.metrics.inference import compare

EVIL = '<script>alert("x")</script> $x^2$ &lt;b&gt;'
SAFE = '&lt;script&gt;alert("x")&lt;/script&gt; &#36;x^2&#36; &amp;lt;b&amp;gt;'


def graph_scores(seed: int, level: str = "block", n: int = 5, n_layers: int = 3) -> xr.DataArray:
    graph = Graph.build(level, n_layers, 4, 2)
    w = np.random.default_rng(seed).laplace(scale=1e-3, size=(n, *graph.mask.shape))
    coords = {
        "sample": [f"p/{i}" for i in range(n)],
        "source": list(graph.sources),
        "destination": list(graph.destinations),
    }
    return xr.DataArray(np.where(graph.mask, w, np.nan), dims=metrics.DIMS, coords=coords, attrs={"level": level})


def evil_scores(seed: int = 0) -> xr.DataArray:
    w = np.random.default_rng(seed).normal(size=(4, 2, 3))
    coords = {"sample": [f"{EVIL} {i}" for i in range(4)], "source": [EVIL, "b"], "destination": [EVIL, "c", "d"]}
    return xr.DataArray(w, dims=metrics.DIMS, coords=coords)


def curve(**columns) -> pd.DataFrame:
    return pd.DataFrame({"step": [0, 1, 2], "prompts_seen": [0, 8, 16]} | columns)


def all_figures(base, tuned, name: str = "ppo") -> dict[str, go.Figure]:
    """One of every kind, of the given scores, with `name` wherever a name or text is given."""
    table = compare(base, tuned, n_resamples=49)
    return {
        "adjacency": figures.adjacency(base, tuned, names=("base", name)),
        "residual_graph": figures.residual_graph(base, tuned, names=("base", name)),
        "size_distribution": figures.size_distribution({"base": base, name: tuned}),
        "source_profile": figures.source_profile({"base": base, name: tuned}),
        "sample_scatter": figures.sample_scatter(base, tuned, names=("base", name)),
        "forest": figures.forest({name: table}),
        "training_curves": figures.training_curves({name: curve(accuracy=[0.5, 0.6, 0.7])}),
        "ablation_scatter": figures.ablation_scatter(base, 0.5 * base),
        "answer_tokens": figures.answer_tokens({name: [name, "2"]}, {name: [0.1, 0.2]}),
        "dropped_by_rule": figures.dropped_by_rule(
            {name: pd.DataFrame({"rule": [name], "dropped": [3], "left": [7]}), "other": dropped_table()}
        ),
    }


def dropped_table() -> pd.DataFrame:
    return pd.DataFrame({"rule": ["both correct", "length"], "dropped": [3, 1], "left": [7, 6]})


# --- text ---


def test_as_text_escapes_what_plotly_would_read_as_markup_or_tex():
    assert figures.as_text(EVIL) == SAFE
    assert figures.as_text("a\nb\r\nc") == "a⏎b⏎c"
    assert figures.as_text(3) == "3"


def strings_of(value) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings_of(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings_of(v)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("kind", sorted(all_figures(graph_scores(0), graph_scores(1))))
def test_names_and_tokens_are_never_markup(kind):
    figure = all_figures(evil_scores(0), evil_scores(1), EVIL)[kind]
    content = json.loads(figure.to_json())
    content["layout"].pop("meta")  # plain text by contract
    said = strings_of(content)
    assert not [s for s in said if "<script" in s or "$x" in s]
    assert any(SAFE[:20] in s for s in said)  # shown, not dropped


@pytest.mark.parametrize("kind", sorted(all_figures(graph_scores(0), graph_scores(1))))
def test_every_figure_has_title_alt_text_theme_and_axis_titles(kind):
    figure = all_figures(graph_scores(0), graph_scores(1))[kind]
    assert len(figure.layout.title.text) > 10 and figure.layout.title.subtitle.text
    assert figure.layout.meta["alt"].startswith(figure.layout.title.text)
    assert len(figure.layout.meta["alt"]) > len(figure.layout.title.text) + 20
    assert figure.layout.template.layout.colorway == figures.PALETTE
    figure.to_json()
    if kind not in ("answer_tokens", "residual_graph"):
        assert any(a.title.text for a in figure.select_xaxes())


@pytest.mark.parametrize(
    "draw",
    [
        lambda w, t: figures.adjacency(w, title=t),
        lambda w, t: figures.forest({"a": compare(w, 2 * w, n_resamples=9)}, title=t),
        lambda w, t: figures.answer_tokens({"a": ["1"]}, title=t),
    ],
)
def test_a_finding_can_replace_the_question(draw):
    figure = draw(graph_scores(0), "PPO doubles it")
    assert figure.layout.title.text == "PPO doubles it" and figure.layout.meta["alt"].startswith("PPO doubles it")


# --- the graph ---


def test_adjacency_shows_base_tuned_and_their_difference():
    base, tuned = graph_scores(0), graph_scores(1)
    figure = figures.adjacency(base, tuned)
    panels = [np.array(t.z, float) for t in figure.data]
    np.testing.assert_allclose(panels[0], base.mean("sample"))
    np.testing.assert_allclose(panels[1], tuned.mean("sample"))
    np.testing.assert_allclose(panels[2], panels[1] - panels[0])
    assert list(figure.data[0].y) == list(base.source.values)
    one = figures.adjacency(base, sample="p/2")
    assert len(one.data) == 1
    np.testing.assert_array_equal(np.array(one.data[0].z, float), base.sel(sample="p/2"))


def test_hovering_shows_every_panel_unless_the_graph_is_large():
    base, tuned = graph_scores(0), graph_scores(1)
    trace = figures.adjacency(base, tuned).data[0]
    expected = [base.mean("sample")[0, 1], tuned.mean("sample")[0, 1]]
    np.testing.assert_allclose(np.array(trace.customdata, float)[0, 1, :2], expected)
    large = figures.adjacency(graph_scores(0, "head", n_layers=24), graph_scores(1, "head", n_layers=24))
    assert large.data[0].customdata is None and "%{z" in large.data[0].hovertemplate
    assert len(large.to_json()) < 1_000_000


def test_colours_are_centred_on_zero_and_not_ruled_by_one_edge():
    base = graph_scores(0, level="head")
    before = figures.adjacency(base).layout.coloraxis
    assert before.cmin == -before.cmax and before.cmid == 0
    base[:, 0, -1] *= 1e6
    after = figures.adjacency(base).layout.coloraxis
    assert after.cmax == pytest.approx(before.cmax, rel=0.25)
    middle = dict(before.colorscale)[0.5]
    assert middle.upper() == "#FFFFFF"


def test_a_weak_model_beside_a_strong_one_is_not_blank():
    """Base and tuned share their colours while they can be compared; a difference never does."""
    base, tuned = graph_scores(0), graph_scores(1)
    alike = figures.adjacency(base, tuned)
    assert [t.coloraxis for t in alike.data] == ["coloraxis", "coloraxis", "coloraxis2"]
    apart = figures.adjacency(base, 20 * tuned)
    assert [t.coloraxis for t in apart.data] == ["coloraxis", "coloraxis2", "coloraxis3"]
    said = [one.layout.title.subtitle.text for one in (alike, apart)]
    assert ["each panel to its own scale" in text for text in said] == [False, True]
    sizes = np.abs(base.mean("sample").values)
    assert apart.layout.coloraxis.cmax == pytest.approx(np.nanquantile(sizes, 0.98))


def test_adjacency_of_zero_scores_has_a_range():
    axis = figures.adjacency(graph_scores(0) * 0).layout.coloraxis
    assert axis.cmax == 1


@pytest.mark.parametrize("level", ["block", "qkv", "head"])
def test_residual_graph_draws_the_k_strongest_edges_in_two_line_traces_per_sign(level):
    w = graph_scores(3, level)
    figure = figures.residual_graph(w, k=12, sample="p/1")
    lines = [t for t in figure.data if t.mode == "lines"]
    assert len(lines) == 4 and not figure.layout.shapes
    assert sum(int(np.isnan(np.array(t.x, float)).sum()) for t in lines if len(t.x) > 1) == 12
    dots = [t for t in figure.data if t.mode == "markers" and t.text]
    drawn = {text: c[0] for t in dots for text, c in zip(t.text, t.customdata, strict=True)}
    matrix = w.sel(sample="p/1").values
    strongest = np.sort(np.abs(matrix[np.isfinite(matrix)]))[::-1][:12]
    np.testing.assert_allclose(np.sort(np.abs(list(drawn.values())))[::-1], strongest)
    largest = max(map(abs, drawn.values()))
    for k, (strong, _) in enumerate((lines[:2], lines[2:])):
        n = sum(abs(v) >= largest / 3 and np.sign(v) == (1, -1)[k] for v in drawn.values())
        assert np.isnan(np.array(strong.x, float)).sum() == max(n, 1)
    named = figure.layout.annotations[0].text.partition('px">')[2].partition("</span>")[0].split(", ")
    assert [drawn[name.replace("→", " → ")] for name in named] == sorted(drawn.values(), key=abs)[::-1][: len(named)]
    for trace, sign in zip(dots, (1, -1), strict=True):
        assert all(np.sign(c[0]) == sign for c in trace.customdata)
    for text, value in drawn.items():  # each label is the edge that has this score
        source, destination = text.replace("&lt;", "<").replace("&gt;", ">").split(" → ")
        assert w.sel(sample="p/1", source=source, destination=destination).item() == value


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_the_lowest_panel_of_each_column_has_numbers_and_a_title(n):
    shares = [0.01, 0.1, 0.5, 1.0]
    table = pd.concat(
        pd.DataFrame({"share": shares, "faithfulness": shares, "low": shares, "high": shares, "edges": [1, 2, 3, 4],
                      "intervention": "zero", "model": "tuned", "circuit": circuit})
        for circuit in ("own", "other", "random")
    )  # fmt: skip
    figure = figures.transfer_curves({f"pair {i}": table for i in range(n)})
    lowest = {}
    for i in range(n):
        axes = [figure.layout[f"{kind}axis{i + 1 if i else ''}"] for kind in "xy"]
        column = round(axes[0].domain[0], 3)
        if axes[1].domain[0] <= lowest.get(column, axes)[1].domain[0]:
            lowest[column] = axes
    for x, _ in lowest.values():
        assert x.title.text == "edges kept, %" and x.showticklabels is not False


def test_residual_graph_lines_start_and_end_at_their_nodes():
    w = graph_scores(0) * np.nan
    w.loc[{"source": "a0", "destination": "logits"}] = 2.0
    figure = figures.residual_graph(w)
    line, nodes = figure.data[0], figure.data[-1]
    place = {n: (x, y) for n, x, y in zip(nodes.text, nodes.x, nodes.y, strict=True)}
    assert (line.x[0], line.y[0]) == pytest.approx(place["a0"])
    assert (line.x[-2], line.y[-2]) == pytest.approx(place["logits"])
    depth = {name: y for name, (_, y) in place.items()}
    assert depth["input"] < depth["a0"] < depth["m0"] < depth["a1"] < depth["m2"] < depth["logits"]


def test_thousands_of_edges_stay_few_traces():
    figure = figures.residual_graph(graph_scores(0, "head", n_layers=8), graph_scores(1, "head", n_layers=8), k=3000)
    assert len(figure.data) == 21 and not figure.layout.shapes


def test_a_filter_may_leave_no_edge():
    w = graph_scores(0)
    for figure in (figures.residual_graph(w * np.nan), figures.residual_graph(w * np.nan, w * np.nan)):
        assert any(a.text == "no edge to show" for a in figure.layout.annotations)
    figures.adjacency(w * np.nan, w * np.nan)


# --- distributions and profiles ---


def test_size_distribution_counts_every_nonzero_edge_on_log_axes():
    w = graph_scores(0)
    w[0, 0, 0] = 0.0
    figure = figures.size_distribution({"base": w})
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    n_edges = int(w.notnull().sum())
    assert np.nansum(np.array(figure.data[0].y, float)) * n_edges == pytest.approx(n_edges - 1)
    assert "1 scores that are exactly zero" in figure.layout.title.subtitle.text


def test_layer_profile_averages_the_edges_of_each_layer():
    w = graph_scores(0, "qkv")
    figure = figures.layer_profile({"base": w})
    sizes = np.abs(w).mean("sample")
    leaving = {t.name: t for t in figure.data if t.xaxis == "x"}
    entering = {t.name: t for t in figure.data if t.xaxis == "x2"}
    assert leaving["base, MLP"].y[1] == pytest.approx(np.nanmean(sizes.sel(source="m1")))
    a2 = sizes.sel(destination=["a2<q>", "a2<k>", "a2<v>"])
    assert entering["base, attention"].y[2] == pytest.approx(np.nanmean(a2))


def test_source_profile_is_mean_size_and_output_edge_entropy():
    w = graph_scores(0)
    figure = figures.source_profile({"base": w})
    np.testing.assert_allclose(figure.data[0].y, np.abs(w).mean(["sample", "destination"]))
    np.testing.assert_allclose(figure.data[1].y, metrics.output_edge_entropy(w).mean("sample"))


def test_sample_scatter_pairs_by_problem():
    base, tuned = graph_scores(0), graph_scores(1)
    figure = figures.sample_scatter(base, tuned.isel(sample=[4, 2, 0, 1, 3]), "gini")
    dots = next(trace for trace in figure.data if trace.name == "problems")
    np.testing.assert_allclose(dots.x, metrics.gini(base))
    np.testing.assert_allclose(dots.y, metrics.gini(tuned))
    assert list(dots.text) == list(base.sample.values)


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_sample_scatter_shows_how_far_the_mean_moved(spread):
    """The means with the intervals that scipy's bootstrap finds, and the paired change with that of `compare`, on
    either kind of axes.
    """
    base = graph_scores(0, n=12)
    base = base * xr.DataArray(np.geomspace(1, spread, 12), dims="sample")
    tuned = base * 1.5
    figure = figures.sample_scatter(base, tuned)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == ("log" if spread > 20 else "linear")
    means = figure.data[-1]
    for scores, middle, bars in ((base, means.x[0], means.error_x), (tuned, means.y[0], means.error_y)):
        values = np.abs(scores).mean(["source", "destination"]).values
        found = stats.bootstrap(
            (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert middle == pytest.approx(values.mean())
        assert middle - bars.arrayminus[0] == pytest.approx(found.low, rel=0.15)
        assert middle + bars.array[0] == pytest.approx(found.high, rel=0.15)
    row = compare(base, tuned, ["activation_intensity"]).loc["activation_intensity"]
    assert f"{row['difference']:+.3g} [{row['low']:.3g}, {row['high']:.3g}]" in figure.layout.title.subtitle.text
    alone = figures.sample_scatter(base[:1], tuned[:1])
    assert [trace.name for trace in alone.data] == [
        "no change",
        "problems",
    ] and "[" not in alone.layout.title.subtitle.text


# --- comparisons ---


def test_forest_draws_difference_and_interval():
    base, tuned = graph_scores(0), graph_scores(1)
    table = compare(base, tuned, ["gini", "edge_entropy"], n_resamples=49)
    figure = figures.forest({"ppo": table, "sft-more": table}, nulls=["sft-more"])
    trace, row = figure.data[0], table.loc["gini"]
    assert list(trace.y) == ["ppo", "sft-more"] and trace.x[0] == row["difference"]
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(row["high"])
    assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(row["low"])
    assert trace.marker.color[0] != trace.marker.color[1] == figures.NEUTRAL
    relative = figures.forest({"ppo": table}, ["gini"], relative=True)
    assert relative.data[0].x[0] == pytest.approx(100 * row["difference"] / row["base"])
    assert "%" in relative.layout.xaxis.title.text


def test_forest_names_what_differs_from_zero():
    base = graph_scores(0, n=20)
    table = compare(base, 3 * base, ["activation_intensity", "gini"], n_resamples=99)
    alt = figures.forest({"ppo": table}).layout.meta["alt"]
    assert "activation intensity differs from 0 in: ppo" in alt and "Gini coefficient differs from 0 in: none" in alt


def test_training_curves_take_one_table_or_many():
    many = {"grpo": curve(accuracy=[0.5, 0.6, 0.9], kl=[0, 0.1, 0.2]), "sft": curve(accuracy=[0.5, 0.5, 0.5])}
    one = pd.concat([t.assign(member=m) for m, t in many.items()])
    for given in (many, one):
        figure = figures.training_curves(given)
        assert [t.name for t in figure.data] == ["grpo", "grpo", "sft"]  # sft has no KL
        assert list(figure.data[0].x) == [0, 8, 16] and list(figure.data[0].y) == [0.5, 0.6, 0.9]
        assert "grpo ends at greedy accuracy 0.9" in figure.layout.meta["alt"]


def test_ablation_scatter_states_scipys_rank_correlation_and_the_slope():
    w = graph_scores(0)
    exact = 0.7 * w + np.random.default_rng(1).normal(scale=1e-4, size=w.shape)
    exact[:, 0, 0] = np.nan  # an edge that was not ablated
    figure = figures.ablation_scatter(w, exact.isel(sample=[3, 1, 0, 2, 4]))
    both = np.isfinite(exact.values)
    x, y = w.values[both], exact.values[both]
    rank, slope = stats.spearmanr(x, y).statistic, np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]
    said = figure.layout.title.subtitle.text
    assert said.startswith(f"{both.sum()} edges; rank correlation {rank:.3f}, slope {slope:.3f};")
    drawn = figure.data[-1]
    np.testing.assert_allclose(np.sort(np.array(drawn.customdata)[:, 0]), np.sort(x))
    np.testing.assert_array_equal(np.argsort(drawn.x), np.argsort(np.array(drawn.customdata)[:, 0]))
    few = figures.ablation_scatter(w, exact, max_points=20)
    assert len(few.data[-1].x) == 20 and f"rank correlation {rank:.3f}" in few.layout.title.subtitle.text


def test_ablation_scatter_puts_each_value_at_its_tick_on_both_axes():
    w = graph_scores(0)
    w[:] = np.where(np.isfinite(w), 1e-6, np.nan)
    w[0, 0, 1:5] = [-1e-2, -1e-4, 1e-4, 1e-2]
    figure = figures.ablation_scatter(w, 100 * w)
    dots = figure.data[-1]
    for axis, values, side in (("xaxis", dots.x, 0), ("yaxis", dots.y, 1)):
        ticks = dict(zip(figure.layout[axis].ticktext, figure.layout[axis].tickvals, strict=True))
        at = {round(v, 9): place for v, place in zip(np.array(dots.customdata)[:, side], values, strict=True)}
        power = -2 if side == 0 else 0
        assert at[10.0**power] == pytest.approx(ticks[f"10<sup>{power}</sup>"])
        assert at[-(10.0**power)] == pytest.approx(ticks[f"−10<sup>{power}</sup>"]) and ticks["0"] == 0
    equal = figure.data[0]  # the dashed line joins equal values
    np.testing.assert_allclose(equal.x, equal.y)


def test_answer_tokens_shows_every_token_with_its_loss():
    tokens = [f"t{i}" for i in range(14)] + ["incomprehensibilities"]
    figure = figures.answer_tokens({"base": tokens, "ppo": ["1"]}, {"base": np.arange(15.0)}, per_row=4)
    trace = figure.data[0]
    shown = [c[1] for row in trace.customdata for c in row]
    assert shown[:15] == tokens and set(shown[15:]) == {""}
    assert [v for row in trace.text for v in row][14] == "incompre…"
    np.testing.assert_array_equal(np.array(trace.z, float).ravel()[:15], np.arange(15.0))


def test_dropped_by_rule_is_the_table():
    figure = figures.dropped_by_rule(dropped_table())
    bars = {t.name: t for t in figure.data}
    assert list(bars["dropped"].x) == [3, 1] and list(bars["left"].x) == [7, 6]
    assert list(bars["left"].y) == ["both correct", "length"]


# --- bad input ---


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda w: figures.size_distribution({}), "nothing to draw"),
        (lambda w: figures.size_distribution(w), "expected a dictionary"),
        (lambda w: figures.adjacency(w, sample="p/9"), "unknown problem 'p/9'.*did you mean"),
        (lambda w: figures.adjacency(w, w, names=("a", "a")), "two different names"),
        (lambda w: figures.adjacency(w, w.isel(sample=[0])), "only in base"),
        (lambda w: figures.residual_graph(w, k=0), "k is 0"),
        (lambda w: figures.sample_scatter(w, w, "information_complexity"), "unknown metric"),
        (lambda w: figures.forest({"a": compare(w, w, n_resamples=9)}, ["gin"]), "did you mean 'gini'"),
        (lambda w: figures.training_curves(curve(kl=[0, 0, 0])), "no column 'member'"),
        (lambda w: figures.training_curves({"a": curve(kl=[0, 0, 0])}, x="steps"), "did you mean 'step'"),
        (lambda w: figures.ablation_scatter(w, graph_scores(0, n_layers=2)), "same problems and graph"),
        (lambda w: figures.ablation_scatter(w, w * np.nan), "expected at least 2"),
        (lambda w: figures.answer_tokens({"a": ["1", "2"]}, {"a": [0.1]}), "2 tokens and 1 losses"),
        (lambda w: figures.dropped_by_rule(pd.DataFrame({"rule": []})), "no column 'dropped'"),
        (lambda w: figures.layer_profile({"a": evil_scores()}), "no nodes of a residual graph"),
    ],
)
def test_bad_input(draw, said):
    with pytest.raises(InputError, match=said):
        draw(graph_scores(0))


def test_weight_change_shows_each_module_at_its_layer():
    rows = [("grpo", layer, module, 0.1 * layer + (module == "b")) for layer in range(3) for module in "ab"]
    table = pd.DataFrame([*rows, ("grpo", -1, "lm_head", 9.0)], columns=["model", "layer", "module", "relative"])
    figure = figures.weight_change(table)
    (heat,) = figure.data
    shown = pd.DataFrame(heat.z, index=list(heat.y), columns=list(heat.x))
    assert shown.loc["b", "2"] == pytest.approx(1.2) and shown.loc["a", "1"] == pytest.approx(0.1)
    assert 9.0 not in shown.values
    with pytest.raises(InputError, match="lack relative"):
        figures.weight_change(table.drop(columns="relative"))


def test_cost_curves_show_each_case_against_tokens_and_layers():
    rows = [("floor", t, 4, t / 100) for t in (64, 256)] + [("block", t, 4, t / 50) for t in (64, 256)]
    rows += [(case, 256, n, n * cost) for case, cost in (("floor", 1), ("block", 2)) for n in (8, 16)]
    figure = figures.cost_curves(pd.DataFrame(rows, columns=["case", "tokens", "layers", "seconds"]))
    curves = {(t.name, t.xaxis): (list(t.x), list(t.y)) for t in figure.data}
    assert curves["block", "x"] == ([64, 256], [64 / 50, 256 / 50])
    assert curves["block", "x2"] == ([4, 8, 16], [256 / 50, 16, 32])
    with pytest.raises(InputError, match="lacks seconds"):
        figures.cost_curves(pd.DataFrame({"case": ["a"], "tokens": [1], "layers": [1]}))


def test_faithfulness_curves_show_the_signed_ranking_and_random_edges():
    share = [0.1, 0.5, 1.0]
    circuits = xr.Dataset(
        {
            "faithfulness": (("ranking", "share"), [[0.2, 0.7, 1.0], [0.1, 0.6, 1.0]]),
            "CPR": 0.65,
            "random_faithfulness_interval": (("bound", "share"), [[0.0, 0.2, 1.0], [0.3, 0.5, 1.0]]),
        },
        coords={"share": share, "ranking": ["signed", "absolute"], "seed": [0, 1], "edges": ("share", [3, 15, 30])},
    )
    figure = figures.faithfulness_curves({"EAP": circuits})
    band, curve = figure.data
    assert list(curve.x) == [10, 50, 100] and list(curve.y) == [0.2, 0.7, 1.0]
    assert list(band.y) == [0.3, 0.5, 1.0, 1.0, 0.2, 0.0]
    assert "EAP 0.65" in figure.layout.meta["alt"]
    with pytest.raises(InputError, match="no circuits"):
        figures.faithfulness_curves({})


def test_agreement_is_drawn_with_its_intervals_beside_a_random_ranking():
    rows = {
        ("EAP", "overlap"): (0.6, 0.5, 0.8),
        ("EAP", "CPR"): (np.nan, np.nan, np.nan),
        ("random", "overlap"): (0.02, np.nan, np.nan),
        ("random", "CPR"): (0.4, 0.3, 0.5),
    }
    index = pd.MultiIndex.from_tuples(rows, names=["method", "quantity"])
    table = pd.DataFrame(list(rows.values()), index=index, columns=["value", "low", "high"])
    figure = figures.agreement_intervals(table)
    (dots,) = figure.data
    assert list(dots.x) == [0.6] and list(dots.y) == ["EAP"]
    assert list(dots.error_x.array) == pytest.approx([0.2]) and list(dots.error_x.arrayminus) == pytest.approx([0.1])
    assert figure.layout.shapes[0].x0 == 0.02
    assert "EAP 0.60" in figure.layout.meta["alt"]
    with pytest.raises(InputError, match="quantity"):
        figures.agreement_intervals(table, ["CPR"])
    with pytest.raises(InputError, match="the table of rlcircuits.trust"):
        figures.agreement_intervals(table.reset_index())


def test_one_edge_is_scattered_with_its_means_and_intervals():
    base, tuned = graph_scores(0, n=40), graph_scores(1, n=40)
    figure = figures.edge_scatter(base, tuned, "a0->m1")
    _, dots, mean = figure.data
    x, y = (s.sel(source="a0", destination="m1").values for s in (base, tuned))
    np.testing.assert_array_equal(dots.customdata, np.stack([x, y], axis=-1))
    assert np.all(np.diff(np.array(dots.x)[np.argsort(x)]) > 0)  # the axis keeps the order
    base_mean, tuned_mean, low, high = mean.customdata[0][:4]
    assert base_mean == pytest.approx(x.mean()) and tuned_mean == pytest.approx(y.mean())
    expected = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=4000, random_state=1).confidence_interval
    assert high == pytest.approx(expected.high, abs=0.1 * x.std()) and low == pytest.approx(
        expected.low, abs=0.1 * x.std()
    )
    assert mean.error_x.array[0] > 0 and mean.error_x.arrayminus[0] > 0
    with pytest.raises(InputError, match="not an edge"):
        figures.edge_scatter(base, tuned, "m2->a0")


def test_a_drop_down_shows_one_problem_at_a_time():
    base, tuned = graph_scores(0), graph_scores(1)
    offered = {"mean of all problems": None, "p/0": "p/0", f"p/1: {EVIL}": "p/1"}
    graphs = {name: figures.residual_graph(base, tuned, 5, problem) for name, problem in offered.items()}
    figure = figures.choices(graphs)
    (menu,) = figure.layout.updatemenus
    assert [b.label for b in menu.buttons][:3] == ["mean of all problems", "p/0", f"p/1: {SAFE}"]
    one = figures.residual_graph(base, tuned, 5, "p/1")
    shown = [t for t, visible in zip(figure.data, menu.buttons[2].args[0]["visible"], strict=True) if visible]
    assert len(shown) == len(one.data)
    for found, expected in zip(shown, one.data, strict=True):
        np.testing.assert_array_equal(found.x, expected.x)
    assert [t.visible for t in figure.data] == menu.buttons[0].args[0]["visible"]


@pytest.mark.slow
def test_a_large_graph_stays_light():
    """32 layers of 32 heads: 1.6 million edges, of which a page gets the strongest, and heatmaps without heads."""
    scores = graph_scores(0, "head", n=1, n_layers=2)
    graph = Graph.build("head", 32, 32, 8)
    w = np.where(graph.mask, np.random.default_rng(0).laplace(size=(1, *graph.mask.shape)), np.nan).astype(np.float32)
    coords = {"sample": ["p/0"], "source": list(graph.sources), "destination": list(graph.destinations)}
    large = xr.DataArray(w, dims=metrics.DIMS, coords=coords, attrs=scores.attrs)
    figure = figures.graph_by_size(large, -large)
    assert graph.n_edges > 8e5 and len(figure.data) == 4 * 3 * 7 and len(figure.layout.sliders[0].steps) == 4
    assert sum(len(t.x) for t in figure.data) < 60_000 and not figure.layout.shapes
    assert len(figure.to_json()) < 4e6
    heat = figures.adjacency(large, -large)
    assert len(heat.to_json()) < 1e6 and "summed over the heads" in heat.layout.title.subtitle.text
    z = np.array(heat.data[0].z, float)
    layers = [
        [i for i, n in enumerate(names) if n.split("<")[0].split(".")[0] == "a3"]
        for names in (graph.sources, graph.destinations)
    ]
    into = [
        i
        for i in range(len(graph.destinations))
        if graph.destinations[i].startswith("a5.") and "<q>" in graph.destinations[i]
    ]
    at = list(heat.data[0].y).index("a3"), list(heat.data[0].x).index("a5&lt;q&gt;")
    assert z[at] == pytest.approx(w[0][np.ix_(layers[0], into)].sum(), rel=1e-4)
