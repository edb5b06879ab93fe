"""What generates answers, besides transformers.

1. An engine is given token ids of prompts and gives token ids back, exactly as they were chosen, greedily. It never
   tokenizes, decodes or grades: `rlcircuits.answers.generation.generate` does that in the same way for all.
2. ``"vllm"`` (https://docs.vllm.ai) loads the checkpoint itself and serves many answers at once on a GPU.

**Untested**: the vLLM engine is written from its documentation. It could not be run where this package is developed;
the tests only check, with a stand-in, what it is called with and what is made of its output.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, argument

if TYPE_CHECKING:
    from rlcircuits.models import Model, Outline

ENGINES = ("transformers", "vllm")
_AT_ONCE = 256


def vllm(
    model: Model | Outline,
    prompts: Sequence[tuple[int, ...]],
    rooms: Sequence[int],
    order: Sequence[int],
    ends: tuple[int, ...],
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Answers by vLLM. Untested: it could not be run, see the module's first lines.

    Args:
        model: what is to answer; only its name, folder and way of loading are used, never loaded weights.
        prompts: token ids of every prompt.
        rooms: the longest answer of each, in tokens.
        order: indices of the prompts to answer.
        ends: ids of the tokens that end an answer.

    Yields:
        Indices, and the ids generated for each, the ending token included if vLLM gives it.

    Raises:
        InputError: vLLM is not installed, or the model is an adapter.
    """
    if not order:
        return
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise InputError(
            "the engine 'vllm' needs vLLM and a GPU, and vLLM is not installed: pip install 'rlcircuits[vllm]', or "
            f"use {argument('engine', 'transformers')}"
        ) from error
    if getattr(model, "adapter", False) or getattr(model, "base_fingerprint", None):
        raise InputError(
            f"{model.name!r} is an adapter, which the engine 'vllm' is not given: save the merged model, or use "
            f"{argument('engine', 'transformers')}"
        )
    longest = max(len(prompts[i]) + rooms[i] for i in order)
    engine = LLM(
        model=os.fspath(model.source or model.name),
        revision=getattr(model, "revision", None) if model.source is None else None,
        trust_remote_code=getattr(model, "trust_remote_code", False),
        max_model_len=longest,
        generation_config="vllm",  # nothing of the checkpoint's own settings for sampling
    )
    for start in range(0, len(order), _AT_ONCE):
        batch = list(order[start : start + _AT_ONCE])
        settings = [_greedy(SamplingParams, rooms[i], ends) for i in batch]
        outputs = engine.generate([{"prompt_token_ids": list(prompts[i])} for i in batch], settings, use_tqdm=False)
        yield batch, [_ids(output, ends) for output in outputs]


def _greedy(parameters: Any, room: int, ends: tuple[int, ...]) -> Any:
    return parameters(temperature=0.0, max_tokens=room, stop_token_ids=list(ends), detokenize=False)


def _ids(output: Any, ends: tuple[int, ...]) -> list[int]:
    """The ids of an output; an answer that ended, but whose ending token is not given, gets one, as generated."""
    said = output.outputs[0]
    ids = [int(i) for i in said.token_ids]
    if said.finish_reason == "stop" and ends and not any(i in ends for i in ids):
        ids.append(ends[0])
    return ids
