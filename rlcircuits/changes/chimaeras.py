"""A model with some of its parts' weights taken from another one.

1. The **parts** of a model of L layers: ``embeddings`` (all before the first layer, the output embedding too where the two
   are one matrix), ``a0`` … (each layer's attention with its norms), ``m0`` … (its MLP with its norms) and ``head`` (the
   final norm and the output embedding): 2L + 2, and every weight is in exactly one.
2. A **chimaera** is the base with the weights of a set of parts taken from the tuned model. No part makes it the base, all
   make it the tuned model, to the bit.
3. Weights are not copied: the base's parameters are given the tuned model's memory for a while. An adapter's
   W + (α / r) B A is made when a part that it changes is taken, so that of such a pair the base alone is loaded.
4. On the way out the base has its own weights again, whatever happened.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rlcircuits.attribution import Architecture, plain
from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: by name of a weight, what takes the base's to the tuned model's
Weights = Mapping[str, Callable[["Tensor"], "Tensor"]]
EMBEDDINGS, HEAD = "embeddings", "head"
_RANGE = re.compile(r"l(?P<first>\d+)(?:-l?(?P<last>\d+))?")


def parts_of(model: Any) -> dict[str, tuple[str, ...]]:
    """The names of the weights of each part, in the order in which a run comes by them.

    Args:
        model: as for `rlcircuits.attribute`.
    """
    hf = plain(model)
    architecture = Architecture.of(hf)
    names = {id(module): name for name, module in hf.named_modules()}
    layers = [(names[id(layer.block)], _attention(layer, names)) for layer in architecture.layers]
    found: dict[str, list[str]] = {EMBEDDINGS: []}
    for index in range(len(layers)):
        found |= {f"a{index}": [], f"m{index}": []}
    found[HEAD] = []
    output = hf.get_output_embeddings()
    after = (names[id(architecture.norm_final.module)], names[id(output)])
    for weight in _weights(hf):
        inside = next((i for i, (block, _) in enumerate(layers) if _within(weight, block)), None)
        if inside is not None:
            found[f"{'a' if any(_within(weight, one) for one in layers[inside][1]) else 'm'}{inside}"].append(weight)
        else:
            found[HEAD if any(_within(weight, one) for one in after) else EMBEDDINGS].append(weight)
    return {part: tuple(weights) for part, weights in found.items()}


def _attention(layer: Any, names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[id(one)] for one in (layer.attention, layer.attention_reader, layer.attention_out))


def _within(weight: str, module: str) -> bool:
    return weight.startswith(f"{module}.")


def _weights(hf: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, and buffers that are saved with them, each once."""
    saved = hf.state_dict()
    buffers = {name: one for name, one in hf.named_buffers() if name in saved}
    return {**dict(hf.named_parameters()), **buffers}


def weights_of(tuned: Any, base: Any) -> Weights:
    """A whole model's weights as they take the place of the base's.

    Raises:
        InputError: the two do not have the same weights, or hold them otherwise.
    """
    before, after = _weights(plain(base)), _weights(plain(tuned))
    if different := sorted(before.keys() ^ after.keys()):
        which = "base" if different[0] in before else "tuned model"
        raise InputError(
            f"only the {which} has a weight {different[0]!r}: parts can be exchanged between models that hold the same "
            "weights; does one of them tie its output embedding to the input's?"
        )
    for name, one in before.items():
        ours, theirs = (
            (str(w.dtype).removeprefix("torch."), tuple(w.shape), str(w.device)) for w in (one, after[name])
        )
        if ours != theirs:
            raise InputError(
                f"{name!r} is {ours[0]} {ours[1]} on {ours[2]} in the base and {theirs[0]} {theirs[1]} on {theirs[2]} in "
                "the tuned model: load both with the same dtype and device"
            )
    return {name: _given(one.data) for name, one in after.items()}


def _given(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: weight


class Chimaera:
    """The base, while some of its weights are the tuned model's; made by `chimaera`.

    Attributes:
        hf: the base.
        parts: `parts_of` it.
        weights: its weights by name.
        taken: the parts whose weights are the tuned model's now.
    """

    def __init__(self, base: Any, tuned: Weights) -> None:
        self.hf, self.parts = plain(base), parts_of(base)
        self.taken: frozenset[str] = frozenset()
        self.weights, self._there = _weights(self.hf), tuned
        self._own: dict[str, Tensor] = {}

    def take(self, parts: frozenset[str]) -> None:
        """Let just these parts have the tuned model's weights."""
        for part in self.taken - parts:
            for name in self.parts[part]:
                if name in self._own:
                    self.weights[name].data = self._own.pop(name)
        for part in parts - self.taken:
            for name in self.parts[part]:
                if name in self._there:
                    self._own[name] = self.weights[name].data
                    self.weights[name].data = self._there[name](self._own[name])
        self.taken = parts

    def restore(self) -> None:
        """Give the base all of its own weights again, even those of a change that was broken off."""
        for name, weight in self._own.items():
            self.weights[name].data = weight
        self._own.clear()
        self.taken = frozenset()


@contextlib.contextmanager
def chimaera(base: Any, tuned: Weights) -> Iterator[Chimaera]:
    """The base with changing parts of the tuned model; afterwards it is as it was, whatever happened.

    Args:
        base: as for `rlcircuits.attribute`.
        tuned: from `weights_of`, or `rlcircuits.models.adapted_weights`.
    """
    found = Chimaera(base, tuned)
    try:
        yield found
    finally:
        found.restore()


def named(modules: str, parts: Mapping[str, Any]) -> frozenset[str]:
    """The parts that a text names: ``"a3"``, ``"l2"`` (both of a layer), ``"l2-l5"``, ``"embeddings"``, ``"head"``,
    ``"all"``, and several with ``+`` between.

    >>> sorted(named("l0-l1+head", dict.fromkeys(("embeddings", "a0", "m0", "a1", "m1", "head"))))
    ['a0', 'a1', 'head', 'm0', 'm1']

    Args:
        parts: of the model, see `parts_of`.

    Raises:
        InputError: a part that the model does not have.
    """
    if not isinstance(modules, str):
        raise InputError(f"module {modules!r}: expected a name such as 'a3', 'l2-l5' or 'embeddings+l0'")
    found: set[str] = set()
    layers = (len(parts) - 2) // 2
    for word in (one.strip() for one in modules.split("+")):
        if word == "all":
            found |= parts.keys()
        elif match := _RANGE.fullmatch(word):
            first, last = int(match["first"]), int(match["last"] or match["first"])
            if not first <= last < layers:
                raise InputError(f"module {word!r}: expected layers in order, l0 to l{layers - 1}")
            found |= {f"{branch}{index}" for index in range(first, last + 1) for branch in "am"}
        else:
            found.add(choose("module", word, ("all", *parts)))
    return frozenset(found)
