"""What is trained: a small model whole, or an adapter on a real one. One code path for both.

1. A small model's weights all learn. Of a real model only LoRA weights (arXiv 2106.09685) learn, kept in float32 beside
   base weights of the recipe's dtype; the base's numbers never change.
2. What a policy is compared with is its start: a second copy of a small model, or the same model with its adapter
   switched off, which costs no memory.
3. The state of a training (weights that learn, optimiser, random numbers, the curve so far) is saved every few steps
   and found again, so that a run of hours survives the end of its process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paradigms.family.recipe import LoRA, Recipe
from rlcircuits.models import in_one_piece, is_adapter
from rlcircuits.storage import written

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE = "state.pt"
Reference = Callable[[], contextlib.AbstractContextManager["PreTrainedModel"]]
"""A function whose context gives the model that a policy is compared with."""


@dataclass(frozen=True)
class Start:
    """Where a training starts from, and what of it learns.

    Args:
        folder: a whole checkpoint with its tokenizer.
        lora: the adapter that learns, or None when all weights do.
        dtype: of the base's weights; LoRA weights are float32 whatever it is.
        scratch: a folder for what the training leaves while it runs; what it held before is gone on from.
        save_every: steps between two saved states; 0 saves none.
    """

    folder: Path
    lora: LoRA | None = None
    dtype: str = "float32"
    scratch: Path = Path()
    save_every: int = 0

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def model(self) -> PreTrainedModel:
        """The checkpoint as it is, for sampling; on a CUDA device where there is one."""
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.dtype)).to(device).eval()
        in_one_piece(model)
        return model

    def policy(self) -> PreTrainedModel:
        """The model that learns: the checkpoint, or it with a new adapter, which changes nothing yet."""
        from peft import get_peft_model

        whole = self.model()
        return whole.train() if self.lora is None else get_peft_model(whole, self.peft()).train()

    def peft(self) -> LoraConfig | None:
        """The adapter as peft and TRL take it."""
        from peft import LoraConfig

        if self.lora is None:
            return None
        return LoraConfig(
            r=self.lora.rank, lora_alpha=self.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )

    def reference(self, policy: PreTrainedModel) -> Reference:
        """A function whose context gives the start itself, whatever the policy has learned."""
        if self.lora is not None:
            return lambda: without_adapter(policy)
        frozen = self.model()
        return lambda: contextlib.nullcontext(frozen)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to the base's dtype where that is a 16-bit one."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, self.dtype))


def learning(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that learn."""
    return [weight for module in modules for weight in module.parameters() if weight.requires_grad]


@torch.no_grad()
def round_to(model: PreTrainedModel, dtype: str) -> None:
    """Round what learns to the nearest numbers of a dtype, in place."""
    for weight in learning(model):
        weight.copy_(weight.to(getattr(torch, dtype)))


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model within a peft wrapper, its adapter in place; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as if its adapter had never been; a model without one as it is."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
        yield model


def opened(folder: str | os.PathLike[str], base: Start) -> PreTrainedModel:
    """A saved policy: a whole checkpoint, or an adapter on the start it was trained from."""
    from peft import PeftModel

    if not is_adapter(Path(folder)):
        return Start(Path(folder), dtype=base.dtype).model()
    return PeftModel.from_pretrained(base.model(), os.fspath(folder)).eval()


def start_of(recipe: Recipe, folder: Path, scratch: str | os.PathLike[str]) -> Start:
    """Where a member of a recipe starts when its base lies in `folder`."""
    return Start(folder, recipe.lora, recipe.dtype, Path(scratch), recipe.save_every)


class Training:
    """The state of a training of ours: saved every few steps, found again when it starts anew.

    Args:
        start: says where and how often.
        parts: by name, what has a ``state_dict``; of modules only the parameters that learn are kept.
        generators: by name, random generators beside torch's own.
    """

    def __init__(
        self, start: Start, parts: dict[str, Any], generators: dict[str, torch.Generator] | None = None
    ) -> None:
        self.start, self.parts, self.generators = start, parts, generators or {}
        self.file = start.scratch / STATE

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Keep the state after `step` if it is due; `extra` holds plain values and tensors."""
        if not self.start.save_every or step % self.start.save_every:
            return
        state = {
            "step": step,
            "parts": {name: _state(part) for name, part in self.parts.items()},
            "generators": {name: one.get_state() for name, one in self.generators.items()},
            "random": random_state(),
            "extra": extra,
        }
        with written(self.file) as temporary:
            torch.save(state, temporary)

    def load(self) -> tuple[int, dict[str, Any]]:
        """The step to go on after, and what `extra` was; 0 and nothing at the beginning."""
        if not self.start.save_every or not self.file.is_file():
            return 0, {}
        state = torch.load(self.file, weights_only=True)
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module):
                part.load_state_dict(state["parts"][name], strict=False)
            else:
                part.load_state_dict(state["parts"][name])
        for name, one in self.generators.items():
            one.set_state(state["generators"][name])
        set_random_state(state["random"])
        return state["step"], state["extra"]


def random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Where torch's own random numbers are, on the host and on each CUDA device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all()


def set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Go on from there."""
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1])


def _state(part: Any) -> dict[str, Any]:
    if not isinstance(part, torch.nn.Module):
        return part.state_dict()
    return {name: weight.detach() for name, weight in part.named_parameters() if weight.requires_grad}
