"""Others' formats: against files written by hand in their form, round trips, and readers that share no code with the
writers.
"""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr

import rlcircuits as rc
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT
from tests.fixtures.models import tiny

NODES = ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
READERS = [f"a{layer}.h{head}<{part}>" for layer in (0, 1) for part in "qkv" for head in (0, 1)]
READERS = [*READERS[:6], "m0", *READERS[6:], "m1", "logits"]


def scores_of(level="head", n_kv_heads=1, samples=2, parallel=False, seed=0):
    """Random scores on a graph of two layers and two heads."""
    graph = rc.Graph.build(level, 2, 2, n_kv_heads, parallel)
    values = np.random.default_rng(seed).normal(size=(samples, *graph.mask.shape))
    return xr.DataArray(
        np.where(graph.mask, values, np.nan),
        dims=("sample", "source", "destination"),
        coords={
            "sample": [f"p{i}" for i in range(samples)],
            "source": list(graph.sources),
            "destination": list(graph.destinations),
        },
        attrs={"level": level, "d_model": 6},
    )


def written_by_hand(parallel=False):
    """A graph as EAP-IG's `to_json` forms it; each edge's score tells which edge it is."""
    config = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": parallel, "d_model": 6}
    written = {name: 2 * int(name[1]) + (1 if name[0] == "a" else 2) for name in NODES[1:]} | {"input": 0}
    edges = {}
    for s, source in enumerate(NODES):
        for d, reader in enumerate(READERS):
            reads = 5 if reader == "logits" else 2 * int(reader[1]) + (1 if reader[0] == "a" or parallel else 2)
            if written[source] < reads:
                edges[f"{source}->{reader}"] = {"score": float(100 * s + d), "in_graph": d % 3 == 0}
    nodes = {name: {"in_graph": True} for name in [*NODES, "logits"]}
    return {"cfg": config, "nodes": nodes, "edges": edges}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_graph_of_eap_ig_is_read_by_name(tmp_path, parallel):
    graph = written_by_hand(parallel)
    (tmp_path / "ioi.json").write_text(json.dumps(graph))
    found = rc.read_graph(tmp_path / "ioi.json")
    assert found.sample.values.tolist() == ["ioi"]
    assert int(np.isfinite(found.score).sum()) == len(graph["edges"])
    for name, edge in graph["edges"].items():
        source, reader = name.split("->")
        reader = reader.replace(".h", ".kv") if reader[-3:] in ("<k>", "<v>") else reader
        assert float(found.score.sel(source=source, destination=reader)[0]) == edge["score"]
        assert bool(found.circuit.sel(source=source, destination=reader)) == edge["in_graph"]


def test_shared_keys_and_values_add_up(tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(written_by_hand()))
    found = rc.read_graph(tmp_path / "g.json", n_kv_heads=1)
    apart = rc.read_graph(tmp_path / "g.json")
    for part in "kv":
        one = found.sel(destination=f"a1.kv0<{part}>")
        two = apart.sel(destination=[f"a1.kv0<{part}>", f"a1.kv1<{part}>"])
        xr.testing.assert_allclose(one.score.drop_vars("destination"), two.score.sum("destination", skipna=False))
        np.testing.assert_array_equal(one.circuit, two.circuit.any("destination"))


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@pytest.mark.parametrize("parallel", [False, True])
def test_scores_and_circuit_come_back_from_eap_igs_json(tmp_path, n_kv_heads, parallel):
    scores = scores_of(n_kv_heads=n_kv_heads, parallel=parallel)
    circuit = rc.circuit(scores, 12)
    rc.write_graph(scores, tmp_path / "g.json", circuit)
    found = rc.read_graph(tmp_path / "g.json", n_kv_heads)
    np.testing.assert_allclose(found.score[0], scores.mean("sample", skipna=False), rtol=1e-12)
    np.testing.assert_array_equal(found.circuit, circuit)
    assert rc.activation_intensity(found.score) > 0
    np.testing.assert_array_equal(rc.circuit(found.score, 12), circuit)


def test_the_json_has_eap_igs_names_and_its_idea_of_nodes(tmp_path):
    scores = scores_of()
    circuit = xr.zeros_like(scores[0], dtype=bool)
    circuit.loc["input", "a0.kv0<v>"] = True  # reaches both query heads
    circuit.loc["a0.h1", "logits"] = True
    circuit.loc["m1", "logits"] = True  # nothing reaches m1
    rc.write_graph(scores, tmp_path / "g.json", circuit)
    found, expected = json.loads((tmp_path / "g.json").read_text()), written_by_hand()
    assert found["cfg"] == expected["cfg"]
    assert set(found["edges"]) == set(expected["edges"]) and set(found["nodes"]) == set(expected["nodes"])
    assert {name for name, edge in found["edges"].items() if edge["in_graph"]} == {
        "input->a0.h0<v>", "input->a0.h1<v>", "a0.h1->logits", "m1->logits",
    }  # fmt: skip
    assert {name for name, node in found["nodes"].items() if node["in_graph"]} == {"input", "a0.h1", "logits"}
    halves = [found["edges"][f"input->a1.h{h}<k>"]["score"] for h in (0, 1)]
    whole = float(scores.sel(source="input", destination="a1.kv0<k>").mean())
    assert halves == pytest.approx([whole / 2] * 2)


def test_tensors_are_in_eap_igs_order(tmp_path):
    scores = scores_of()
    circuit = rc.circuit(scores, 5)
    rc.write_graph(scores, tmp_path / "g.json", circuit)
    rc.write_graph(scores, tmp_path / "g.pt", circuit)
    graph, tensors = json.loads((tmp_path / "g.json").read_text()), torch.load(tmp_path / "g.pt")
    assert tensors["cfg"] == graph["cfg"]
    assert tensors["src_nodes"] == NODES and tensors["dst_nodes"] == READERS
    assert tensors["edges_scores"].shape == tensors["edges_in_graph"].shape == (len(NODES), len(READERS))
    assert tensors["edges_scores"].dtype == torch.float32 and tensors["edges_in_graph"].dtype == torch.bool
    for s, source in enumerate(NODES):
        for d, reader in enumerate(READERS):
            edge = graph["edges"].get(f"{source}->{reader}", {"score": 0.0, "in_graph": False})
            assert float(tensors["edges_scores"][s, d]) == pytest.approx(edge["score"], rel=1e-6)
            assert bool(tensors["edges_in_graph"][s, d]) == edge["in_graph"]
    inside = [graph["nodes"][name]["in_graph"] for name in NODES]
    assert tensors["nodes_in_graph"].tolist() == inside


@pytest.mark.parametrize("level", LEVELS)
def test_graphml_holds_every_edge_and_paths_lead_from_input_to_logits(tmp_path, level):
    scores = scores_of(level)
    rc.write_graph(scores, tmp_path / "g.graphml")
    found = nx.read_graphml(tmp_path / "g.graphml")
    scored = {(a, b): edge["score"] for a, b, edge in found.edges(data=True) if edge["kind"] == "score"}
    mean = scores.mean("sample", skipna=False)
    assert len(scored) == int(np.isfinite(mean).sum())
    for (source, destination), score in scored.items():
        assert score == pytest.approx(float(mean.sel(source=source, destination=destination)), rel=1e-12)
    assert nx.is_directed_acyclic_graph(found)
    longest = nx.dag_longest_path(found)
    assert longest[0] == "input" and longest[-1] == "logits"
    assert {name for name in longest if "<" not in name and "." not in name} >= {"m0", "m1"}
    assert found.nodes["m1"] == {"kind": "mlp", "layer": 1}


def test_graphml_of_a_circuit_holds_its_edges_alone(tmp_path):
    scores = scores_of("block")
    rc.write_graph(scores, tmp_path / "g.graphml", rc.circuit(scores, 4))
    found = nx.read_graphml(tmp_path / "g.graphml")
    kept = rc.circuit(scores, 4)
    assert {(a, b) for a, b, edge in found.edges(data=True) if edge["kind"] == "score"} == {
        (str(s), str(d))
        for s in kept.source.values
        for d in kept.destination.values
        if kept.sel(source=s, destination=d)
    }


@pytest.mark.parametrize("level", LEVELS)
def test_an_attribution_graph_has_what_the_viewer_reads(tmp_path, level):
    hf, labels = tiny("llama", torch.float32, layers=2), ["p"] * 5 + ["w"] * 4
    scores = rc.attribute(hf, [rc.Trace("x", PROMPT, ANSWER)], level, groups=[labels]).astype(np.float64)
    rc.write_graph(scores, tmp_path / "graph.json", format="circuit-tracer")
    found = json.loads((tmp_path / "graph.json").read_text())
    assert set(found) == {"metadata", "qParams", "nodes", "links"}
    assert found["metadata"]["slug"] == "graph" and found["metadata"]["prompt_tokens"] == ["p", "w"]
    nodes = {node["node_id"]: node for node in found["nodes"]}
    assert len(nodes) == len(found["nodes"]) == 2 * (scores.sizes["source"] + 1)
    identities = {(node["layer"], node["feature"], node["ctx_idx"]) for node in nodes.values()}
    assert len(identities) == len(nodes)  # the viewer's own identity of a node
    for node in nodes.values():
        if node["feature_type"] == "logit":
            float(node["clerp"].split("(p=")[1].split(")")[0])  # what the viewer does with it
        assert node["layer"] == "E" or int(node["layer"]) >= 0
    total = {"p": 0.0, "w": 0.0}
    for link in found["links"]:
        ends = nodes[link["source"]], nodes[link["target"]]
        assert ends[0]["ctx_idx"] == ends[1]["ctx_idx"]
        total["pw"[ends[0]["ctx_idx"]]] += link["weight"]
    for name, weight in total.items():
        assert weight == pytest.approx(float(scores.sel(group=name).sum()), rel=1e-9, abs=1e-9)
    output = {id_ for id_, node in nodes.items() if node["feature_type"] == "logit" and node["ctx_idx"] == 1}
    into = sum(link["weight"] for link in found["links"] if link["target"] in output)
    assert into == pytest.approx(float(scores.sel(group="w", destination="logits").sum()), rel=1e-9)


def test_the_viewer_is_given_a_second_column_lest_it_drop_the_only_one(tmp_path):
    rc.write_graph(scores_of("block"), tmp_path / "g.json", format="circuit-tracer")
    found = json.loads((tmp_path / "g.json").read_text())
    assert len(found["metadata"]["prompt_tokens"]) * 2 / 3 >= 1
    assert {node["ctx_idx"] for node in found["nodes"]} == {0}


def test_scores_of_a_model_say_how_wide_it_is(tmp_path):
    hf = tiny("llama", torch.float32, layers=2)
    scores = rc.attribute(hf, [rc.Trace("x", PROMPT, ANSWER)], "head")
    rc.write_graph(scores, tmp_path / "g.json")
    assert json.loads((tmp_path / "g.json").read_text())["cfg"] == {
        "n_layers": 2,
        "n_heads": 4,
        "parallel_attn_mlp": False,
        "d_model": 32,
    }
    found = rc.read_graph(tmp_path / "g.json", n_kv_heads=2)
    np.testing.assert_allclose(found.score.values, scores.values, rtol=1e-6)


def _with(change):
    graph = written_by_hand()
    change(graph)
    return json.dumps(graph)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no graph of EAP-IG"),
        ("[]", "is no graph of EAP-IG"),
        (_with(lambda g: g.pop("cfg")), "is no graph of EAP-IG"),
        (_with(lambda g: g["edges"].pop("m0->logits")), "has no edge 'm0->logits'"),
        (_with(lambda g: g["edges"].update({"m1->m0": {"score": 1, "in_graph": True}})), "the edge 'm1->m0'"),
        (_with(lambda g: g["edges"]["m0->m1"].update(score=float("inf"))), "expected a finite score"),
        (_with(lambda g: g["cfg"].update(n_heads=2.5)), "expected whole numbers"),
        (_with(lambda g: g["cfg"].update(n_layers=0)), "at least 1"),
    ],
)
def test_a_file_that_is_no_graph_is_one_clear_message(tmp_path, text, says):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(rc.InputError, match=says):
        rc.read_graph(tmp_path / "g.json")


def test_what_cannot_be_written_is_one_clear_message(tmp_path):
    head, block = scores_of(), scores_of("block")
    grouped = block.expand_dims(group=["a"])
    for says, call in (
        ("ends in .graphml or .json or .pt", lambda: rc.write_graph(head, tmp_path / "g.txt")),
        ("ends in .graphml", lambda: rc.write_graph(head, tmp_path / "g.json", format="graphml")),
        ("did you mean 'graphml'", lambda: rc.write_graph(head, tmp_path / "g.json", format="graphm")),
        ("give scores of level='head'", lambda: rc.write_graph(block, tmp_path / "g.json")),
        ("give d_model", lambda: rc.write_graph(head.assign_attrs(d_model=None), tmp_path / "g.json")),
        ("of no whole graph", lambda: rc.write_graph(head.isel(source=slice(3)), tmp_path / "g.graphml")),
        ("not of the scores' graph", lambda: rc.write_graph(head, tmp_path / "g.pt", rc.circuit(block, 2))),
        ("by group", lambda: rc.write_graph(grouped, tmp_path / "g.graphml")),
        ("no graph at", lambda: rc.read_graph(tmp_path / "none.json")),
    ):
        with pytest.raises(rc.InputError, match=says):
            call()
    assert list(tmp_path.iterdir()) == []
