"""Where a Hugging Face model writes to and reads from its residual stream.

1. Its modules are found through TransformerLens' adapters (`rlcircuits.attribution.reading`).
2. The answer is then checked on the model itself, once (`rlcircuits.attribution.checking`). A model for which it fails
   is refused by name, never scored wrongly.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from rlcircuits.attribution.checking import check
from rlcircuits.attribution.layers import Parts
from rlcircuits.attribution.reading import plain, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KNOWN: weakref.WeakKeyDictionary[nn.Module, Architecture] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Architecture(Parts):
    """The modules of a causal language model at which its residual stream is written and read; see `Parts`.

    Attributes:
        refused: levels that this model does not support, with the reason.
    """

    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Architecture:
        """Read (once per model object) and check the architecture of `model`.

        Raises:
            InputError: not a causal language model, unknown to TransformerLens, or a stream that does not add up.
        """
        hf = plain(model)
        if hf not in _KNOWN:
            with _evaluating(hf):
                parts = read(hf)
                parallel, refused = check(parts, hf)
            _KNOWN[hf] = cls(**{**vars(parts), "parallel": parallel}, refused=refused)
        return _KNOWN[hf]


@contextlib.contextmanager
def _evaluating(hf: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside, each module as it was afterwards."""
    training = [module for module in hf.modules() if module.training]
    try:
        hf.eval()
        yield
    finally:
        for module in training:
            module.training = True
