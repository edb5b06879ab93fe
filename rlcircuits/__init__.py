"""rlcircuits: see what reinforcement-learning fine-tuning does inside a language model.

Load a pair of models, attribute each one's answers to the edges of its residual graph, compare.
Every name below is imported when it is first used, so that ``import rlcircuits`` is immediate.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "errors": ("InputError",),
    "traces": ("Trace",),
    "graph": ("Graph",),
    "models": ("Model", "ModelPair", "check_pair", "load_model", "pair", "pairs"),
    "weights": ("weight_change",),
    "inventory": ("pair_table",),
    "published": ("papers_table",),
    "estimate": ("Estimate",),
    "attribution": ("attribute", "token_losses"),
    "ablation": ("ablate",),
    "circuits": ("circuit", "faithfulness"),
    "metrics": (
        "METRICS",
        "activation_intensity",
        "distribution_kurtosis",
        "edge_entropy",
        "effective_edges",
        "gini",
        "information_complexity",
        "inter_sample_diversity",
        "l_kurtosis",
        "log_histogram_entropy",
        "output_edge_entropy",
        "participation_ratio",
        "summary",
        "top_share",
    ),
    "inference": ("compare", "holm"),
    "problems": ("Problem", "ProblemSet", "grade", "load_problems", "problem_set"),
    "problem_sets": ("check_problems",),
    "answers": ("Answer", "Selection", "generate", "select"),
    "interchange": ("read_answers", "write_answers"),
    "store": ("Store", "load_scores", "save_scores"),
    "pipeline": ("PairStudy", "Study", "generate_pair", "study"),
    "family": ("checkpoints", "family_pairs", "family_problems", "load_curves", "make_families", "make_family"),
    "explorer": ("explore",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        value = getattr(importlib.import_module(f"rlcircuits.{_MODULE[name]}"), name)
        globals()[name] = value
        if "xarray" in sys.modules:  # scores are xarray's, with edges by name as `scores.rlc`
            importlib.import_module("rlcircuits.rich").register_accessor()
        return value
    raise AttributeError(f"module 'rlcircuits' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _in_ipython() -> None:
    """Within IPython or Jupyter, results show themselves as tables."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        importlib.import_module("rlcircuits.rich").register(shell)


_in_ipython()
