"""Batches that fit: traces of similar length together, as many as the free memory holds.

1. Rows are taken longest first, so that a batch that does not fit fails at once, and rows of like length run together.
2. A batch holds as many padded tokens as half of the free memory is expected to hold (`bytes_per_token`); on a CPU at
   most what takes about 5 seconds (`WORK`), so that a bar moves, what is kept batch by batch is kept often, and memory
   stays small; twice as much was no faster.
3. Running out of memory halves the batch; a single row that does not fit goes to the next plan (a lean pass), if there is one.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlcircuits.attribution.layers import embedding
from rlcircuits.attribution.threads import suitable_threads
from rlcircuits.errors import InputError, argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: tokens of a pass that keep a processor busy; beyond them rows are batched only with rows of similar length
FULL = 1024
#: parameters times tokens of a batch on a CPU: SmolLM2-135M is attributed at 60 (head) to 110 (block) tokens a second, and
#: at 80 a trace at a time
WORK = 5e10


@dataclass(frozen=True)
class Plan:
    """A way to run a batch, the device memory it needs for every token (0: unknown, then as for a fast pass), and how
    often it runs the model.
    """

    work: Callable[[list[Any]], Any]
    bytes_per_token: int = 0
    runs: int = 1


def in_batches(
    hf: PreTrainedModel,
    traces: Sequence[Any],
    batch_size: int | str,
    work: Callable[[list[Any]], Any] | Sequence[Plan],
    title: str,
    progress: bool = True,
    share: float = 1.0,
    bar: Any = None,
) -> Iterator[tuple[list[int], Any]]:
    """Run `work` on batches of rows of similar length, longest first, and yield (indices, result).

    Longest first, so that a batch that does not fit fails at once. Rows that a model would treat otherwise beside longer ones
    (LongRoPE) are kept apart from those. On running out of memory the batch is halved; a single
    row that does not fit, or is not expected to, goes to the next plan, if there is one. `traces` may be any objects with
    ``prompt`` and ``answer``. Of a batch's rows only a `share` is taken, at least one; `bar` is a progress bar of the caller's.
    """
    from tqdm.auto import tqdm

    plans = [Plan(work)] if callable(work) else list(work)
    lengths = [len(trace.prompt) + len(trace.answer) - 1 for trace in traces]
    order = sorted(range(len(traces)), key=lambda i: (-lengths[i], i))
    ordered = [lengths[i] for i in order]
    automatic = batch_size == "auto"
    if not automatic and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"{argument('batch_size')} is {batch_size!r}: expected 'auto' or a whole number of at least 1")
    budgets = [token_budget(hf, plan.bytes_per_token) for plan in plans]
    quick = WORK / sum(p.numel() for p in hf.parameters()) if hf.device.type == "cpu" else math.inf
    turning = _turning_length(hf)
    halvings, first_plan = 0, 0
    own = (
        contextlib.nullcontext(bar)
        if bar is not None
        else tqdm(total=len(order), desc=title, unit="sample", delay=3, disable=not progress)
    )
    with own as bar:
        start = 0
        while start < len(order):
            longest = lengths[order[start]]
            number = first_plan
            while automatic and number + 1 < len(plans) and longest > budgets[number]:
                number += 1
            size = batch_size
            if automatic:
                at_least = 1 if number == first_plan else budgets[number - 1] + 1  # shorter rows have a better plan
                size = _alike(ordered, start, min(budgets[number], quick / plans[number].runs), at_least)
            size = max(1, math.ceil(int(size) * share) >> halvings)
            if longest > turning:
                size = max(1, sum(length > turning for length in ordered[start : start + size]))
            indices = order[start : start + size]
            try:
                with suitable_threads(hf):
                    result = plans[number].work([traces[i] for i in indices])
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if hf.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(indices) > 1:
                    halvings += 1
                elif number + 1 < len(plans):
                    warnings.warn(
                        f"{title}: {longest} tokens do not fit into memory in one pass; recomputing layer by layer",
                        stacklevel=3,
                    )
                    halvings, first_plan = 0, number + 1
                else:
                    raise InputError(
                        f"trace {getattr(traces[indices[0]], 'problem', indices[0])!r} of {longest} tokens does not fit "
                        "into the device's memory even alone: use a shorter cut, a coarser level or a larger device"
                    ) from error
                continue
            yield indices, result
            start += len(indices)
            bar.update(len(indices))


def _alike(lengths: Sequence[int], start: int, budget: float, at_least: int = 1) -> int:
    """How many rows from `start` on to run together, given all `lengths`, longest first.

    As many as fit the budget of padded tokens and have `at_least` so many; but, once there are `FULL` tokens, only such as
    are nearly as long as the first, so that little is spent on padding.
    """
    longest, end = lengths[start], start + 1
    while end < len(lengths) and (end + 1 - start) * longest <= budget and lengths[end] >= at_least:
        if (end - start) * longest >= FULL and lengths[end] < 0.85 * longest:
            break
        end += 1
    return end - start


def _turning_length(hf: PreTrainedModel) -> float:
    """The length beyond which the model turns queries and keys of the whole batch otherwise (LongRoPE), else infinity."""
    config = hf.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    changes = [one for one in kinds if one.get("rope_type") == "longrope"]
    lengths = [
        one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for one in changes
    ]
    return min((length for length in lengths if length), default=float("inf"))


def _out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no memory, on a device or (a plain RuntimeError) on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def token_budget(hf: PreTrainedModel, per_token: int = 0) -> int:
    """Tokens per pass that fit into half of the free memory, at most 8,192.

    Args:
        per_token: bytes per token, from `bytes_per_token`; 0 stands for a fast pass at block level.
    """
    per_token = per_token or bytes_per_token(hf)
    if hf.device.type == "cuda":
        devices = {p.device for p in hf.parameters()}
        free = min(torch.cuda.mem_get_info(device)[0] for device in devices if device.type == "cuda") * len(devices)
    else:
        import psutil

        free = psutil.virtual_memory().available
    return int(min(8192, max(1, free // 2 // per_token)))


def bytes_per_token(hf: PreTrainedModel, level: str = "block", lean: bool = False) -> int:
    """Estimated memory of attribution for every token of a batch, above the loaded model, in bytes.

    Of a layer, the backward pass keeps about 16 d_model + 4 d_mlp numbers a token; sources, gradients and norm inputs
    take another 4 d_model at block, 7 at qkv and 8 at head level. A lean pass holds this for one layer (four at head level) and
    for each of the others the sources alone, 2 d_model (3 at head level). Attention is taken to be fused, linear in the length.
    A fast pass also holds the logits, in float32 and three times; a lean pass makes them for a few positions at a time.
    """
    config, weight = hf.config.get_text_config(), embedding(hf)
    width, layers = weight.shape[1], getattr(config, "num_hidden_layers", 1)
    number = max(2, weight.element_size())
    recorded = {"block": 4, "qkv": 7, "head": 8}[level] * width
    layer = 16 * width + 4 * (getattr(config, "intermediate_size", None) or 4 * width) + recorded
    if not lean:
        return layers * layer * number + 12 * weight.shape[0]
    at_once = 4 if level == "head" else 1
    return (at_once * layer + layers * (3 if level == "head" else 2) * width) * number
