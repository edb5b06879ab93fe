"""The model family: one supervised base and its descendants, trained on the spot on short word problems.

1. `task`: the problems, their tokenizer and grader. 2. `recipe`: every hyper-parameter. 3. `sft`, `rft`, `grpo`, `dpo`
(TRL), `ppo` and `online_dpo` (ours) each turn one checkpoint into another. 4. `curves` measures a policy while it trains.
5. `member` trains one member, `train` all of them through the store.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "task": ("family_problems",),
    "recipe": ("BASES", "CORE", "DEFAULT", "MEMBERS", "SECOND", "TINY", "Recipe"),
    "curves": ("checkpoints", "load_curves"),
    "train": ("family_pairs", "make_families", "make_family"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        value = getattr(importlib.import_module(f"rlcircuits.family.{_MODULE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rlcircuits.family' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
