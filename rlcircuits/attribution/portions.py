"""Which tokens are summed together: all of a row, or those of each of its groups; and in which portions.

1. Without groups a row's tokens are one sum, taken in slices of positions.
2. With groups, every pair of row and group that has tokens is a **segment**: a sum of its own. Segments lie longest
   first, so that those which still have tokens are always the first ones, and each portion is one batched product over
   them.
3. A portion ends where padding the shorter of its segments would cost more than `WASTE` of its tokens. So grouped
   scores take as many products' worth of tokens as ungrouped ones, to that share, however many groups there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

#: padded tokens of a portion, as a share of its own
WASTE = 0.1


@dataclass(frozen=True)
class Portion:
    """A portion of the tokens.

    Attributes:
        sums: the rows of the scores that it adds to, n of them.
        tokens: positions, the same slice of every row; or of each sum its own, ``(n, step)``.
        rows: which row of the batch each of those sums is of, ``(n, 1)``; None with a slice.
        real: 1 for a token, 0 for padding, ``(n, step, 1)``; None where nothing is padded.
    """

    sums: slice
    tokens: slice | Tensor
    rows: Tensor | None = None
    real: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """These tokens ``(n, step, …)`` of something ``(batch, position, …)``."""
        if self.rows is None:
            return x[:, self.tokens]
        return x[self.rows.to(x.device), cast(Tensor, self.tokens).to(x.device)]


def slices(length: int, step: int) -> Iterator[Portion]:
    """All positions of every row, at most `step` at a time."""
    for begin in range(0, length, step):
        yield Portion(slice(None), slice(begin, min(begin + step, length)))


class Segments:
    """Every row's tokens of every group, the longest segment first.

    Args:
        codes: per row the group of each token that is read, 0 to `groups` − 1; at least one token in all.
        groups: how many groups there are.
        device: where the scores are.
    """

    def __init__(self, codes: Sequence[np.ndarray], groups: int, device: torch.device) -> None:
        self.batch, self.groups = len(codes), groups
        each = np.concatenate([row * groups + np.asarray(code) for row, code in enumerate(codes)])
        positions = np.concatenate([np.arange(len(code)) for code in codes])[np.argsort(each, kind="stable")]
        counts = np.bincount(each, minlength=self.batch * groups)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        self._lengths, starts = counts[order], (np.cumsum(counts) - counts)[order]
        steps = np.arange(self._lengths[0])
        real = steps < self._lengths[:, None]
        tokens = positions[np.where(real, starts[:, None] + steps, 0)]
        self._sums, self._rows, self._tokens, self._real = (
            torch.from_numpy(x).to(device) for x in (order, order[:, None] // groups, tokens, real[..., None])
        )

    def __len__(self) -> int:
        """How many segments there are."""
        return len(self._lengths)

    def portions(self, tokens: int) -> Iterator[Portion]:
        """All tokens, at most about `tokens` of them at a time."""
        begin = 0
        while begin < self._lengths[0]:
            end, alive = self._end(begin), int(np.count_nonzero(self._lengths > begin))
            for low in range(0, alive, max(1, tokens)):
                high = min(low + max(1, tokens), alive)
                step = max(1, tokens // (high - low))
                for at in range(begin, end, step):
                    here = slice(low, high), slice(at, min(at + step, end))
                    padded = self._lengths[high - 1] < here[1].stop
                    real = self._real[here] if padded else None
                    yield Portion(here[0], self._tokens[here], self._rows[low:high], real)
            begin = end

    def _end(self, begin: int) -> int:
        """The furthest end of a portion from `begin` on that pads no more than is allowed."""
        lengths = self._lengths[self._lengths > begin] - begin
        ends = np.unique(lengths)
        own = np.array([np.minimum(lengths, end).sum() for end in ends])
        return begin + int(ends[len(lengths) * ends <= (1 + WASTE) * own][-1])

    def spread(self, scores: Tensor) -> Tensor:
        """Scores of the segments ``(segment, …)`` by row and group, ``(batch, group, …)``; 0 for a group without
        tokens.
        """
        whole = scores.new_zeros(self.batch * self.groups, *scores.shape[1:])
        return whole.index_copy_(0, self._sums, scores).unflatten(0, (self.batch, self.groups))
