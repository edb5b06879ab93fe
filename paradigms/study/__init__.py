"""The controlled study: measured effects beside nulls, verdicts, tables, words and figures."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
