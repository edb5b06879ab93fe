"""Models and pairs of models: loading, checking, cost, and how far their weights are apart."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
