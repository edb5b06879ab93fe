"""Answers of models, and which of them a pair is compared on.

`generate` lets one model answer every problem greedily:

1. The prompt is a template with ``{question}``, or the tokenizer's chat template, encoded with the special tokens that the
   tokenizer puts before a text.
2. Prompts are batched by length and padded on the left; the answer is the arg max, token by token, until an
   end-of-sequence token or `max_new_tokens`. Nothing else of the checkpoint's generation settings applies.
   Another engine (`rlcircuits.answers.engines`) may do this step.
3. An `Answer` keeps the token ids exactly as they were generated, **without the final end-of-sequence token**: that
   token says that the answer is over and is no part of it, so lengths T count what was said, and no score contains it.
   With ``resume``, finished answers are kept on disk as they come (`rlcircuits.storage.journals`), and the same call goes on from them.

`select` is section 3 of the method (arXiv 2509.21044), with T_base(q) and T_tuned(q) the two answers' lengths in tokens:

4. Keep the problems that both models answer correctly.
5. T̄ = mean over these of (T_base + T_tuned) / 2; the published code takes min(mean T_base, mean T_tuned).
6. T_cut = max(⌊α T̄⌋, 1).
7. Keep (T_base + T_tuned) / 2 in [β T̄, γ T̄]; then |T_base − T_tuned| / ((T_base + T_tuned) / 2) ≤ δ; then prompts of
   the same length in both models' tokens.
8. Draw n of them with a seed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcircuits.answers.engines import ENGINES, vllm
from rlcircuits.answers.problems import ProblemSet, draw, grade
from rlcircuits.attribution import Trace
from rlcircuits.errors import InputError, choose
from rlcircuits.models import Outline, end_tokens_of
from rlcircuits.storage import Journal, Step, journal, written

if TYPE_CHECKING:
    import pandas as pd
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from rlcircuits.models import Model

ANSWERS = Step("answers", 1, also=("rlcircuits.models.outline",))
MEANS = ("paper", "code")
KEEPS = ("both-correct", "all")

_FIELDS = {"problem": str, "prompt": list, "answer": list, "text": str, "correct": bool, "finished": bool}
#: an answer in a journal: a row whose token is `_ENDED` or `_STOPPED`, then a row for each of its tokens
_ROW = np.dtype([("problem", "<i4"), ("token", "<i4")])
_STOPPED, _ENDED = -1, -2
_LARGEST_AUTO_BATCH = 128
_CPU_CACHE_BYTES = 2**31


@dataclass(frozen=True)
class Answer:
    """What one model answered to one problem.

    Args:
        problem: the problem's id.
        prompt: token ids of the prompt, without padding.
        answer: token ids as generated, without the final end-of-sequence token and without padding; may be empty.
        text: the answer decoded, special tokens left out; what was graded.
        correct: the grader's verdict.
        finished: whether the model ended the answer itself, rather than being stopped at the longest answer allowed.
    """

    problem: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    correct: bool
    finished: bool

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))

    @property
    def trace(self) -> Trace:
        """The answer as `rlcircuits.attribute` takes it.

        Raises:
            InputError: the answer is empty.
        """
        return Trace(self.problem, self.prompt, self.answer)


@dataclass(frozen=True, eq=False)
class Selection:
    """The problems a pair is compared on.

    Attributes:
        problems: ids of the problems kept, in the order of the base's answers.
        t_bar: mean answer length T̄ in tokens, before the rules on lengths.
        t_cut: T_cut, how many tokens of each answer are scored.
        dropped: one row per rule in the order they apply: ``rule``, how many problems it ``dropped``, how many are
            ``left``, and in ``detail`` what the rule came to here.
        base_traces, tuned_traces: the two models' whole answers to these problems, aligned.
        alpha: α.
    """

    problems: tuple[str, ...]
    t_bar: float
    t_cut: int
    dropped: pd.DataFrame
    base_traces: list[Trace]
    tuned_traces: list[Trace]
    alpha: float

    def __repr__(self) -> str:
        return f"Selection({len(self.problems)} problems, T̄ {self.t_bar:.1f}, α {self.alpha}, T_cut {self.t_cut})"


def generate(
    model: Model | Outline,
    problems: ProblemSet,
    prompt: str = "{question}",
    max_new_tokens: int = 64,
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
        prompt: template with one ``{question}``, or ``"chat"`` for the tokenizer's chat template.
        max_new_tokens: the longest answer allowed, the end-of-sequence token included. A prompt that leaves less room
            in the model's context is warned of, and its answer ends there.
        batch_size: problems answered at once; ``"auto"`` fits it to the memory, and halves it when that was too much.
        label: what the progress bar calls the model; the last part of its path or hub id by default.
        engine: ``"transformers"``, or ``"vllm"`` for GPUs (an extra; untested, see `rlcircuits.answers.engines`).
        resume: a folder in which finished answers are kept while the call runs; an interrupted call, made again, goes on from
            them. They belong to these weights, problems and settings and are not used for others.

    Returns:
        One `Answer` per problem, in the order of the problems.

    Raises:
        InputError: a template without ``{question}``, a tokenizer without chat template, a prompt that fills the
            model's context (it names the problem), settings out of range, an engine that is unknown or not installed, or too
            little memory.
        StoreError: `resume` is a file, or cannot be written.
    """
    from tqdm.auto import tqdm

    choose("engine", engine, ENGINES)
    _expect_whole("max_new_tokens", max_new_tokens, 1)
    if batch_size != "auto":
        _expect_whole("batch_size", batch_size, 1, "or 'auto'")
    prompts = [encode_prompt(model.tokenizer, prompt, problem.question) for problem in problems]
    rooms = _rooms(model, problems, prompts, max_new_tokens)
    ends = model.ends if isinstance(model, Outline) else end_tokens(model)
    said: dict[int, tuple[list[int], bool]] = {}
    with contextlib.ExitStack() as stack:
        book = None
        if resume is not None:
            inputs = {
                **_identity(model),
                "problems": problems.fingerprint,
                "prompt": prompt,
                "max_new_tokens": max_new_tokens,
                "engine": engine,
            }
            book = stack.enter_context(journal(resume, "answers", inputs, _ROW))
            said = _finished(book, len(prompts))
        bar = tqdm(
            total=len(prompts), initial=len(said), desc=f"answers of {label or Path(model.name).name}", unit="answer"
        )
        stack.enter_context(bar)
        # Longest first: what does not fit into memory shows at once, and the estimate of the time left is not too low.
        order = [i for i in sorted(range(len(prompts)), key=lambda i: (-rooms[i], -len(prompts[i]))) if i not in said]
        if engine == "vllm":
            batches = vllm(model, prompts, rooms, order, ends)
        else:
            batches = _transformers(model, prompts, rooms, order, ends, batch_size)
        for batch, generated in batches:
            new = {i: _until_end(ids, ends) for i, ids in zip(batch, generated, strict=True)}
            if book is not None:
                book.add(_rows(new))
            said |= new
            bar.update(len(batch))
    return [answer_of(model.tokenizer, problems, i, prompts[i], *said[i]) for i in range(len(prompts))]


def _transformers(
    model: Model,
    prompts: list[tuple[int, ...]],
    rooms: list[int],
    order: list[int],
    ends: tuple[int, ...],
    batch_size: int | str,
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Batches of problems, and what the model goes on to say to each, padding included."""
    with _greedy(model, ends):
        for room, group in groupby(order, key=lambda i: rooms[i]):
            waiting = list(group)
            size = _fitting(model, len(prompts[waiting[0]]) + room) if batch_size == "auto" else int(batch_size)
            while waiting:
                batch = waiting[:size]
                generated = _answer_batch(model, [prompts[i] for i in batch], room)
                if generated is None:
                    size = _half(model, len(batch), batch_size)
                    continue
                waiting = waiting[size:]
                yield batch, generated


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, question: str) -> tuple[int, ...]:
    """Token ids of a prompt.

    The special tokens that the tokenizer puts before a text are there (once: not when the template spells them out);
    those it would put after the text are not, as the model is to go on from there.

    Args:
        prompt: template with one ``{question}``, or ``"chat"``.

    Raises:
        InputError: a template without ``{question}``, no chat template, or nothing to encode.
    """
    if prompt == "chat":
        if not tokenizer.chat_template:
            raise InputError(
                "prompt is 'chat', but the tokenizer has no chat template: give a template with '{question}'"
            )
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    elif not isinstance(prompt, str) or prompt.count("{question}") != 1:
        raise InputError(f"prompt is {prompt!r}: expected a template with one '{{question}}', or 'chat'")
    else:
        text = prompt.replace("{question}", question)
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = tokenizer(text)["input_ids"]
        before = next((k for k in range(len(ids) - len(plain) + 1) if ids[k : k + len(plain)] == plain), None)
        if before is not None:
            ids = ids[: before + len(plain)]
            if tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id] == ids[:1]:
                ids = plain
    if not ids:
        raise InputError(f"the prompt {prompt!r} with the question {question[:40]!r} has no tokens: expected some text")
    return tuple(int(i) for i in ids)


def end_tokens(model: Model) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: those of the checkpoint's generation settings, configuration and tokenizer."""
    return end_tokens_of(
        getattr(model.hf, "generation_config", None), model.hf.config.get_text_config(), model.tokenizer
    )


def save_answers(answers: Sequence[Answer], file: str | os.PathLike[str]) -> None:
    """Save answers with their exact token ids, as parquet (``.parquet``) or JSON lines (``.jsonl``).

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    rows = [{**asdict(answer), "prompt": list(answer.prompt), "answer": list(answer.answer)} for answer in answers]
    if _suffix(file) == ".jsonl":
        with written(file) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), list: pa.list_(pa.int64()), bool: pa.bool_()}
    table = pa.Table.from_pylist(rows, pa.schema([(name, kinds[kind]) for name, kind in _FIELDS.items()]))
    with written(file) as temporary:
        pq.write_table(table, temporary)


def load_answers(file: str | os.PathLike[str]) -> list[Answer]:
    """The answers that `save_answers` saved.

    Raises:
        InputError: no such file, another suffix, or no answers in it.
    """
    suffix, name = _suffix(file), os.fspath(file)
    if not Path(file).is_file():
        raise InputError(
            f"no answers at {name!r}: expected a file that rlcircuits.answers.selection.save_answers wrote"
        )
    try:
        if suffix == ".jsonl":
            rows = [json.loads(line) for line in Path(file).read_text("utf-8").split("\n") if line.strip()]
        else:
            import pyarrow.parquet as pq

            rows = pq.read_table(file).to_pylist()
    except (ValueError, OSError) as error:
        raise InputError(
            f"{name!r} holds no answers that can be read ({str(error).splitlines()[0]}); make them again"
        ) from error
    for number, row in enumerate(rows):
        for field, kind in _FIELDS.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise InputError(
                    f"{name!r}, row {number}: expected {field!r} to be a {kind.__name__}; make the answers again"
                )
    return [Answer(**{field: row[field] for field in _FIELDS}) for row in rows]


def select(
    base: Sequence[Answer],
    tuned: Sequence[Answer],
    alpha: float,
    beta: float = 0.5,
    gamma: float = 1.5,
    delta: float = 0.5,
    n: int = 100,
    seed: int = 42,
    mean: str = "paper",
    keep: str = "both-correct",
) -> Selection:
    """Choose the problems a pair is compared on, and where its answers are cut (steps 4 to 8 above).

    Lengths are compared as exact fractions of the decimals given, so that α = 0.29 of 100 tokens are 29.

    Args:
        base, tuned: the two models' answers to the same problems.
        alpha: share α of the mean length that is scored, in (0, 1].
        beta, gamma: keep mean lengths in [β T̄, γ T̄].
        delta: the largest difference of the two lengths, as a share of their mean.
        n: problems drawn; all when fewer are left, which the table says.
        seed: of the draw, see `rlcircuits.answers.problems.draw`.
        mean: T̄ as in the ``"paper"``, or min(mean T_base, mean T_tuned) as in the published ``"code"``.
        keep: ``"both-correct"`` problems only, or ``"all"``.

    Raises:
        InputError: settings out of range, answers to different problems, or no problem left (it says by which rule).
    """
    _expect_settings(alpha, beta, gamma, delta, n, seed)
    choose("mean", mean, MEANS)
    choose("keep", keep, KEEPS)
    pairs = _paired(base, tuned)
    rules = _Rules(pairs)
    α, β, γ, δ = (Fraction(str(float(value))) for value in (alpha, beta, gamma, delta))

    def t_base(q: str) -> int:
        return len(pairs[q][0].answer)

    def t_tuned(q: str) -> int:
        return len(pairs[q][1].answer)

    def t_mean(q: str) -> Fraction:
        return Fraction(t_base(q) + t_tuned(q), 2)

    if keep == "both-correct":
        accuracies = [sum(pair[side].correct for pair in pairs.values()) / len(pairs) for side in (0, 1)]
        answered = f"base {accuracies[0]:.1%} correct, tuned {accuracies[1]:.1%}"
        rules.keep("both answers correct", lambda q: pairs[q][0].correct and pairs[q][1].correct, answered)
    rules.keep("no answer empty", lambda q: t_base(q) > 0 and t_tuned(q) > 0)

    left = rules.left
    if mean == "paper":
        t_bar = _mean([t_mean(q) for q in left])
    else:
        t_bar = min(_mean([t_base(q) for q in left]), _mean([t_tuned(q) for q in left]))
    t_cut = max(math.floor(α * t_bar), 1)

    between = f"{float(β * t_bar):.1f} to {float(γ * t_bar):.1f} tokens, T̄ = {float(t_bar):.1f}"
    rules.keep("mean length in [βT̄, γT̄]", lambda q: β * t_bar <= t_mean(q) <= γ * t_bar, between)
    rules.keep("lengths differ by at most δ", lambda q: abs(t_base(q) - t_tuned(q)) / t_mean(q) <= δ, f"δ = {delta}")
    rules.keep("prompts equally long", lambda q: len(pairs[q][0].prompt) == len(pairs[q][1].prompt), "in tokens")

    kept = set(draw(rules.left, n, seed, str))
    few = f"all, as fewer than n = {n} were left" if len(rules.left) < n else f"n = {n}, seed {seed}"
    rules.keep("drawn", lambda q: q in kept, few)
    return Selection(
        problems=tuple(rules.left),
        t_bar=float(t_bar),
        t_cut=t_cut,
        dropped=rules.table(),
        base_traces=[pairs[q][0].trace for q in rules.left],
        tuned_traces=[pairs[q][1].trace for q in rules.left],
        alpha=float(alpha),
    )


class _Rules:
    """The ids still left, and a row for each rule that was applied to them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.left: list[str] = list(problems)
        self.rows: list[dict[str, Any]] = []

    def keep(self, rule: str, holds: Callable[[str], bool], detail: str = "") -> None:
        """Apply one rule.

        Raises:
            InputError: it leaves nothing.
        """
        before, self.left = self.left, [q for q in self.left if holds(q)]
        self.rows.append(
            {"rule": rule, "dropped": len(before) - len(self.left), "left": len(self.left), "detail": detail}
        )
        if not self.left:
            rules = "; ".join(f"{row['rule']}: {row['left']} left" for row in self.rows)
            raise InputError(
                f"no problem is left by the rule {rule!r}{f' ({detail})' if detail else ''}, of {len(before)} before it "
                f"[{rules}]; {_ADVICE[rule]}"
            )

    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["rule", "dropped", "left", "detail"])


_ADVICE = {
    "both answers correct": "give more or easier problems, a larger max_new_tokens or another prompt, check the grader, or "
    "compare all answers with keep='all'",
    "no answer empty": "the models end their answers at once: check the prompt",
    "mean length in [βT̄, γT̄]": "lower beta or raise gamma",
    "lengths differ by at most δ": "raise delta, or give more problems",
    "prompts equally long": "the two tokenizers or chat templates differ: give both the same template with '{question}'",
}


def _paired(base: Sequence[Answer], tuned: Sequence[Answer]) -> dict[str, tuple[Answer, Answer]]:
    """Both answers by problem, in the order of the base's."""
    sides = []
    for side, answers in (("base", base), ("tuned", tuned)):
        by_problem = {answer.problem: answer for answer in answers}
        if not by_problem:
            raise InputError(f"no answers of the {side} model: expected one per problem")
        if len(by_problem) < len(answers):
            ids = [answer.problem for answer in answers]
            double = next(i for i in ids if ids.count(i) > 1)
            raise InputError(f"the {side} model has two answers to problem {double!r}: expected one")
        sides.append(by_problem)
    if different := sorted(sides[0].keys() ^ sides[1].keys()):
        who = "base" if different[0] in sides[0] else "tuned"
        raise InputError(
            f"the two models answered different problems ({len(different)} in one only, first {different[0]!r}, of the {who} "
            "model): generate both on the same problem set"
        )
    return {q: (sides[0][q], sides[1][q]) for q in sides[0]}


def _mean(values: Sequence[int | Fraction]) -> Fraction:
    return Fraction(sum(values), len(values))


def _expect_settings(alpha: float, beta: float, gamma: float, delta: float, n: int, seed: int) -> None:
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("delta", delta)):
        if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or not math.isfinite(value):
            raise InputError(f"{name} is {value!r}: expected a finite number")
    if not 0 < alpha <= 1:
        raise InputError(f"alpha is {alpha}: expected a share of the mean answer length, above 0 and at most 1")
    if not 0 <= beta <= gamma:
        raise InputError(f"beta is {beta} and gamma is {gamma}: expected 0 <= beta <= gamma, such as 0.5 and 1.5")
    if delta < 0:
        raise InputError(f"delta is {delta}: expected a share of the mean length of at least 0, such as 0.5")
    _expect_whole("n", n, 1)
    _expect_whole("seed", seed, 0)


def _expect_whole(name: str, value: Any, least: int, other: str = "") -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise InputError(
            f"{name} is {value!r}: expected a whole number of at least {least}{f' {other}' if other else ''}"
        )


def _suffix(file: str | os.PathLike[str]) -> str:
    suffix = Path(file).suffix
    if suffix not in (".parquet", ".jsonl"):
        raise InputError(f"answers are kept as .parquet or .jsonl, not as {os.fspath(file)!r}")
    return suffix


def _rooms(
    model: Model | Outline, problems: ProblemSet, prompts: list[tuple[int, ...]], max_new_tokens: int
) -> list[int]:
    """How many tokens each answer may have: `max_new_tokens`, or what the prompt leaves of the model's context."""
    config = model.config if isinstance(model, Outline) else model.hf.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) >= context:
        raise InputError(
            f"the prompt of problem {problems[longest].id!r} has {len(prompts[longest])} tokens, which leaves nothing of the "
            f"{context} of {model.name!r} for an answer: leave the problem out or shorten the prompt"
        )
    rooms = [int(min(max_new_tokens, context - len(prompt))) for prompt in prompts]
    tight = sum(room < max_new_tokens for room in rooms)
    if tight:
        warnings.warn(
            f"{tight} of {len(prompts)} prompts leave less than max_new_tokens = {max_new_tokens} of the {context} tokens of "
            f"{model.name!r} (problem {problems[longest].id!r} leaves {rooms[longest]}): their answers end there at the latest",
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
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=self.pad,
            eos_token_id=list(self.ends) or None,
        )
        self.hf.eval()

    def __exit__(self, *_: object) -> None:
        self.hf.generation_config = self.before[0]
        self.hf.train(self.before[1])


def _answer_batch(model: Model, prompts: list[tuple[int, ...]], room: int) -> list[list[int]] | None:
    """What the model goes on to say after each prompt, padding included; None when the memory did not suffice."""
    import torch

    width = max(map(len, prompts))
    pad = model.hf.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    try:
        out = model.hf.generate(input_ids=ids, attention_mask=mask, max_new_tokens=room)
    except torch.OutOfMemoryError:
        return None
    return out[:, width:].tolist()


def answer_of(
    tokenizer: PreTrainedTokenizerBase,
    problems: ProblemSet,
    index: int,
    prompt: tuple[int, ...],
    ids: Sequence[int],
    finished: bool,
) -> Answer:
    """An answer from its token ids: decoded and graded. `index` is that of the problem."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    problem = problems[index]
    return Answer(problem.id, prompt, tuple(ids), text, grade(problems, problem, text), finished)


def _until_end(generated: Sequence[int], ends: tuple[int, ...]) -> tuple[list[int], bool]:
    """The ids before the first that ends an answer, and whether there is one."""
    end = next((k for k, token in enumerate(generated) if token in ends), None)
    return list(generated[:end]), end is not None


def _identity(model: Model | Outline) -> dict[str, str]:
    """What identifies the weights and their dtype."""
    if isinstance(model, Outline):
        from rlcircuits.models import fingerprint

        own = fingerprint(model.source) if model.source is not None else f"{model.name}@{model.revision}"
        return {"model": own, "dtype": "auto"}
    return {"model": model.fingerprint, "dtype": str(model.hf.dtype)}


def _rows(said: dict[int, tuple[list[int], bool]]) -> np.ndarray:
    """Answers as rows of a journal."""
    rows = [(i, token) for i, (ids, ended) in said.items() for token in (_ENDED if ended else _STOPPED, *ids)]
    return np.array(rows, _ROW)


def _finished(book: Journal, problems: int) -> dict[int, tuple[list[int], bool]]:
    """The answers in a journal, by the index of their problem."""
    said: dict[int, tuple[list[int], bool]] = {}
    for i, token in book.rows.tolist():
        if token in (_ENDED, _STOPPED):
            said[i] = ([], token == _ENDED)
        else:
            said[i][0].append(token)
    return {i: answer for i, answer in said.items() if 0 <= i < problems}


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
    return int(min(max(free // one, 1), _LARGEST_AUTO_BATCH))


def _half(model: Model, size: int, asked: int | str) -> int:
    import torch

    torch.cuda.empty_cache()
    if asked != "auto":
        raise InputError(
            f"batch_size = {asked} does not fit into the memory of {model.device}: give a smaller one, or 'auto'"
        )
    if size == 1:
        raise InputError(
            f"not even one answer of {model.name!r} fits into the memory of {model.device}: lower max_new_tokens"
        )
    return size // 2
