"""Scores and circuits in other tools' files, and scores read back.

1. **EAP-IG** (``.json``, and ``.pt`` with its tensors), which MIB's circuit localisation track reads too. Its graph is
   of heads: level ``"head"`` alone fits. Names are the same but for grouped-query attention: it copies keys and values
       for every query head, so
   that a key/value head K of ours, ``a3.kvK<k>``, is the readers ``a3.hH<k>`` of the query heads H that share it, each
   with an equal part of its score. Read back, their scores add up to it; an edge is in the circuit when it is for any
   of them. Its scores have our sign when its metric is a loss: positive where the replacement would raise it.
2. **GraphML** (``.graphml``), for networkx, Gephi, Cytoscape; every level. A node is a writer, a reader, or at block
   level both; from a reader that is a part of an attention (``a3.h2<q>``, ``a3.kv1<k>``) an edge of kind ``part`` leads
   to the writers it acts through, so that paths run from input to logits. What is scored is of kind ``score``.
3. **Attribution-graph JSON**, as circuit-tracer's viewer reads it (``format="circuit-tracer"``); every level. Its
   columns are tokens: with scores by group (`rlcircuits.attribute` with ``groups``) a column is a group, since an edge
       connects equal positions; else there is one.
   Queries, keys and values are one node there, so their scores are added, key/value heads' in equal parts to the query
   heads. What does not fit: its features of transcoders, their activations and examples, and probabilities of logits.

Scores are means over samples. What is no edge has no entry (in EAP-IG's tensors it is 0).
Sources, read for the formats: github.com/hannamw/EAP-IG (``src/eap/graph.py``),
github.com/safety-research/circuit-tracer (``circuit_tracer/frontend``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from rlcircuits.attribution.graph import Graph
from rlcircuits.errors import InputError, choose
from rlcircuits.metrics import edge_values
from rlcircuits.storage import written

FORMATS = {"eap-ig": (".json", ".pt"), "graphml": (".graphml",), "circuit-tracer": (".json",)}

_NODE = re.compile(
    r"(?P<kind>input|logits|a|m)(?P<layer>\d*)(?:\.(?P<head>h|kv)(?P<number>\d+))?(?:<(?P<part>[qkv])>)?"
)


def write_graph(
    scores: xr.DataArray,
    file: str | os.PathLike[str],
    circuit: xr.DataArray | None = None,
    format: str | None = None,
    d_model: int | None = None,
) -> None:
    """Write scores, and the circuit of their strongest edges, for another tool.

    Args:
        scores: from `rlcircuits.attribute`; by group only for ``"circuit-tracer"``.
        file: a name that ends as the format's does; it is there whole or not at all.
        circuit: from `rlcircuits.circuit`; None: no edge of EAP-IG's is in its circuit, other files hold all edges.
            GraphML and attribution graphs hold the circuit's edges alone.
        format: one of `FORMATS`; by default the first that the name's end fits.
        d_model: the model's width, which EAP-IG's graphs state; by default what the scores say.

    Raises:
        InputError: unusable scores or circuit, an unknown format or another ending, or scores that the format has no
            place for.
        StoreError: the file cannot be written.
    """
    format = _format(file, format)
    graph = _graph(scores)
    kept = graph.mask if circuit is None else _kept(circuit, graph)
    if format == "circuit-tracer":
        _write_json(_attribution_graph(scores, graph, kept, Path(file).stem), file)
        return
    if "group" in scores.dims:
        raise InputError(f"the format {format!r} has no place for scores by group: choose one with scores.sel(group=…)")
    mean = np.full(graph.mask.shape, np.nan)
    mean[graph.mask] = edge_values(scores).mean(0)
    if format == "graphml":
        _write_graphml(graph, mean, kept, file)
        return
    if graph.level != "head":
        raise InputError(
            f"EAP-IG's graphs are of heads, these scores of level {graph.level!r}: give scores of level='head'"
        )
    width = d_model or scores.attrs.get("d_model")
    if width is None:
        raise InputError("the scores do not say how wide their model is, which EAP-IG's graphs do: give d_model")
    contents = _eap_ig(graph, mean, kept if circuit is not None else np.zeros_like(kept), int(width))
    if Path(file).suffix == ".json":
        _write_json(_eap_ig_json(*contents), file)
    else:
        _write_tensors(*contents, file)


def read_graph(file: str | os.PathLike[str], n_kv_heads: int | None = None) -> xr.Dataset:
    """Read a graph that EAP-IG wrote as JSON.

    Args:
        file: the ``.json`` file.
        n_kv_heads: how many key/value heads the model has in each layer; as many as query heads when None.

    Returns:
        Dataset over ``sample`` (one, the name of the file), ``source`` and ``destination`` at level ``"head"``:
        ``score``, NaN where there is no edge, which everything takes that takes scores; and ``circuit`` (source,
        destination), which edges are in EAP-IG's circuit.

    Raises:
        InputError: no such file, or none of EAP-IG's; edges or sizes that do not fit (naming the edge).
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no graph at {os.fspath(file)!r}: expected a JSON file that EAP-IG wrote")
    try:
        found = json.loads(path.read_text("utf-8"))
        config, edges = found["cfg"], found["edges"]
        sizes = config["n_layers"], config["n_heads"]
        parallel = bool(config["parallel_attn_mlp"])
        values = {name: (float(edge["score"]), bool(edge["in_graph"])) for name, edge in edges.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{os.fspath(file)!r} is no graph of EAP-IG ({type(error).__name__}: {error}): expected JSON with 'cfg', "
            "'nodes' and 'edges'"
        ) from error
    if not all(type(size) is int for size in sizes):
        raise InputError(f"{os.fspath(file)!r} has {list(sizes)} layers and heads: expected whole numbers")
    graph = Graph.build("head", *sizes, n_kv_heads, parallel)
    copies = _copies(graph)
    score, circuit = np.where(graph.mask, 0.0, np.nan), np.zeros(graph.mask.shape, bool)
    for s, d in np.argwhere(graph.mask):
        for reader in copies[d]:
            name = f"{graph.sources[s]}->{reader}"
            if name not in values:
                raise InputError(f"{os.fspath(file)!r} has no edge {name!r}, which its configuration asks for")
            one, within = values.pop(name)
            score[s, d] += one
            circuit[s, d] |= within
    if values:
        raise InputError(
            f"{os.fspath(file)!r} has the edge {next(iter(values))!r}, which its configuration has no place for"
        )
    nodes = {"source": list(graph.sources), "destination": list(graph.destinations)}
    attrs = {"level": "head", "method": "EAP-IG's file", "d_model": config.get("d_model", 0)}
    result = xr.Dataset(
        {
            "score": (("sample", "source", "destination"), score[None], attrs),
            "circuit": (("source", "destination"), circuit, {"edges": int(circuit.sum()), "level": "head"}),
        },
        {"sample": [path.stem], **nodes},
    )
    edge_values(result["score"])  # refuses what is not finite
    return result


def _format(file: str | os.PathLike[str], format: str | None) -> str:
    suffix = Path(file).suffix
    fits = [name for name, suffixes in FORMATS.items() if suffix in suffixes]
    if format is not None:
        choose("format", format, FORMATS)
    if not fits or format not in (None, *fits):
        ends = sorted({end for ends in FORMATS.values() for end in ends} if format is None else FORMATS[format])
        raise InputError(
            f"cannot write a graph to {os.fspath(file)!r}: expected a name that ends in {' or '.join(ends)}"
        )
    return format or fits[0]


def _graph(scores: xr.DataArray) -> Graph:
    """The graph that scores are of, found from their names.

    Raises:
        InputError: the names are of no graph.
    """
    one = scores.isel(group=0) if isinstance(scores, xr.DataArray) and "group" in scores.dims else scores
    edge_values(one)  # its checks
    mask = ~np.isnan(one.transpose("sample", "source", "destination").values[0])
    sources, destinations = ([str(name) for name in one[dim].values] for dim in ("source", "destination"))

    def count(pattern: str) -> int:
        return len([name for name in destinations if re.fullmatch(pattern, name)])

    heads, layers = count(r"a0\.h\d+<q>"), count(r"m\d+")
    level = "head" if heads else "qkv" if count(r"a0<q>") else "block"
    for parallel in (False, True):
        graph = Graph.build(level, max(layers, 1), heads or 1, count(r"a0\.kv\d+<k>") or None, parallel)
        if (sources, destinations) == (list(graph.sources), list(graph.destinations)) and (graph.mask == mask).all():
            return graph
    raise InputError(
        f"scores of {len(sources)} sources and {len(destinations)} destinations are of no whole graph: expected those "
        "of rlcircuits.attribute"
    )


def _kept(circuit: xr.DataArray, graph: Graph) -> np.ndarray:
    names = [("source", graph.sources), ("destination", graph.destinations)]
    if (
        not isinstance(circuit, xr.DataArray)
        or set(circuit.dims) != {"source", "destination"}
        or any([str(name) for name in circuit[dim].values] != list(nodes) for dim, nodes in names)
    ):
        raise InputError("the circuit is not of the scores' graph: expected what rlcircuits.circuit gives for them")
    return circuit.transpose("source", "destination").values.astype(bool) & graph.mask


def _copies(graph: Graph) -> list[list[str]]:
    """For every destination, the readers that a tool with one key and value per query head has in its place."""
    size = graph.n_heads // graph.n_kv_heads
    found = []
    for name in graph.destinations:
        layer, dot, head = name.partition(".kv")
        number, _, part = head.partition("<")
        first = int(number) * size if dot else 0
        found.append([f"{layer}.h{h}<{part}" for h in range(first, first + size)] if dot else [name])
    return found


# --- EAP-IG ---------------------------------------------------------------------------------------


def _eap_ig(
    graph: Graph, mean: np.ndarray, kept: np.ndarray, width: int
) -> tuple[dict[str, Any], Graph, np.ndarray, np.ndarray]:
    """Its configuration, the graph with keys and values of each query head, and scores and circuit there."""
    config = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": width,
    }
    # Our key/value columns lie in the order of their heads, as the copies do: q of every head, then k, then v, then the
    # MLP.
    full = Graph.build("head", graph.n_layers, graph.n_heads, graph.n_heads, graph.parallel)
    copies = _copies(graph)
    of = np.repeat(np.arange(len(copies)), [len(readers) for readers in copies])
    shared = np.array([len(readers) for readers in copies])
    return config, full, (mean / shared)[:, of], kept[:, of]


def _eap_ig_names(full: Graph) -> list[str]:
    return [name.replace(".kv", ".h") for name in full.destinations]


def _nodes_in(full: Graph, kept: np.ndarray) -> np.ndarray:
    """Which sources the circuit reaches and leaves, ``(source,)``, as EAP-IG counts them; the input need not be
    reached.
    """
    reached = {
        re.sub(r"<.>", "", name) for name, any_ in zip(_eap_ig_names(full), np.any(kept, axis=0).tolist()) if any_
    } | {"input"}
    return kept.any(1) & np.array([name in reached for name in full.sources])


def _eap_ig_json(config: dict[str, Any], full: Graph, score: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    names, nodes = _eap_ig_names(full), zip(full.sources, _nodes_in(full, kept))
    edges = {
        f"{full.sources[s]}->{names[d]}": {"score": float(score[s, d]), "in_graph": bool(kept[s, d])}
        for s, d in np.argwhere(full.mask)
    }
    inside = {name: {"in_graph": bool(within)} for name, within in nodes}
    return {"cfg": config, "nodes": {**inside, "logits": {"in_graph": True}}, "edges": edges}


def _write_tensors(
    config: dict[str, Any], full: Graph, score: np.ndarray, kept: np.ndarray, file: str | os.PathLike[str]
) -> None:
    import torch

    contents = {
        "cfg": config,
        "src_nodes": list(full.sources),
        "dst_nodes": _eap_ig_names(full),
        "edges_scores": torch.from_numpy(np.nan_to_num(score)).to(torch.float32),
        "edges_in_graph": torch.from_numpy(kept),
        "nodes_in_graph": torch.from_numpy(_nodes_in(full, kept)),
    }
    with written(file) as temporary:
        torch.save(contents, temporary)


# --- GraphML --------------------------------------------------------------------------------------


def _parts(graph: Graph) -> Iterator[tuple[str, str]]:
    """From each reader that is a part of an attention to the writers that it acts through."""
    for name, readers in zip(graph.destinations, _copies(graph)):
        if "<" in name:
            yield from ((name, reader.partition("<")[0]) for reader in readers)


def _write_graphml(graph: Graph, mean: np.ndarray, kept: np.ndarray, file: str | os.PathLike[str]) -> None:
    import networkx as nx

    drawn = nx.DiGraph(level=graph.level, unit="nats")
    for name in dict.fromkeys((*graph.sources, *graph.destinations)):
        match = _NODE.fullmatch(name)
        kinds = {"a": "attention", "m": "mlp"}
        layer = {"input": -1, "logits": graph.n_layers}.get(name) if not match["layer"] else int(match["layer"])
        drawn.add_node(name, kind=kinds.get(match["kind"], match["kind"]), layer=layer)
    drawn.add_edges_from(_parts(graph), kind="part")
    for s, d in np.argwhere(kept):
        drawn.add_edge(graph.sources[s], graph.destinations[d], kind="score", score=float(mean[s, d]))
    with written(file) as temporary:
        nx.write_graphml(drawn, temporary)


# --- circuit-tracer -------------------------------------------------------------------------------


def _attribution_graph(scores: xr.DataArray, graph: Graph, kept: np.ndarray, slug: str) -> dict[str, Any]:
    """Nodes and links by column, as the viewer's data."""
    columns = [str(name) for name in scores["group"].values] if "group" in scores.dims else ["all tokens"]
    grouped = scores if "group" in scores.dims else scores.expand_dims("group")
    mean = grouped.transpose("group", "sample", "source", "destination").values.astype(np.float64).mean(1)
    copies, nodes = _copies(graph), {}
    links: dict[tuple, float] = {}
    for column in range(len(columns)):
        for name in dict.fromkeys((*graph.sources, "logits")):
            nodes[column, name] = _viewer_node(graph, name, column)
        for s, d in np.argwhere(kept):
            for reader in copies[d]:
                ends = (column, graph.sources[s]), (column, reader.partition("<")[0])
                links[ends] = links.get(ends, 0.0) + mean[column, s, d] / len(copies[d])
    return {
        "metadata": {
            "slug": slug,
            "scan": "rlcircuits",
            "transcoder_list": [],
            # The viewer leaves out what occurs in more than two thirds of the columns: a lone column needs another
            # beside it.
            "prompt_tokens": columns if len(columns) > 1 else [*columns, ""],
            "prompt": " ".join(columns),
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": [
            {"source": nodes[a]["node_id"], "target": nodes[b]["node_id"], "weight": float(weight)}
            for (a, b), weight in links.items()
        ],
    }


def _viewer_node(graph: Graph, name: str, column: int) -> dict[str, Any]:
    """One node: attention heads are features 0 … H − 1 of their layer, the MLP is feature H."""
    match = _NODE.fullmatch(name)
    feature = {"input": column, "logits": 0, "m": graph.n_heads}.get(match["kind"], int(match["number"] or 0))
    layer = {"input": "E", "logits": str(graph.n_layers + 1)}.get(match["kind"], match["layer"])
    kind = {"input": "embedding", "logits": "logit"}.get(match["kind"], "cross layer transcoder")
    identity = f"{layer}_{feature}_{column}"
    return {
        "node_id": identity,
        "jsNodeId": f"{layer}_{feature}-{column}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": column,
        "feature_type": kind,
        "token_prob": 1.0 if kind == "logit" else 0.0,
        "is_target_logit": kind == "logit",
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": 'Output "loss" (p=1.000)' if kind == "logit" else name,
        "influence": None,
        "activation": None,
    }


def _write_json(content: dict[str, Any], file: str | os.PathLike[str]) -> None:
    with written(file) as temporary:
        temporary.write_text(json.dumps(content), "utf-8")
