"""The graph against the counts of the paper's formulas, and against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcircuits import Graph, InputError


@given(layers=st.integers(1, 12), kv=st.integers(1, 4), group=st.integers(1, 4))
def test_edge_counts(layers, kv, group):
    heads, L = kv * group, layers
    assert Graph.build("block", L, heads, kv).n_edges == 2 * L**2 + 3 * L + 1
    assert Graph.build("qkv", L, heads, kv).n_edges == 4 * L**2 + 3 * L + 1
    per_layer = ((1 + layer * (heads + 1)) * (heads + 2 * kv) + (1 + layer * (heads + 1) + heads) for layer in range(L))
    assert Graph.build("head", L, heads, kv).n_edges == sum(per_layer) + 1 + L * (heads + 1)


@given(layers=st.integers(1, 6), level=st.sampled_from(["block", "qkv", "head"]), parallel=st.booleans())
def test_edges_by_brute_force(layers, level, parallel):
    graph = Graph.build(level, layers, 4, 2, parallel=parallel)

    def when(name, reading):
        if name in ("input", "logits"):
            return -1 if name == "input" else 10**6
        layer = int("".join(c for c in name[1:].split(".")[0].split("<")[0]))
        second = name[0] == "m" and not (reading and parallel)
        return 2 * layer + second

    for s, source in enumerate(graph.sources):
        for d, destination in enumerate(graph.destinations):
            same = source[0] == destination[0] and when(source, False) == when(destination, True)
            expected = when(source, False) < when(destination, True) and not same
            assert graph.mask[s, d] == expected, (source, destination)


def test_names_of_a_small_graph():
    assert Graph.build("block", 1).edge_names() == [
        "input->a0",
        "input->m0",
        "input->logits",
        "a0->m0",
        "a0->logits",
        "m0->logits",
    ]
    graph = Graph.build("head", 2, 4, 2)
    assert graph.destinations[:9] == (
        *(f"a0.h{h}<q>" for h in range(4)),
        "a0.kv0<k>",
        "a0.kv1<k>",
        "a0.kv0<v>",
        "a0.kv1<v>",
        "m0",
    )
    s, d = graph.edge("a0.h3->a1.kv1<v>")
    assert (graph.sources[s], graph.destinations[d]) == ("a0.h3", "a1.kv1<v>")
    assert [graph.edge(name) for name in graph.edge_names()] == list(zip(*(x.tolist() for x in graph.mask.nonzero())))


def test_a_large_graph_is_immediate_and_read_only():
    graph = Graph.build("head", 32, 32, 8)
    assert graph.n_edges > 800_000
    with pytest.raises(ValueError):
        graph.mask[0, 0] = False


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Graph.build("heads", 2), "did you mean 'head'"),
        (lambda: Graph.build("block", 0), "at least 1"),
        (lambda: Graph.build("head", 2, 6, 4), "multiple"),
        (lambda: Graph.build("block", 2).edge("a0"), "has no arrow"),
        (lambda: Graph.build("block", 2).edge("a0->a0"), "is not an edge"),
        (lambda: Graph.build("block", 2).edge("a0->n1"), "unknown destination 'n1'"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(InputError, match=says):
        make()
