"""Reports: what was measured of a pair, or of one model, as one object with tables and one page of HTML."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
