"""The report: what its sentences say at the edges of what can be measured, and its page as a browser shows it."""

from __future__ import annotations

import html
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import rlcircuits as rc
from rlcircuits.answers import Answer, Problem, Selection
from rlcircuits.metrics import compare, edge_changes, influence, metric_intervals
from rlcircuits.reports import Findings, Report, Section, Table, Trusted, pair_report
from rlcircuits.reports.numbers import interval, number, p_value, percent, points
from tests.fixtures.browser import chromium
from tests.lab.test_explorer import EVIL, graph_scores

ORDER = ["accuracy", "loss", "divergence", "metrics", "edges", "shared", "influence", "trust", "problems", "tokens"]


def answers(right: list[bool], strict: list[bool] | None = None, text: str = "") -> list[Answer]:
    strict = right if strict is None else strict
    return [Answer(f"p/{i}", (1,), (2, 3, 4), text, r, True, s) for i, (r, s) in enumerate(zip(right, strict))]


def selection(n: int, cut: int = 2, alpha: float = 0.3) -> Selection:
    names = tuple(f"p/{i}" for i in range(n))
    dropped = pd.DataFrame({"rule": [EVIL], "dropped": [1], "left": [n], "detail": [EVIL]})
    columns = {"rule": [EVIL], "model": ["base"], "reason": ["wrong"], "problems": [1], "examples": [f"q: {EVIL}"]}
    traces = [rc.Trace(name, [1], [2, 3, 4]) for name in names]
    return Selection(names, 7.5, cut, dropped, traces, traces, alpha, pd.DataFrame(columns))


def trusted(rank: float = 0.7, sign: float = 0.9) -> Trusted:
    quantities = (
        "rank correlation of sizes",
        "rank correlation",
        "sign agreement",
        "median slope",
        "overlap",
        "stability of ranks",
    )
    index = pd.MultiIndex.from_product([["EAP", "random"], quantities], names=["method", "quantity"])
    table = pd.DataFrame({"value": [rank, 0.4, sign, 1.1, 0.5, 0.8] + [0.0] * 6}, index=index)
    return Trusted(table.assign(low=table["value"] - 0.2, high=table["value"] + 0.1), {"size": EVIL}, 60, 900, 5, "EAP")


def findings(n: int = 12, **changes) -> Findings:
    """Everything measured on `n` problems; a side's scores grow from base to tuned."""
    scores = {"base": graph_scores(0, n=n), "tuned": 3 * graph_scores(1, n=n)}
    table = compare(*scores.values(), n_resamples=99)
    index = pd.MultiIndex.from_product(
        [["tuned ‖ base", "base ‖ tuned"], ["base", "tuned"]], names=["direction", "answers of"]
    )
    losses = {s: {f"p/{i}": [0.1 * (i + 1), 0.2 + k, 0.3] for i in range(n)} for k, s in enumerate(scores)}
    crossed = pd.DataFrame(
        {
            "base": [0.3, 0.5],
            "tuned": [0.9, 0.2],
            "difference": [0.6, -0.3],
            "low": [0.5, -0.4],
            "high": [0.7, -0.2],
            "p": [0.01, 0.02],
        },
        index=pd.Index(["base", "tuned"], name="answers of"),
    )
    given = {
        "name": EVIL,
        "models": {"base": f"before {EVIL}", "tuned": "after"},
        "method": "GRPO",
        "problems": {f"p/{i}": Problem(f"p/{i}", f"how many? {EVIL}", "1") for i in range(n)},
        "answers": {"base": answers([i % 2 == 0 for i in range(n)]), "tuned": answers([True] * n)},
        "selection": selection(n),
        "reasons": selection(n).reasons,
        "scores": scores,
        "losses": losses,
        "comparison": table,
        "edges": edge_changes(*scores.values()),
        "influence": influence(*scores.values()),
        "divergence": pd.DataFrame(
            {"value": [0.1, 0.2, 0.3, 0.4], "low": 0.05, "high": 0.5, "largest": 2.0}, index=index
        ),
        "crossed": crossed,
        "shared": {"base": table, "tuned": table},
        "trust": {"base": trusted(), "tuned": trusted(0.3)},
        "tokenizer": SimpleNamespace(decode=lambda ids, **_: f" t{ids[0]} {EVIL}"),
        "settings": {"level": "block", "prompt": EVIL},
    }
    return Findings(**{**given, **changes})


def alone(n: int = 12, **changes) -> Findings:
    whole = findings(n)
    scores = whole.scores["base"]
    return findings(
        n,
        **{
            "models": {"base": "only"}, "answers": {"base": whole.answers["base"]}, "scores": {"base": scores},
            "losses": {"base": whole.losses["base"]}, "comparison": None, "single": metric_intervals(scores), "divergence": None,
            "edges": edge_changes(scores), "influence": influence(scores), "crossed": None, "shared": {}, "trust": {"base": trusted()},
            **changes,
        },
    )  # fmt: skip


def all_words(report: Report) -> str:
    """Everything that the report says outside its tables of numbers."""
    said = [report.title, *report.short]
    for section in report.sections:
        said += [section.answer, section.detail, section.says, section.needs]
    return "\n".join(said)


def test_questions_come_in_their_order_each_with_what_it_needs():
    report = pair_report(findings())
    assert [section.name for section in report.sections] == ORDER
    assert all(section.question and section.answer and section.says and section.needs for section in report.sections)
    assert [section.holds for section in report.sections].count(None) == 0
    assert report["accuracy"].answer == "50\u00a0% → 100\u00a0% right" and "50.0 points" in report["accuracy"].detail
    assert report["divergence"].answer == "0.2 nats"
    assert report["problems"].answer == "12 of 12 kept"
    with pytest.raises(rc.InputError, match="did you mean 'edges'"):
        report["edge"]


def test_the_numbers_are_those_that_were_measured():
    found = findings()
    report = pair_report(found)
    row = found.comparison.loc["activation_intensity"]
    assert f"× {number(row['ratio'])}" in report["metrics"].answer
    top = found.edges.iloc[0]
    assert (
        f"{found.edges.index[0]} " in report["edges"].detail
        and number(abs(top["difference"])) in report["edges"].detail
    )
    assert report["edges"].answer == f"{found.edges.attrs['differ']:,} of {found.edges.attrs['edges']:,}"
    shown = {table.caption: table.shown() for table in report["metrics"].tables}
    assert sum(map(len, shown.values())) == 12
    losses = report["loss"].tables[0].data
    assert losses.loc["scored tokens", "base"] == pytest.approx(np.mean([(0.1 * (i + 1) + 0.2) / 2 for i in range(12)]))
    assert losses.loc["whole answers", "tuned"] == pytest.approx(
        np.mean([(0.1 * (i + 1) + 1.2 + 0.3) / 3 for i in range(12)])
    )
    influence = report["influence"]
    assert found.influence.loc["activation_intensity", "problem"] in influence.detail


@pytest.mark.parametrize(
    ("changes", "name", "holds", "says"),
    [
        ({"answers": {"base": answers([True] * 20), "tuned": answers([True] * 20, [False] * 20)}}, "accuracy", False, "the form of the answers has changed"),
        ({"answers": {"base": answers([True] * 4), "tuned": answers([False] * 4)}}, "accuracy", False, "4 problems tell changes of about"),
        ({"losses": {"base": {f"p/{i}": [0.001] * 3 for i in range(12)}, "tuned": {f"p/{i}": [1.0] * 3 for i in range(12)}}}, "loss", False, "the smaller one is 0.001"),
        ({"comparison": compare(graph_scores(0, n=12), graph_scores(0, n=12), n_resamples=99)}, "metrics", False, "none of 12 metrics is shown to differ"),
        ({"edges": edge_changes(graph_scores(0, n=12), graph_scores(0, n=12))}, "edges", False, "No single edge of"),
        ({"edges": edge_changes(graph_scores(0, n=4), graph_scores(1, n=4))}, "edges", False, "smallest possible p is 0.12"),
        ({"shared": {"base": compare(graph_scores(0, n=12), graph_scores(0, n=12), n_resamples=99)} | {"tuned": findings().comparison}}, "shared", False, "may be the words"),
        ({}, "shared", True, "not only other words"),
        ({"trust": {"base": trusted(0.9), "tuned": trusted(0.8)}}, "trust", True, "0.9 and 0.8"),
        ({}, "trust", False, "rlcircuits.exact_metrics"),
        ({"selection": selection(12, cut=1)}, "tokens", False, "1 token holds"),
        ({"selection": selection(12, cut=5)}, "tokens", True, "The first 5 tokens"),
        ({"selection": selection(3)}, "problems", False, "here are 3"),
    ],
)  # fmt: skip
def test_what_a_number_needs_is_held_against_what_there_is(changes, name, holds, says):
    section = pair_report(findings(**changes))[name]
    assert section.holds is holds, section.needs
    assert says in f"{section.says} {section.needs}"


def test_one_large_problem_is_named():
    base, tuned = graph_scores(0, n=12), graph_scores(1, n=12)
    tuned[7] = tuned[7] * 500
    section = pair_report(findings(influence=influence(base, tuned)))["influence"]
    assert section.holds is False and section.detail.startswith("p/7: without it ×") and "share 9" in section.answer


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("make", [findings, alone])
def test_few_problems_make_no_nonsense(make, n):
    with np.errstate(all="ignore"):
        report = pair_report(make(n))
    words = all_words(report)
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b|\(\)|  | ,|\[\]|\{", words), words
    assert "1 problems" not in words and "1 tokens" not in words and "1 metrics" not in words
    page = re.sub(r"<style>.*?</style>", "", report.html(), flags=re.DOTALL)
    assert not re.search(r">\s*(nan|None|inf)\s*<", page)
    assert report["problems"].holds is False


def test_one_problem_has_no_intervals_and_says_so():
    report = pair_report(findings(1))
    assert "one problem allows no interval and no test" in report["metrics"].says
    assert "inter-sample diversity" in report["metrics"].says
    assert "one problem is all there is" in report["influence"].says
    assert report["metrics"].bar is None and report["edges"].bar is None


def test_scores_that_are_all_zero_make_no_nonsense():
    zero = 0 * graph_scores(0, n=12)
    for scores in ({"base": zero, "tuned": graph_scores(1, n=12)}, {"base": zero, "tuned": zero}):
        table = compare(*scores.values(), n_resamples=99)
        changes = {
            "scores": scores,
            "comparison": table,
            "edges": edge_changes(*scores.values()),
            "influence": influence(*scores.values()),
        }
        report = pair_report(findings(**changes, shared={"base": table, "tuned": table}))
        assert not re.search(r"\bnan\b|\binf\b|× –|∞", all_words(report)), all_words(report)
    assert (
        report["metrics"].answer == "intensity 0 → 0"
        and "No problem changes activation intensity" in report["influence"].says
    )


def test_one_model_alone():
    report = pair_report(alone())
    assert [section.name for section in report.sections] == [
        name for name in ORDER if name not in ("divergence", "shared")
    ]
    words = all_words(report)
    assert "tuned" not in words and "Before and after" not in words and report.title.startswith("One model")
    assert "tuned" not in report["edges"].tables[0].data and "score" in report["edges"].tables[0].data
    assert report["metrics"].tables[0].shown()["95 % interval"].iloc[0].startswith("[")


def test_no_problem_kept():
    found = Findings(
        "own",
        {"base": "b", "tuned": "t"},
        "other",
        {},
        {"base": answers([True]), "tuned": answers([False])},
        None,
        selection(1).reasons,
    )
    report = pair_report(found)
    assert [section.name for section in report.sections] == ORDER
    assert [s.name for s in report.sections if s.standing != "not measured"] == ["accuracy", "problems"]
    assert "No problem is left to compare on" in report.short[1] and report["problems"].answer == "0 of 1 kept"
    assert "no problem is kept" in report["trust"].says


def test_what_was_switched_off_or_cannot_be_had_says_why():
    report = pair_report(
        findings(divergence=None, crossed=None, shared={}, trust={}, absent={"trust": "it was switched off"})
    )
    assert report["trust"].detail == "it was switched off" and report["trust"].holds is None
    assert "not asked for" in report["divergence"].says
    losses_only = pair_report(findings(shared={}, absent={"shared": "it was switched off"}))["shared"]
    assert losses_only.holds is None and "it was switched off" in losses_only.needs and len(losses_only.tables) == 1


def test_scored_tokens_are_marked_and_long_answers_cut_off():
    chosen = selection(2, cut=2)
    long = [rc.Trace(t.problem, t.prompt, list(range(2, 402))) for t in chosen.base_traces]
    chosen = Selection(chosen.problems, 400.0, 2, chosen.dropped, long, long, 0.005, chosen.reasons)
    first = pair_report(findings(2, selection=chosen))["tokens"].tokens[0]
    assert [scored for _, scored, _ in first.pieces] == [True, True] + [False] * 158 and first.more == 240
    assert first.pieces[0][0].startswith(" t2") and first.pieces[0][2] == pytest.approx(0.1)
    assert math.isnan(first.pieces[9][2])


@pytest.mark.parametrize("make", [findings, alone])
def test_all_that_others_wrote_is_escaped(make):
    report = pair_report(make())
    for text in (report.html(), report._repr_html_()):
        assert "<script" not in text and html.escape("<script>") in text
        assert "http" not in re.sub(r"xmlns\S+", "", text)


def test_the_same_report_gives_the_same_bytes(tmp_path):
    paths = [pair_report(findings()).save(tmp_path / name) for name in ("a.html", "b.html")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(rc.InputError):
        pair_report(findings()).save(tmp_path / "a.html" / "b.html")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (number(0.00008123), "8.12e−05"), (number(math.nan), "–"), (number(-math.inf), "−∞"), (number(25600.4), "25,600"),
        (percent(0.443), "44\u00a0%"), (percent(math.nan), "–"), (points(0.0831), "+8.3"), (points(-0.5), "−50.0"),
        (interval(math.nan, 1.0), ""), (interval(-0.25, 1.0), "[−0.25,\u00a01]"), (p_value(0.0001), "p < .001"),
        (p_value(0.049), "p = .049"), (p_value(1.0), "p = 1"), (p_value(math.nan), ""),
    ],
)  # fmt: skip
def test_numbers_as_text(said, wanted):
    assert said == wanted


def test_a_table_shows_one_column_for_an_interval_and_percent_for_shares():
    data = pd.DataFrame(
        {"share": [0.5, math.nan], "low": [0.25, math.nan], "high": [0.75, math.nan], "n": [3, 1]},
        index=pd.Index(["a", "b"], name="x"),
    )
    shown = Table("t", data, ("share", "low", "high")).shown()
    assert shown.columns.tolist() == ["x", "share", "95 % interval", "n"]
    assert shown.iloc[0].tolist() == ["a", "50.0\u00a0%", "[25,\u00a075]", "3"] and shown.iloc[1].tolist() == [
        "b",
        "–",
        "",
        "1",
    ]


def test_the_bar_of_a_tile_keeps_value_interval_and_null_in_order():
    from rlcircuits.metrics import Interval

    section = Section("a", "A", "A?", "1", "", "", "", True, (Interval(2.0, 1.0, 4.0), 0.0))
    bar = section.bar
    assert 0 <= bar["null"] < bar["low"] < bar["value"] < bar["low"] + bar["width"] <= 100
    assert Section("a", "A", "A?", "1", "", "", "", True, (Interval(2.0, math.nan, 4.0), 0.0)).bar is None


@pytest.mark.browser
def test_the_first_screen_answers_every_question_and_a_phone_needs_no_scrolling_sideways(tmp_path):
    page = pair_report(findings()).save(tmp_path / "report.html")
    with chromium(tmp_path / "profile") as chrome:
        for dark in ("light", "dark"):
            chrome.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": dark}]}
            )
            for width in (1280, 375):
                size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
                chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                chrome.get(page.as_uri())
                assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
                tiles = chrome.execute_script(
                    "return [...document.querySelectorAll('.rlr-tile')].map(t => t.getBoundingClientRect().bottom)"
                )
                assert len(tiles) == 10 and (width < 600 or max(tiles) <= 800)
            colour = "return getComputedStyle(document.body).backgroundColor"
            assert (chrome.execute_script(colour) == "rgb(255, 255, 255)") is (dark == "light")
        links = chrome.execute_script(
            "return [...document.querySelectorAll('a')].map(a => document.querySelector(a.getAttribute('href')) !== null)"
        )
        assert links and all(links)
        assert not [line for line in chrome.get_log("browser") if line["level"] == "SEVERE"]
        asked = [e["message"] for e in chrome.get_log("performance") if "Network.requestWillBeSent" in e["message"]]
        assert not [message for message in asked if re.search(r'"url":"(?!file:|data:|about:)', message)]
