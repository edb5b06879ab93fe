"""The loss of an answer: the number that edges are scored for and that re-runs measure.

1. L = Σ_t w_t ℓ_t / Σ_t w_t  over the answer tokens y_t that are scored; all w_t are 1 unless weights are given.
2. ℓ_t is, by name, with the model's logits z_t and distribution p_t at the position that predicts y_t:

   - ``"nll"``: −ln p_t(y_t), in nats;
   - ``"kl"``: KL(q_t ‖ p_t) = Σ_v q_t(v) ln(q_t(v) / p_t(v)), in nats, for a reference's distribution q_t at that
     position;
   - ``"logit-difference"``: z_t(y′_t) − z_t(y_t) for counterfactual tokens y′. For answers of one token −L is MIB's
     measure.

3. A `Loss` is what a user states; `Objective` is it, checked, for the traces of one call; `Batch` for the rows of one
   pass.

Sources: arXiv 2509.21044 (nll); Mueller et al. 2025 (arXiv 2504.13151; logit-difference).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlcircuits.attribution.digests import weights_digest
from rlcircuits.attribution.layers import embedding, wide
from rlcircuits.attribution.reading import plain
from rlcircuits.attribution.recording import logits_at, padded
from rlcircuits.attribution.traces import Trace
from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = ("nll", "kl", "logit-difference")
#: what each loss needs beside the traces
NEEDS = {"kl": "reference", "logit-difference": "tokens"}


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss by name, with what it needs; all sequences hold one entry for each trace, in their order.

    Args:
        name: ``"nll"``, ``"kl"`` or ``"logit-difference"``.
        reference: for ``"kl"``, a model with the same vocabulary, run on the same tokens; or distributions, for each
            trace an array ``(answer token, vocabulary)`` of probabilities.
        tokens: for ``"logit-difference"``, the counterfactual answers: for each trace one token id for each answer
            token.
        weights: for each trace one number ≥ 0 for each answer token, not all 0; a token of weight 0 is not scored.

    Examples:
        Loss("kl", reference=base)
        Loss("logit-difference", tokens=[[7], [9]])
        Loss("nll", weights=[[1, 0, 0, 1]])

    Raises:
        InputError: an unknown name; something missing that the loss needs, or given that it does not take.
    """

    name: str = "nll"
    reference: Any = None
    tokens: Sequence[Sequence[int]] | None = None
    weights: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        choose("loss", self.name, NAMES)
        for name, needed in NEEDS.items():
            if (self.name == name) != (getattr(self, needed) is not None):
                example = {"reference": "a model, or probabilities", "tokens": "counterfactual token ids"}[needed]
                raise InputError(
                    f"loss {self.name!r} with{'' if self.name != name else 'out'} {needed}: "
                    f"Loss({name!r}, {needed}=…) takes {example}, and no other loss does"
                )

    @classmethod
    def of(cls, loss: str | Loss | Sequence[Sequence[float]]) -> Loss:
        """A loss given by its name, as a `Loss`, or as weights of the negative log-likelihood."""
        if isinstance(loss, Loss):
            return loss
        if isinstance(loss, Sequence) and not isinstance(loss, str):
            return cls(weights=loss)
        return cls(loss)


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss for the traces of one call.

    Attributes:
        loss: what was asked for.
        weights, tokens, probabilities: what was given of it, by the trace's problem, as long as its (cut) answer.
        reference: the reference's plain model, where one was given.
    """

    loss: Loss
    weights: dict[str, tuple[float, ...]]
    tokens: dict[str, tuple[int, ...]]
    probabilities: dict[str, Tensor]
    reference: PreTrainedModel | None
    _known: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, loss: str | Loss | Sequence[Sequence[float]], hf: PreTrainedModel, traces: Sequence[Trace], cut: int | None
    ) -> Objective:
        """Check a loss against the model and the (cut) traces; nothing is run.

        Raises:
            InputError: weights, counterfactual tokens or distributions that do not fit the traces or the vocabulary, or
                a reference with another vocabulary.
        """
        loss = Loss.of(loss)
        vocabulary = _vocabulary(hf)
        weights = _entries("weights", loss.weights, traces, cut)
        for problem, row in weights.items():
            if not all(isinstance(w, (int, float, np.number)) and 0 <= w < np.inf for w in row) or not sum(row):
                raise InputError(
                    f"the weights of trace {problem!r} are {_shown(row)}: expected numbers of at least 0, not all of "
                    "them 0 among the tokens that are scored"
                )
        tokens = _entries("tokens", loss.tokens, traces, cut)
        for problem, row in tokens.items():
            if not all(hasattr(i, "__index__") and not isinstance(i, bool) and 0 <= i < vocabulary for i in row):
                raise InputError(
                    f"the counterfactual tokens of trace {problem!r} are {_shown(row)}: expected ids from 0 to "
                    f"{vocabulary - 1}"
                )
        reference, probabilities = None, {}
        if isinstance(loss.reference, (Sequence, np.ndarray)) and not isinstance(loss.reference, str):
            for problem, row in _entries("distributions", loss.reference, traces, cut).items():
                probabilities[problem] = _distribution(problem, row, vocabulary).to(hf.device, wide(hf.dtype))
        elif loss.reference is not None:
            reference = plain(loss.reference)
            if reference.training:
                raise InputError("the reference is in training mode, where dropout would change it: call model.eval()")
            if _vocabulary(reference) != vocabulary:
                raise InputError(
                    f"the reference has a vocabulary of {_vocabulary(reference):,} tokens, the model one of "
                    f"{vocabulary:,}: expected a reference with the same tokenizer"
                )
        return cls(loss, weights, tokens, probabilities, reference)

    @property
    def label(self) -> str:
        """The loss in a word, for attributes of results."""
        return self.loss.name + (", weighted" if self.weights else "")

    @property
    def numbers_per_logit(self) -> int:
        """Numbers held for every logit beside those of the likelihood: a reference's distribution."""
        return int(self.loss.name == "kl")

    def inputs(self) -> Any:
        """What losses depend on beside model and traces, as JSON values."""
        if self.loss.name == "nll" and not self.weights:
            return "nll"
        given = {"name": self.loss.name, "weights": self.weights, "tokens": self.tokens}
        if self.reference is not None:
            given["reference"] = weights_digest(self.reference)
        for problem, row in self.probabilities.items():
            given[f"reference of {problem}"] = hashlib.sha256(row.cpu().double().numpy().tobytes()).hexdigest()
        return {name: value for name, value in given.items() if value}

    def batch(self, hf: PreTrainedModel, rows: Sequence[Any]) -> Batch:
        """Inputs, targets and what the loss needs for rows with ``problem``, ``prompt`` and ``answer``."""
        ids, positions, targets = padded(rows, embedding(hf).device)
        scored = targets != -100
        weights = scored.to(wide(hf.dtype))
        starts = [len(row.prompt) - 1 for row in rows]
        begins = [start - min(starts) for start in starts] if self._by_row else []
        others = None
        for index, (row, begin) in enumerate(zip(rows, begins)):
            part = slice(begin, begin + len(row.answer))
            if self.weights:
                weights[index, part] = torch.tensor(self.weights[row.problem], dtype=weights.dtype).to(weights.device)
            if self.tokens:
                others = torch.zeros_like(targets) if others is None else others
                others[index, part] = torch.tensor(self.tokens[row.problem]).to(targets.device)
        wanted = [self._reference(row) for row in rows] if self.loss.name == "kl" else None
        return Batch(ids, positions, targets, weights, others, wanted, begins)

    @property
    def _by_row(self) -> bool:
        return bool(self.weights or self.tokens or self.loss.name == "kl")

    def _reference(self, row: Any) -> Tensor:
        """ln q ``(answer token, vocabulary)`` at the row's answer; a model is run on one trace at a time, so that
        others beside it leave no trace in the last digits. The last few are kept.
        """
        if row.problem not in self._known:
            if self.reference is None:
                found = self.probabilities[row.problem].log()
            else:
                ids, positions, _ = padded([row], embedding(self.reference).device)
                with torch.no_grad():
                    found = torch.log_softmax(logits_at(self.reference, ids, positions)[0], -1)
            if len(self._known) >= 64:
                self._known.pop(next(iter(self._known)))
            self._known[row.problem] = found.clamp_min(torch.finfo(found.dtype).min / 4)  # 0 · ln 0 is 0
        return self._known[row.problem]


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one pass and their loss.

    Attributes:
        ids: ``(batch, position)``, padded on the right.
        positions: ``(kept,)``, those whose logits are needed.
        targets: ``(batch, kept)``, −100 where a position predicts no answer token of that row.
        weights: w ``(batch, kept)``, 0 where there is no target.
        others: y′ ``(batch, kept)``, for the difference of logits.
        wanted: ln q of each row ``(answer token, vocabulary)``, for the divergence; rows of one trace share theirs.
        begins: the first answer position of each row among those kept, for the divergence.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    others: Tensor | None = None
    wanted: list[Tensor] | None = None
    begins: Sequence[int] = ()

    def each(self, logits: Tensor, chosen: slice = slice(None)) -> Tensor:
        """ℓ ``(batch, chosen)``, 0 where there is no target, of logits ``(batch, chosen, vocabulary)`` at chosen kept
        positions.
        """
        targets = self.targets[:, chosen].to(logits.device)
        if self.others is not None:
            others = self.others[:, chosen].to(logits.device)
            both = logits.gather(2, torch.stack([others, targets.clamp_min(0)], -1))
            return torch.where(targets != -100, both[..., 0] - both[..., 1], 0)
        if self.wanted is not None:
            return torch.stack([self._divergence(row, logits[row], chosen) for row in range(len(logits))])
        flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return flat.view_as(targets)

    def _divergence(self, row: int, logits: Tensor, chosen: slice) -> Tensor:
        """KL(q ‖ p) ``(chosen,)`` of one row."""
        assert self.wanted is not None
        first = chosen.start or 0
        begin, end = self.begins[row], self.begins[row] + len(self.wanted[row])
        low, high = (min(max(at - first, 0), len(logits)) for at in (begin, end))
        q = self.wanted[row][low + first - begin : high + first - begin].to(logits)
        found = F.kl_div(torch.log_softmax(logits[low:high], -1), q, reduction="none", log_target=True).sum(-1)
        return F.pad(found, (low, len(logits) - high))

    def of(self, logits: Tensor, chosen: slice = slice(None)) -> Tensor:
        """The share of those positions in every row's loss, ``(batch,)``; with all of them, L."""
        each, weights = self.each(logits, chosen), self.weights.to(logits.device)
        return (each * weights[:, chosen]).sum(1) / weights.sum(1)

    def losses(self, hf: PreTrainedModel) -> Tensor:
        """L of every row ``(batch,)``, from a run of the model."""
        return self.of(logits_at(hf, self.ids, self.positions))


def _entries(what: str, given: Any, traces: Sequence[Trace], cut: int | None) -> dict[str, Any]:
    """What was given for each trace, cut as its answer is; empty if nothing was.

    Raises:
        InputError: not one entry for each trace, or not one number for each answer token.
    """
    if given is None:
        return {}
    if not isinstance(given, (Sequence, np.ndarray)) or isinstance(given, str) or len(given) != len(traces):
        count = len(given) if hasattr(given, "__len__") else repr(given)
        raise InputError(f"{count} {what} for {len(traces)} traces: expected a sequence for each, in the same order")
    found = {}
    for trace, row in zip(traces, given):
        n, length = len(trace.answer), len(row) if hasattr(row, "__len__") else -1
        if length < n or (cut is None and length > n):
            raise InputError(
                f"the {what} of trace {trace.problem!r} are {length if length >= 0 else repr(row)} for {n} answer "
                "tokens: expected one for each"
            )
        found[trace.problem] = row[:n] if what == "distributions" else tuple(row[:n])
    return found


def _distribution(problem: str, row: Any, vocabulary: int) -> Tensor:
    """Probabilities ``(answer token, vocabulary)``.

    Raises:
        InputError: another vocabulary, or no probabilities.
    """
    q = torch.as_tensor(np.asarray(row) if not isinstance(row, Tensor) else row.detach().cpu()).double()
    if q.ndim != 2 or q.shape[1] != vocabulary:
        raise InputError(
            f"the reference of trace {problem!r} has shape {tuple(q.shape)}: expected (answer token, vocabulary) with "
            f"a vocabulary of {vocabulary:,}"
        )
    if not bool((q >= 0).all()) or not bool(((q.sum(1) - 1).abs() < 1e-3).all()):
        raise InputError(f"the reference of trace {problem!r} holds no probabilities: expected rows ≥ 0 that sum to 1")
    return q


def _vocabulary(hf: PreTrainedModel) -> int:
    return hf.get_output_embeddings().weight.shape[0]


def _shown(row: Sequence[Any]) -> str:
    return repr(tuple(row[:6]))[:-1].rstrip(",") + (", …)" if len(row) > 6 else ")")
