"""An edge removed little by little, in the model by hand, whose losses are known on paper."""

from __future__ import annotations

import json
import math
import re

import pytest

from rlcircuits.errors import InputError
from rlcircuits.lessons import by_hand, removal_html, removal_losses
from rlcircuits.lessons import figures as lesson_figures


@pytest.fixture(scope="module")
def losses():
    return removal_losses(by_hand.llama(), by_hand.TRACE, ["a0->m1", "m1->logits"], [0, 0.25, 1])


def test_losses_are_those_on_paper(losses):
    assert losses.dims == ("edge", "share", "token") and losses.shape == (2, 3, 1)
    assert losses.sel(share=0).values.ravel() == pytest.approx([math.log(2)] * 2)
    # Without a0, m1 writes nothing, and the last stream is (1, 7); without m1 it is the same.
    assert losses.sel(share=1).values.ravel() == pytest.approx([math.log1p(math.exp(6 / 5))] * 2)
    # A quarter of m1's (6, 0) leaves (5.5, 7).
    assert float(losses.sel(edge="m1->logits", share=0.25)[0]) == pytest.approx(
        math.log1p(math.exp(1.5 / math.sqrt((5.5**2 + 7**2) / 2)))
    )
    assert losses.score.values == pytest.approx([-51 / 175, 3 / 7])


def test_the_figure_holds_the_numbers_and_no_markup_of_tokens(losses):
    evil = "</script><b>"
    page = removal_html(losses, [evil], "it", "See.")
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert data["tokens"] == [evil] and data["edges"] == ["a0->m1", "m1->logits"] and data["shares"] == [0, 0.25, 1]
    assert data["losses"][0][2] == [pytest.approx(1.463, abs=1e-3)] and page.count("</script>") == 1
    assert "<b>" not in page and "a0-&gt;m1" in page
    assert re.findall(r"<td>([\d.]+)</td>", page)[:3] == ["0.69", "0.62", "1.5"]


def test_what_does_not_fit_is_refused(losses):
    model = by_hand.llama()
    for edges, shares in (([], [0.5]), (["a0->m1"], [2.0])):
        with pytest.raises(InputError, match="at least one edge, and shares from 0 to 1"):
            removal_losses(model, by_hand.TRACE, edges, shares)
    with pytest.raises(InputError, match="2 tokens and losses of 1"):
        removal_html(losses, ["a", "b"], "it", "")


def test_scored_tokens_are_coloured_and_markup_is_text():
    figure = lesson_figures.scored_tokens(["20", "<b>", "4"], [0.1, 0.2, 0.3], {"α = 0.1": 1, "α = 1": 3})
    losses, cells = figure.data
    assert list(losses.y) == [0.1, 0.2, 0.3] and losses.text[1] == "&lt;b&gt;"
    assert cells.z.tolist() == [[1, 0, 0], [1, 1, 1]] and list(cells.y) == ["α = 0.1", "α = 1"]
    assert "α = 0.1: 20; α = 1: 20 <b> 4" in figure.layout.meta["alt"]
    for tokens, given, cuts in (([], [], {"α": 1}), (["a"], [0.1, 0.2], {"α": 1}), (["a"], [0.1], {})):
        with pytest.raises(InputError, match="a loss for each, and at least one cut"):
            lesson_figures.scored_tokens(tokens, given, cuts)
