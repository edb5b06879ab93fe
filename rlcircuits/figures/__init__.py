"""Figures: from scores and tables to plotly figures of one theme.

1. Each function takes data (scores, a table, or a dictionary from a model's name to either) and returns a
   figure; none computes results or writes files.
2. Colours are Okabe and Ito's, told apart by colour-blind readers; models also differ in dash and symbol.
   Signed scores go from blue (below zero) over white to vermilion (above), centred on zero, and reach to the
   98th percentile of |score|, so that one edge does not bleach the others; hovering shows the exact value.
3. A title asks the figure's question unless `title` states its finding; ``figure.layout.meta["alt"]``
   describes the figure in plain text for readers who do not see it (escape it when it goes into a page).
4. Names, tokens and answers come from models: `as_text` makes plotly show them as they are, never as markup
   or TeX.

Scores are in nats: by how much the loss would rise, to first order, without the edge.
"""

from __future__ import annotations

from rlcircuits.figures.answers import answer_tokens, dropped_by_rule
from rlcircuits.figures.comparisons import forest
from rlcircuits.figures.exactness import ablation_scatter, cost_curves, faithfulness_curves
from rlcircuits.figures.graph import (
    NODE,
    adjacency,
    edge_curves,
    has_heads,
    node_of,
    node_places,
    paired_shown,
    panels_of,
    residual_graph,
    robust_range,
    what_is_shown,
)
from rlcircuits.figures.interactive import choices, graph_by_problem, graph_by_size
from rlcircuits.figures.profiles import (
    edge_scatter,
    layer_profile,
    sample_scatter,
    size_distribution,
    source_profile,
)
from rlcircuits.figures.theme import (
    DASHES,
    DIVERGING,
    NEGATIVE,
    NEUTRAL,
    NO_EDGE,
    PALETTE,
    POSITIVE,
    SEQUENTIAL,
    SYMBOLS,
    THEME,
    Scores,
    SignedLog,
    as_text,
)
from rlcircuits.figures.training import CURVE_UNITS, training_curves, weight_change

__all__ = [
    "CURVE_UNITS",
    "DASHES",
    "DIVERGING",
    "NEGATIVE",
    "NEUTRAL",
    "NODE",
    "NO_EDGE",
    "PALETTE",
    "POSITIVE",
    "SEQUENTIAL",
    "SYMBOLS",
    "THEME",
    "Scores",
    "SignedLog",
    "ablation_scatter",
    "adjacency",
    "answer_tokens",
    "as_text",
    "choices",
    "cost_curves",
    "dropped_by_rule",
    "edge_curves",
    "edge_scatter",
    "faithfulness_curves",
    "forest",
    "graph_by_problem",
    "graph_by_size",
    "has_heads",
    "layer_profile",
    "node_of",
    "node_places",
    "paired_shown",
    "panels_of",
    "residual_graph",
    "robust_range",
    "sample_scatter",
    "size_distribution",
    "source_profile",
    "training_curves",
    "weight_change",
    "what_is_shown",
]
