"""Exact effects at a price one can pay: estimated from a sample of re-runs, with intervals, beside first-order
scores.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
