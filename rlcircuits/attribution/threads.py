"""How many threads PyTorch works with on a CPU: one, where more are not faster.

Measured on two cores, in wall seconds on one and on two threads. SmolLM2-135M while both cores were free: 8 answers of 24
tokens 4.0 and 3.5, attributing 8 traces at head level 5.8 and 5.0, at nearly twice the CPU time. As soon as anything else
runs, threads wait for each other: the same answers 4.1 and 85, traces 1.7 and 22. Models of width 64 gain nothing in
either case. So models below `LARGE` work on one thread. Larger ones could not be measured; there PyTorch's own number stands.
``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, where set, is obeyed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: parameters from which on PyTorch's own number of threads stands
LARGE = 1_000_000_000


@contextlib.contextmanager
def suitable_threads(hf: PreTrainedModel) -> Iterator[None]:
    """Run what is inside on as many threads as suit a model, and set the number back."""
    asked = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    before = torch.get_num_threads()
    if asked or before == 1 or hf.device.type != "cpu" or sum(p.numel() for p in hf.parameters()) >= LARGE:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
