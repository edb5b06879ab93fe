"""Greedy answers of a model to every problem of a set.

1. Prompts (`rlcircuits.models.prompts`) are batched by length and padded on the left.
2. The answer is the arg max, token by token, until an end-of-sequence token or `max_new_tokens`. Nothing else of the
   checkpoint's generation settings applies. Another engine (`rlcircuits.answers.engines`) may do this step.
3. The ids before the end-of-sequence token are kept, decoded and graded (`rlcircuits.answers.answer.answer_of`).
4. Every second what was said so far is counted on the bar and, with ``resume``, kept on disk: whole answers and the
   beginnings of others (`rlcircuits.storage.journals`). The same call goes on from them, token by token, whatever the
   batches are.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlcircuits.answers.answer import Answer, answer_of, expect_plain_text
from rlcircuits.answers.engines import ENGINES, vllm
from rlcircuits.answers.problems import ProblemSet
from rlcircuits.attribution import suitable_threads
from rlcircuits.errors import InputError, argument, choose, expect_whole
from rlcircuits.models import LOADING, LONGEST_ANSWER, Model, Outline, Prompt, encode_prompt, end_tokens_of, fingerprint
from rlcircuits.storage import Journal, Step, journal

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


ANSWERS = Step("answers", 2, also=("rlcircuits.models.outline", "rlcircuits.models.prompts"))
#: (a piece of) an answer in a journal: a row whose token is `_ENDED`, `_STOPPED` or `_GOING_ON`, then a row for each
#: of its tokens
_ROW = np.dtype([("problem", "<i4"), ("token", "<i4")])
_STOPPED, _ENDED, _GOING_ON = -1, -2, -3
#: how often what is being said is counted and kept
_SECONDS = 1.0
#: On one CPU thread SmolLM2-135M makes 49, 65, 71, 86 and 83 tokens a second in batches of 8, 16, 32, 64 and 128. As a
#: batch runs until its last answer ends, what 64 gain over 32 is lost on waiting.
_LARGEST_AUTO_BATCH = {"cpu": 32, "cuda": 128}
_CPU_CACHE_BYTES = 2**31


def generate(
    model: Model | Outline,
    problems: ProblemSet,
    prompt: Prompt | str = "{question}",
    max_new_tokens: int = LONGEST_ANSWER,
    batch_size: int | str = "auto",
    label: str | None = None,
    engine: str = "transformers",
    resume: str | os.PathLike[str] | None = None,
) -> list[Answer]:
    """Let a model answer every problem greedily, and grade its answers.

    An answer does not depend on the batch it was generated in, but for the rounding of the arithmetic: where two tokens
    are equally likely to the last bits, another batch size may choose the other one.

    Args:
        model: what `rlcircuits.load_model` returns. For the engine ``"vllm"``, which loads the weights itself, an
            `rlcircuits.models.outline.Outline` will do.
        problems: what to ask, and the grader.
        prompt: template with one ``{question}``, ``"chat"`` for the tokenizer's chat template, or an
            `rlcircuits.Prompt`, which has a system text, an instruction and examples, too.
        max_new_tokens: the longest answer allowed, the end-of-sequence token included. A prompt that leaves less room
            in the model's context is warned of, and its answer ends there.
        batch_size: problems answered at once; ``"auto"`` fits it to the memory, and halves it when that was too much.
        label: what the progress bar calls the model; the last part of its path or hub id by default.
        engine: ``"transformers"``, or ``"vllm"`` for GPUs (an extra; untested, see `rlcircuits.answers.engines`).
        resume: a folder in which answers are kept while the call runs, also those that are not yet whole; an
            interrupted or killed call, made again, goes on from them. They belong to these weights, problems and
            settings and are not used for others.

    Returns:
        One `Answer` per problem, in the order of the problems.

    Raises:
        InputError: a template without ``{question}``, a tokenizer without chat template, a prompt that fills the
            model's context (it names the problem), settings out of range, an engine that is unknown or not installed,
            or too little memory.
        StoreError: `resume` is a file, or cannot be written.
    """
    from tqdm.auto import tqdm

    choose("engine", engine, ENGINES)
    expect_whole("max_new_tokens", max_new_tokens, 1)
    if batch_size != "auto":
        expect_whole("batch_size", batch_size, 1, "or 'auto'")
    expect_plain_text(model.tokenizer, problems)
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    prompts = [encode_prompt(model.tokenizer, prompt, problem.question) for problem in problems]
    rooms = _rooms(model, problems, prompts, max_new_tokens)
    ends = model.ends if isinstance(model, Outline) else end_tokens(model)
    with contextlib.ExitStack() as stack:
        book = None
        if resume is not None:
            inputs = {
                **_identity(model),
                "problems": problems.fingerprint,
                "prompt": prompt.key,
                "max_new_tokens": max_new_tokens,
                "engine": engine,
                "code": str(ANSWERS),
            }
            book = stack.enter_context(journal(resume, "answers", inputs, _ROW))
        name = label or Path(model.name).name
        bar = stack.enter_context(tqdm(total=len(prompts), desc=f"answers of {name}", unit="answer"))
        said = _Said(prompts, rooms, ends, book, bar)
        # Longest first: what does not fit into memory shows at once, and the estimate of the time left is not too low.
        waiting = [i for i in range(len(prompts)) if i not in said.whole]
        waiting.sort(key=lambda i: (-said.room(i), -len(said.text(i))))
        if engine == "vllm":
            texts, left = [said.text(i) for i in range(len(prompts))], [said.room(i) for i in range(len(prompts))]
            for batch, generated in vllm(model, texts, left, waiting, ends):
                said.add(batch, generated, last=True)
        else:
            _transformers(cast("Model", model), said, waiting, batch_size)
    return [answer_of(model.tokenizer, problems, i, prompts[i], *said.whole[i]) for i in range(len(prompts))]


class _Said:
    """What a model has said to each problem up to now: in memory, in a journal if there is one, and on a bar.

    Attributes:
        ends: ids of the tokens that end an answer.
        whole: by the problem's index its answer, and whether a token ended it.
        begun: what there is of answers that are not yet whole.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        rooms: Sequence[int],
        ends: tuple[int, ...],
        book: Journal | None,
        bar: Any,
    ) -> None:
        self.ends = ends
        self.whole: dict[int, tuple[list[int], bool]] = {}
        self.begun: dict[int, list[int]] = {}
        self._prompts, self._rooms, self._book, self._bar, self._tokens = prompts, rooms, book, bar, 0
        states: dict[int, int] = {}
        for i, token in [] if book is None else book.rows.tolist():
            if token in (_STOPPED, _ENDED, _GOING_ON):
                states[i] = token
                self.begun.setdefault(i, [])
            else:
                self.begun[i].append(token)
        for i, state in states.items():
            self._settle(i, state)

    def text(self, i: int) -> tuple[int, ...]:
        """The prompt of a problem and what there is of its answer."""
        return (*self._prompts[i], *self.begun.get(i, ()))

    def room(self, i: int) -> int:
        """How many tokens its answer may still have."""
        return self._rooms[i] - len(self.begun.get(i, ()))

    def add(self, batch: Sequence[int], new: Sequence[Sequence[int]], last: bool) -> None:
        """Take what was generated for some problems since the last time, padding included; `last` says that this is all."""
        rows: list[tuple[int, int]] = []
        for i, generated in zip(batch, new, strict=True):
            if i in self.whole:
                continue
            ids, ended = _until_end(generated, self.ends)
            state = _ENDED if ended else _STOPPED if last else _GOING_ON
            rows += [(i, token) for token in (state, *ids)]
            self._tokens += len(ids)
            self.begun.setdefault(i, []).extend(ids)
            self._settle(i, state)
        if self._book is not None and rows:
            self._book.add(np.array(rows, _ROW))
        self._bar.set_postfix_str(f"{self._tokens:,} tokens")

    def _settle(self, i: int, state: int) -> None:
        if state != _GOING_ON:
            self.whole[i] = self.begun.pop(i), state == _ENDED
            self._bar.update(1)


def _transformers(model: Model, said: _Said, waiting: Sequence[int], batch_size: int | str) -> None:
    """Let the model answer what is `waiting`, in that order and in batches of answers with equal room."""
    size = len(waiting) if batch_size == "auto" else int(batch_size)
    with _greedy(model, said.ends), suitable_threads(model.hf):
        while waiting := [i for i in waiting if i not in said.whole]:
            room = said.room(waiting[0])
            if batch_size == "auto":
                size = min(size, _fitting(model, len(said.text(waiting[0])) + room))
            _, alike = next(groupby(waiting, key=said.room))
            batch = list(islice(alike, size))
            if not _answer_batch(model, [said.text(i) for i in batch], room, functools.partial(said.add, batch)):
                size = _half(model, len(batch), batch_size)


def end_tokens(model: Model) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: those of the checkpoint's generation settings, configuration and
    tokenizer.
    """
    return end_tokens_of(
        getattr(model.hf, "generation_config", None), model.hf.config.get_text_config(), model.tokenizer
    )


def _rooms(
    model: Model | Outline, problems: ProblemSet, prompts: list[tuple[int, ...]], max_new_tokens: int
) -> list[int]:
    """How many tokens each answer may have: `max_new_tokens`, or what the prompt leaves of the model's context."""
    config = model.config if isinstance(model, Outline) else model.hf.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) >= context:
        raise InputError(
            f"the prompt of problem {problems[longest].id!r} has {len(prompts[longest])} tokens, which leaves nothing "
            f"of the {context} of {model.name!r} for an answer: leave the problem out or shorten the prompt"
        )
    rooms = [int(min(max_new_tokens, context - len(prompt))) for prompt in prompts]
    tight = sum(room < max_new_tokens for room in rooms)
    if tight:
        warnings.warn(
            f"{tight} of {len(prompts)} prompts leave less than {argument('max_new_tokens', max_new_tokens)} of the {context} "
            f"tokens of {model.name!r} (problem {problems[longest].id!r} leaves {rooms[longest]}): their answers end "
            "there at the latest",
            stacklevel=3,
        )
    return rooms


class _greedy:
    """Replace a model's generation settings by plain greedy decoding, and put them back afterwards."""

    def __init__(self, model: Model, ends: tuple[int, ...]) -> None:
        self.hf: PreTrainedModel = model.hf
        pad = model.tokenizer.pad_token_id
        self.pad = int(pad) if pad is not None else ends[0] if ends else 0
        self.ends = ends

    def __enter__(self) -> None:
        from transformers import GenerationConfig

        self.before: tuple[GenerationConfig, bool] = (self.hf.generation_config, self.hf.training)
        self.hf.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, use_cache=True, pad_token_id=self.pad, eos_token_id=list(self.ends) or None
        )
        self.hf.eval()

    def __exit__(self, *_: object) -> None:
        self.hf.generation_config = self.before[0]
        self.hf.train(self.before[1])


def _answer_batch(
    model: Model,
    texts: Sequence[tuple[int, ...]],
    room: int,
    hear: Callable[[list[list[int]], bool], None],
) -> bool:
    """Let the model go on after each text for at most `room` tokens; False when the memory did not suffice.

    Args:
        hear: called every `_SECONDS` and at the end with what was generated since the last call, for each text, padding
            included, and whether this is all.
    """
    import torch

    width = max(map(len, texts))
    pad = model.hf.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(text)) + list(text) for text in texts], device=model.device)
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=model.device)
    go_on = torch.zeros(len(texts), dtype=torch.bool, device=model.device)
    heard, last_time = width, time.monotonic()

    def listen(generated: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        nonlocal heard, last_time
        if time.monotonic() - last_time >= _SECONDS:
            hear(generated[:, heard:].cpu().tolist(), generated.shape[1] == width + room)
            heard, last_time = generated.shape[1], time.monotonic()
        return go_on

    try:
        out = cast(Any, model.hf).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=room, stopping_criteria=[listen]
        )
    except torch.OutOfMemoryError:
        return False
    hear(out[:, heard:].cpu().tolist(), True)
    return True


def _until_end(generated: Sequence[int], ends: tuple[int, ...]) -> tuple[list[int], bool]:
    """The ids before the first that ends an answer, and whether there is one."""
    end = next((k for k, token in enumerate(generated) if token in ends), None)
    return list(generated[:end]), end is not None


def _identity(model: Model | Outline) -> dict[str, str]:
    """What identifies the weights and their dtype."""
    if isinstance(model, Outline):
        own = fingerprint(model.source) if model.source is not None else f"{model.name}@{model.revision}"
        return {"model": own, "dtype": "auto"}
    return {"model": model.fingerprint, "dtype": str(model.hf.dtype), "loading": str(LOADING)}


def _fitting(model: Model, length: int) -> int:
    """A batch size whose keys and values, of `length` tokens each, take at most half of the memory that is free."""
    import torch

    config = model.hf.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    itemsize = torch.empty((), dtype=model.hf.dtype).element_size()
    one = 2 * config.num_hidden_layers * kv_heads * width * itemsize * length
    cuda = torch.device(model.device).type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] // 2 if cuda else _CPU_CACHE_BYTES
    return int(min(max(free // one, 1), _LARGEST_AUTO_BATCH["cuda" if cuda else "cpu"]))


def _half(model: Model, size: int, asked: int | str) -> int:
    import torch

    torch.cuda.empty_cache()
    if asked != "auto":
        raise InputError(
            f"{argument('batch_size', asked)} does not fit into the memory of {model.device}: give a smaller one, or 'auto'"
        )
    if size == 1:
        raise InputError(
            f"not even one answer of {model.name!r} fits into the memory of {model.device}: lower {argument('max_new_tokens')}"
        )
    return size // 2
