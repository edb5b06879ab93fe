"""The two models of a pair, however the pair is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import SIDES
from rlcircuits.attribution import Trace, plain
from rlcircuits.errors import InputError, choose
from rlcircuits.models import Model, ModelPair, check_pair
from rlcircuits.models import pair as registered_pair

if TYPE_CHECKING:
    import xarray as xr

Pair = ModelPair | str | Sequence[Any]


def both(pair: Pair, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """Base and tuned, loaded and found to belong together.

    Args:
        pair: a `ModelPair`, a registered pair's name, or two loaded models, base first.
        device, dtype: for loading, as for `rlcircuits.load_model`.

    Raises:
        InputError: neither of these, a model that cannot be loaded, or two of another architecture, size or vocabulary.
    """
    if isinstance(pair, str):
        pair = registered_pair(pair)
    if isinstance(pair, ModelPair):
        pair.check()
        return pair.load("base", device, dtype), pair.load("tuned", device, dtype)
    if not isinstance(pair, Sequence) or len(pair) != 2:
        given = f"{len(pair)} models" if isinstance(pair, Sequence) else f"a {type(pair).__name__}"
        raise InputError(f"pair is {given}: expected rc.pair(name), a ModelPair, or two loaded models, base first")
    base, tuned = list(pair)
    if isinstance(base, Model) and isinstance(tuned, Model):
        check_pair(base, tuned)
        return base, tuned
    sizes = [_sizes(one) for one in (base, tuned)]
    for name in sizes[0]:
        if sizes[0][name] != sizes[1][name]:
            raise InputError(
                f"the two models differ in {name}: {sizes[0][name]} and {sizes[1][name]}; a pair is one model before "
                "and after fine-tuning"
            )
    return base, tuned


def sided(traces: Sequence[Trace] | Mapping[str, Sequence[Trace]], paired: bool = True) -> dict[str, list[Trace]]:
    """Traces of base and of tuned: the same ones unless they are given for each.

    Args:
        paired: whether both must be of the same problems.

    Raises:
        InputError: those of one side alone, of another side, or of other problems for one than for the other.
    """
    if not isinstance(traces, Mapping):
        some = list(traces) if isinstance(traces, Sequence) else traces
        return dict.fromkeys(SIDES, some)
    for name in traces:
        choose("side in traces", name, SIDES)
    if len(traces) < len(SIDES):
        raise InputError(f"traces are of {', '.join(traces) or 'no side'} alone: expected {{'base': …, 'tuned': …}}")
    found = {side: list(traces[side]) for side in SIDES}
    problems = [[getattr(trace, "problem", None) for trace in some] for some in found.values()]
    if paired and problems[0] != problems[1]:
        raise InputError("the traces of base and tuned are of other problems: expected the same ones in the same order")
    return found


def of_problems(data: xr.Dataset, problems: Collection[str]) -> xr.Dataset:
    """What was measured on some problems alone, wherever a dimension is of problems."""
    dims = [dim for dim in ("sample", "problem") if dim in data.dims]
    return data.isel({dim: [str(name) in problems for name in data[dim].values] for dim in dims})


def _sizes(model: Any) -> dict[str, Any]:
    hf = plain(model)
    vocabulary: Any = hf.get_output_embeddings()
    rows, width = vocabulary.weight.shape
    layers = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    return {"architecture": type(hf).__name__, "number of layers": layers, "width": width, "vocabulary": rows}
