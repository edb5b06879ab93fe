"""What a matrix's change looks like beside the matrix: how many directions it takes, and whether they are those that W had.

For W (rows × columns) and its change ΔW:

1. **Stable rank** of ΔW, ‖ΔW‖²_F / σ₁(ΔW)²: an effective rank, 1 where all the change is one direction (not more than r for a
   LoRA of rank r), the smaller side where every direction changes alike.
2. **Principal directions** of W: its k leading left and right singular vectors U_k, V_k. The share of the change within them is
   ‖U_kᵀ ΔW‖²_F / ‖ΔW‖²_F on the left (what is written) and ‖ΔW V_k‖²_F / ‖ΔW‖²_F on the right (what is read). A change that knows
   nothing of W has k / rows and k / columns.
3. Neither is ever decomposed whole. Both come a few rows at a time; products with them, again and again, turn a random block
   of columns into the leading right singular vectors (randomised subspace iteration, Halko, Martinsson and Tropp 2011). With no
   more columns than the block has, the result is exact; else σ₁ is found from below, and of directions that W has in equal
   strength any may be taken.

Source: arXiv 2511.08567 (updates of RL keep off the principal directions), 2505.11711.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: columns of a block beyond the directions wanted, and rounds of products
_BEYOND, _ROUNDS = 16, 5
Pieces = Callable[[], Iterable[tuple["Tensor", "Tensor"]]]


def spectrum(pieces: Pieces, rows: int, columns: int, directions: int) -> dict[str, float]:
    """Stable rank of ΔW, and the shares of it within W's principal directions.

    Args:
        pieces: gives, each time it is called, W and ΔW a few rows at a time, in order, of one floating dtype.
        rows, columns: the shape of both.
        directions: k; all of the smaller side where that is less.

    Returns:
        ``stable_rank``, ``left``, ``right``, and what chance gives, ``left_random``, ``right_random``; NaN where nothing changed.
    """
    import torch

    k = min(directions, rows, columns)
    if not any(bool(change.any()) for _, change in pieces()):
        return dict.fromkeys(("stable_rank", "left", "right"), math.nan) | _by_chance(k, rows, columns)
    first = next(iter(pieces()))[0]
    generator = torch.Generator().manual_seed(0)

    def block(size: int) -> Tensor:
        drawn = torch.randn(columns, min(size, columns), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn)[0].to(first)

    of_weight, of_change = block(k + _BEYOND), block(_BEYOND)
    for _ in range(_ROUNDS):
        weight_sum, change_sum = torch.zeros_like(of_weight), torch.zeros_like(of_change)
        for weight, change in pieces():
            weight_sum += weight.T @ (weight @ of_weight)
            change_sum += change.T @ (change @ of_change)
        of_weight, of_change = _orthonormal(weight_sum), _orthonormal(change_sum)
    written = [torch.cat(parts) for parts in zip(*((w @ of_weight, d @ of_change) for w, d in pieces()))]
    left, _, turn = torch.linalg.svd(written[0], full_matrices=False)
    u, v = left[:, :k], of_weight @ turn[:k].T
    largest = float(torch.linalg.svdvals(written[1])[0])
    total, read, begin = 0.0, 0.0, 0
    of_left = torch.zeros(k, columns, dtype=u.dtype, device=u.device)
    for _, change in pieces():
        total += float(change.double().square().sum())
        read += float((change @ v).double().square().sum())
        of_left += u[begin : begin + len(change)].T @ change
        begin += len(change)
    within = float(of_left.double().square().sum())
    shares = {"stable_rank": total / largest**2, "left": min(1.0, within / total), "right": min(1.0, read / total)}
    return shares | _by_chance(k, rows, columns)


def _by_chance(k: int, rows: int, columns: int) -> dict[str, float]:
    return {"left_random": k / rows, "right_random": k / columns}


def _orthonormal(block: Tensor) -> Tensor:
    """An orthonormal basis of what the block's columns span; scaled first, so that small changes keep their digits."""
    import torch

    return torch.linalg.qr(block / block.abs().max().clamp_min(torch.finfo(block.dtype).tiny))[0]
