"""Training curves: a policy measured while it trains, the same way for every member.

1. Greedy answers to a fixed set of validation problems, disjoint from training and test, give the **accuracy** and the
   mean **length**.
2. Sampled answers (temperature 1) to the same problems visit states s_t; they are kept.
3. **entropy** = mean over those tokens of H(π(·|s_t)); **kl** = mean of KL(π(·|s_t) ‖ π_base(·|s_t)), both exact over
   the vocabulary, in nats a token. A small base's own training is measured against the base it ends as, a real one's
   against what it starts from. The divergence is computed afterwards, from the checkpoints, a few answers at a time.
4. At each point the policy is saved as a complete checkpoint, so that all else can be measured along the run later.
5. Training's own random numbers are left as they were, so a curve with more points is of the same training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from paradigms.family.policy import Start, opened, plain, random_state, set_random_state
from paradigms.family.tasks import TaskProblem
from rlcircuits.errors import InputError
from rlcircuits.storage import written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("update", "step", "prompts_seen", "loss", "reward", "accuracy", "kl", "entropy", "length")
"""``update``: updates done, optimiser steps or, for `ppo` and `online-dpo`, rounds; ``step`` is the same number."""
CHECKPOINTS = "checkpoints"
SAMPLED = "sampled"
"""Folder of the answers that a training samples before it begins."""


_SAMPLED_AT_ONCE = 512
_ROWS = 16
"""Answers whose distributions over a whole vocabulary are in memory at a time."""


class TrainingDiverged(InputError):
    """A loss or a policy's probabilities were not finite; the message names the member, the seed and the step."""


@dataclass(frozen=True)
class Answers:
    """Answers as the policy produced them.

    Args:
        tokens: (answer, prompt + position) long, prompts padded on the left.
        attention: the same shape; 0 on the prompts' padding.
        mask: (answer, position) bool; true on answer tokens up to and with the end-of-sequence token.
        texts: the answers' texts, without the end-of-sequence token.
        finished: whether each answer ended by itself.
    """

    tokens: torch.Tensor
    attention: torch.Tensor
    mask: torch.Tensor
    texts: tuple[str, ...]
    finished: tuple[bool, ...]

    @property
    def lengths(self) -> torch.Tensor:
        """(answer,) answer tokens, the end-of-sequence token not counted."""
        return self.mask.sum(1) - torch.tensor(self.finished, dtype=torch.long)

    def rewards(self, problems: Sequence[TaskProblem]) -> torch.Tensor:
        """(answer,) 1 for an answer that ended by itself with its problem's result, else 0."""
        pairs = zip(self.texts, self.finished, problems, strict=True)
        return torch.tensor([float(done and problem.is_right(text)) for text, done, problem in pairs])

    def parts(self, rows: int = _ROWS) -> Iterator[Answers]:
        """The same answers, some at a time."""
        for first in range(0, len(self.texts), rows):
            part = slice(first, first + rows)
            yield Answers(*(getattr(self, name)[part] for name in ("tokens", "attention", "mask", "texts", "finished")))


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[TaskProblem],
    max_new_tokens: int,
    sample: bool,
    temperature: float = 1.0,
) -> Answers:
    """Answer the problems in one batch, greedily or sampled from softmax(logits / temperature)."""
    from transformers import GenerationConfig

    was_training = model.training
    model.eval()
    texts = [problem.prompt for problem in problems]
    prompts = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        top_k=0 if sample else None,
        temperature=temperature if sample else None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,
    )
    tokens = model.generate(**prompts, generation_config=config).cpu()
    model.train(was_training)
    produced = tokens[:, prompts["input_ids"].shape[1] :]
    ended = produced == tokenizer.eos_token_id
    mask = (ended.cumsum(1) - ended.long()) == 0
    attention = torch.cat([prompts["attention_mask"].cpu(), mask.long()], dim=1)
    said = tokenizer.batch_decode(
        [row[keep] for row, keep in zip(produced, mask, strict=True)], skip_special_tokens=True
    )
    return Answers(tokens, attention, mask, tuple(said), tuple(ended.any(1).tolist()))


def sampled_answers(
    start: Start, problems: Sequence[TaskProblem], answers_per_prompt: int, max_new_tokens: int, seed: int
) -> Iterator[tuple[TaskProblem, tuple[str, ...], list[float], tuple[bool, ...]]]:
    """(problem, texts, rewards, finished) of several sampled answers of the start to each problem, drawn in large batches.

    Where the recipe keeps a training's state, each batch is kept with it and found again.
    """
    model, tokenizer = start.model(), start.tokenizer()
    torch.manual_seed(seed)
    at_once = max(1, _SAMPLED_AT_ONCE // answers_per_prompt)
    for first in range(0, len(problems), at_once):
        part = problems[first : first + at_once]
        asked = [p for p in part for _ in range(answers_per_prompt)]
        file = start.scratch / SAMPLED / f"{first:06d}.pt"
        if start.save_every and file.is_file():
            kept = torch.load(file, weights_only=True)
            answers = Answers(**kept["answers"])
            set_random_state(kept["random"])
        else:
            answers = answer(model, tokenizer, asked, max_new_tokens, sample=True)
            if start.save_every:
                with written(file) as temporary:
                    torch.save({"answers": vars(answers), "random": random_state()}, temporary)
        rewards = answers.rewards(asked).tolist()
        for i, problem in enumerate(part):
            group = slice(i * answers_per_prompt, (i + 1) * answers_per_prompt)
            yield problem, answers.texts[group], rewards[group], answers.finished[group]


def positions(attention: torch.Tensor) -> torch.Tensor:
    """(batch, position) position ids that count real tokens only, so that left padding changes nothing."""
    return (attention.cumsum(1) - 1).clamp(min=0)


def answer_log_probs(model: PreTrainedModel, answers: Answers) -> torch.Tensor:
    """(answer, position, vocabulary) log π(·|s_t) in nats, s_t the state in which answer token t was produced, on the
    model's device.
    """
    width = answers.mask.shape[1]
    attention = answers.attention.to(model.device)
    logits = model(
        input_ids=answers.tokens.to(model.device),
        attention_mask=attention,
        position_ids=positions(attention),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits
    return logits[:, :-1].float().log_softmax(-1)


def mean_entropy(model: PreTrainedModel, answers: Answers) -> float:
    """Mean of H(π(·|s_t)) over the answers' tokens, in nats a token."""
    total = 0.0
    for part in answers.parts():
        log_probs = answer_log_probs(model, part)
        total += _over_answers(-(log_probs.exp() * log_probs).sum(-1), part)
    return total / int(answers.mask.sum())


def mean_kl(policy: PreTrainedModel, start: Start, answers: Answers) -> float:
    """Mean of KL(π(·|s_t) ‖ π_start(·|s_t)) over the answers' tokens, in nats a token."""
    reference, total = start.reference(policy), 0.0
    for part in answers.parts():
        log_probs = answer_log_probs(policy, part)
        with reference() as model:
            before = answer_log_probs(model, part)
        total += _over_answers((log_probs.exp() * (log_probs - before)).sum(-1), part)
    return total / int(answers.mask.sum())


def _over_answers(per_token: torch.Tensor, answers: Answers) -> float:
    """The sum over answer tokens of (answer, position) values."""
    return float(per_token.cpu()[answers.mask].double().sum())


def greedy_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[TaskProblem], max_new_tokens: int
) -> float:
    """The share of problems whose greedy answer is right."""
    return float(answer(model, tokenizer, problems, max_new_tokens, sample=False).rewards(problems).mean())


@dataclass
class Recorder:
    """Collects one member's curve while it trains.

    Args:
        member, seed: name the training in errors.
        problems: the validation problems.
        updates, prompts: steps and prompts of the whole training.
        points: measurements after the first.
        max_new_tokens: longest answer.
        progress: called with the share of the training that is done, 0 to 1.
        checkpoints: a folder; each point's policy is saved in it, under the step as five digits.
        reached: the step seen last.
    """

    member: str
    seed: int
    problems: Sequence[TaskProblem]
    tokenizer: PreTrainedTokenizerBase
    updates: int
    prompts: int
    points: int
    max_new_tokens: int
    checkpoints: Path
    progress: Callable[[float], None] = lambda share: None
    reached: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    _visited: list[Answers] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _rewards: list[float] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether the curve has a point at this step."""
        return step in {round(i * self.updates / self.points) for i in range(self.points + 1)}

    def saw(self, step: int, loss: float | None, reward: float = nan) -> None:
        """Note one step's training loss (``None`` where there was nothing to learn from) and mean reward.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        self.reached = step
        if loss is not None and not isfinite(loss):
            raise self.diverged(f"its loss is {loss}")
        self._losses.append(nan if loss is None else loss)
        self._rewards.append(reward)

    def diverged(self, how: str) -> TrainingDiverged:
        """The error that says so, at the step that was seen last."""
        return TrainingDiverged(
            f"training {self.member} with seed {self.seed} diverged at step {self.reached}: {how}; "
            "lower its learning rate in the recipe, or take another seed"
        )

    def measure(self, step: int, model: PreTrainedModel) -> None:
        """Add the curve's point at `step` if one is due, and report progress."""
        self.progress(step / self.updates)
        if not self.due(step) or any(row["step"] == step for row in self.rows):
            return
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            greedy = answer(model, self.tokenizer, self.problems, self.max_new_tokens, sample=False)
            sampled = answer(model, self.tokenizer, self.problems, self.max_new_tokens, sample=True)
            entropy = mean_entropy(model, sampled)
        self._visited.append(sampled)
        self.rows.append(
            {
                "update": step,
                "step": step,
                "prompts_seen": round(self.prompts * step / self.updates),
                "loss": _mean(self._losses),
                "reward": _mean(self._rewards),
                "accuracy": float(greedy.rewards(self.problems).mean()),
                "entropy": entropy,
                "length": float(greedy.lengths.float().mean()),
            }
        )
        self._losses, self._rewards = [], []
        save_checkpoint(model, self.tokenizer, self.checkpoints / f"{step:05d}")

    def curve(self, start: Start) -> pd.DataFrame:
        """The whole curve, columns `COLUMNS`, with the KL divergence from `start` at each point."""
        rows = []
        for row, visited in zip(self.rows, self._visited, strict=True):
            policy = opened(self.checkpoints / f"{row['step']:05d}", start)
            with torch.no_grad(), start.computing():
                rows.append({**row, "kl": mean_kl(policy, start, visited)})
        return pd.DataFrame(rows)[list(COLUMNS)]

    def state(self) -> dict[str, Any]:
        """All that a training that goes on needs of its curve, as plain values and tensors."""
        visited = [vars(answers) for answers in self._visited]
        return {"rows": self.rows, "visited": visited, "losses": self._losses, "rewards": self._rewards}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.rows, self._visited = list(state["rows"]), [Answers(**one) for one in state["visited"]]
        self._losses, self._rewards = list(state["losses"]), list(state["rewards"])


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a policy as it is to be used: a complete checkpoint, in which what training switches off is on; or an
    adapter alone.
    """
    cached, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(folder)
    model.config.use_cache = cached
    if plain(model) is model:
        tokenizer.save_pretrained(folder)


def checkpoints(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The checkpoints kept along a member's training: updates done -> a complete checkpoint's folder, in rising order.

    The first are the weights before training (for a descendant the base's), the last the final ones; each is a row of
    the member's ``curves.parquet`` with the same ``update``.

    Args:
        folder: a member's, as `make_family` returns it.

    Raises:
        InputError: a folder without checkpoints.
    """
    found = {int(path.name): path for path in Path(folder).glob(f"{CHECKPOINTS}/[0-9]*") if path.is_dir()}
    if not found:
        raise InputError(
            f"{os.fspath(folder)} holds no {CHECKPOINTS}/<update>: expected a member's folder from make_family"
        )
    return dict(sorted(found.items()))


def load_curves(paths: Mapping[str, str | os.PathLike[str]]) -> pd.DataFrame:
    """The training curves of a family, one table: `COLUMNS` and ``member``.

    Args:
        paths: member -> its folder, as `make_family` returns them.

    Raises:
        InputError: a folder without ``curves.parquet``.
    """
    tables = []
    for member, path in paths.items():
        file = Path(path) / "curves.parquet"
        if not file.is_file():
            raise InputError(f"{path} holds no curves.parquet: expected a member's folder from make_family")
        tables.append(pd.read_parquet(file).assign(member=member))
    return pd.concat(tables, ignore_index=True)


def _mean(values: Sequence[float]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    defined = [v for v in values if isfinite(v)]
    return sum(defined) / len(defined) if defined else nan
