"""The experiment made with rlcircuits: one base, every paradigm trained from it, and what the paper claims, judged.

`family` trains the models, `study` measures and judges them, `paper` holds what was published. The public names stand
in ``__init__.pyi``.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
