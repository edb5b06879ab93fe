"""rlcircuits: see what reinforcement-learning fine-tuning does inside a language model.

Load a pair of models, attribute each one's answers to the edges of its residual graph, compare.
The public names stand in ``__init__.pyi``, here as in every room below; each is imported when it is first used, so that
``import rlcircuits`` is immediate.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    value = _public(name)
    if "xarray" in sys.modules:  # scores are xarray's, with edges by name as `scores.rlc`
        importlib.import_module("rlcircuits.lab.rich").register_accessor()
    return value


def _in_ipython() -> None:
    """Within IPython or Jupyter, results show themselves as tables."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        importlib.import_module("rlcircuits.lab.rich").register(shell)


_in_ipython()
