"""The residual graph: what writes to the residual stream, what reads it, and every edge between.

1. A decoder of L layers adds one attention output and one MLP output per layer to a stream that starts as the token
   embedding. What writes is a **source**, what reads is a **destination** (its input is the stream *before* its norm).
2. Every source written before a destination reads has an **edge** to it. With parallel branches (GPT-NeoX) the MLP
   reads the same stream as the attention beside it, so ``aL->mL`` is not an edge.
3. The level fixes how finely the attention is split: ``block`` (one node), ``qkv`` (queries, keys and values read
   separately), ``head`` (one source per head; one reader per query head and per key/value head).

Edges are entries of one boolean matrix; no object is made per edge, so 1.6 million of them cost nothing.
Source: arXiv 2509.21044, section 3 (`block`); Syed et al. 2023 and Hanna et al. 2024 for the finer levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rlcircuits.errors import InputError, choose

LEVELS = ("block", "qkv", "head")


@dataclass(frozen=True, eq=False)
class Graph:
    """Sources, destinations and the edges between them.

    Attributes:
        level: ``"block"``, ``"qkv"`` or ``"head"``.
        n_layers: number of layers L.
        n_heads: query heads H per layer.
        n_kv_heads: key/value heads K per layer.
        parallel: attention and MLP of a layer read the same stream.
        sources: names of the writers, in the order they write, e.g. ``("input", "a0", "m0", …)``.
        destinations: names of the readers, in the order they read, e.g. ``("a0", "m0", …, "logits")``.
        mask: bool ``(source, destination)``, True where there is an edge.
    """

    level: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    mask: np.ndarray

    @classmethod
    def build(
        cls, level: str, n_layers: int, n_heads: int = 1, n_kv_heads: int | None = None, parallel: bool = False
    ) -> Graph:
        """The graph of an architecture given by its sizes.

        >>> Graph.build("block", 2).n_edges          # 2 L² + 3 L + 1
        15

        Raises:
            InputError: unknown level, sizes below 1, or query heads that are no multiple of key/value heads.
        """
        choose("level", level, LEVELS)
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(n_layers, n_heads, n_kv_heads) < 1 or n_heads % n_kv_heads:
            raise InputError(
                f"cannot build a graph of {n_layers} layers, {n_heads} query heads and {n_kv_heads} key/value heads: "
                "all must be at least 1 and query heads a multiple of key/value heads"
            )
        sources, written = ["input"], [0]
        destinations, reads = [], []
        # Within layer l, the attention acts at time 2l+1 and the MLP at 2l+2; an edge needs written < read.
        for layer in range(n_layers):
            attention, mlp = 2 * layer + 1, 2 * layer + 2
            heads = [f"a{layer}.h{h}" for h in range(n_heads)] if level == "head" else [f"a{layer}"]
            sources += [*heads, f"m{layer}"]
            written += [attention] * len(heads) + [mlp]
            readers = {
                "block": [f"a{layer}"],
                "qkv": [f"a{layer}<{x}>" for x in "qkv"],
                "head": [f"a{layer}.h{h}<q>" for h in range(n_heads)]
                + [f"a{layer}.kv{h}<{x}>" for x in "kv" for h in range(n_kv_heads)],
            }[level]
            destinations += [*readers, f"m{layer}"]
            reads += [attention] * len(readers) + [attention if parallel else mlp]
        destinations.append("logits")
        reads.append(2 * n_layers + 1)
        mask = np.array(written)[:, None] < np.array(reads)[None, :]
        mask.setflags(write=False)
        return cls(level, n_layers, n_heads, n_kv_heads, parallel, tuple(sources), tuple(destinations), mask)

    @classmethod
    def of(cls, model: Any, level: str = "block") -> Graph:
        """The graph of a loaded model (an `rlcircuits.Model` or a plain Hugging Face causal language model).

        Raises:
            InputError: an unknown level, one that the architecture does not support (with the reason), or a residual
                stream that cannot be read.
        """
        from rlcircuits.attribution.architecture import (
            Architecture,
        )  # needs torch, which the names of the levels do not

        choose("level", level, LEVELS)
        architecture = Architecture.of(model)
        if level in architecture.refused:
            finest = next(one for one in reversed(LEVELS) if one not in architecture.refused)
            raise InputError(
                f"{architecture.name} is not supported at level {level!r}: {architecture.refused[level]}; use "
                f"level={finest!r}"
            )
        sizes = len(architecture.layers), architecture.n_heads, architecture.n_kv_heads
        return cls.build(level, *sizes, architecture.parallel)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.mask.sum())

    @cached_property
    def _index(self) -> tuple[dict[str, int], dict[str, int]]:
        return ({name: i for i, name in enumerate(self.sources)}, {name: i for i, name in enumerate(self.destinations)})

    def edge(self, name: str) -> tuple[int, int]:
        """Row and column of an edge named ``"source->destination"``, e.g. ``"a0->m1"``.

        Raises:
            InputError: no such source, destination or edge.
        """
        source, arrow, destination = str(name).partition("->")
        if not arrow:
            raise InputError(f"edge {name!r} has no arrow: expected 'source->destination', e.g. 'input->logits'")
        choose("source", source.strip(), self.sources)
        choose("destination", destination.strip(), self.destinations)
        s, d = self._index[0][source.strip()], self._index[1][destination.strip()]
        if not self.mask[s, d]:
            raise InputError(
                f"{name!r} is not an edge: {destination.strip()} reads the stream before {source.strip()} writes to it"
            )
        return s, d

    def edge_names(self) -> list[str]:
        """All edges as ``"source->destination"``, row by row (the order of ``mask.nonzero()``)."""
        return [f"{self.sources[s]}->{self.destinations[d]}" for s, d in zip(*self.mask.nonzero())]

    def __repr__(self) -> str:
        kv = f" ({self.n_kv_heads} kv)" if self.n_kv_heads != self.n_heads else ""
        return (
            f"Graph(level={self.level!r}, {self.n_layers} layers × {self.n_heads}{kv} heads: "
            f"{len(self.sources)} sources, {len(self.destinations)} destinations, {self.n_edges:,} edges)"
        )
