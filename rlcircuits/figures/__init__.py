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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
