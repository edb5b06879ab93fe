"""SHA-256 of what losses and effects depend on, for the keys under which they are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rlcircuits.attribution.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOT_MODEL = {"_name_or_path", "transformers_version", "dtype", "architectures"}


def model_digests(hf: PreTrainedModel) -> dict[str, str]:
    """Digests of a model's weights and of its configuration."""
    config = {k: v for k, v in json.loads(hf.config.to_json_string(use_diff=False)).items() if k not in _NOT_MODEL}
    return {"model weights": weights_digest(hf), "model configuration": digest(config)}


def weights_digest(hf: PreTrainedModel) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's weights as they are in memory."""
    whole = hashlib.sha256()
    for name, weight in sorted(hf.state_dict().items()):
        whole.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        whole.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def traces_digest(traces: Sequence[Trace]) -> str:
    """SHA-256 of traces as JSON."""
    return digest([[trace.problem, trace.prompt, trace.answer] for trace in traces])


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
