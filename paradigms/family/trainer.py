"""What the three TRL trainings share: settings for a processor, and a callback that records the curve.

1. One process, no reports; float32, or autocast to the base's 16-bit dtype. Checkpoints only where the recipe says so:
   then a training goes on from the last when its process has ended.
2. Every step's loss is looked at, so that a diverged training stops where it diverged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paradigms.family.policy import Start, plain
from rlcircuits.models import in_one_piece
from rlcircuits.storage import written

if TYPE_CHECKING:
    from transformers import Trainer

    from paradigms.family.curves import Recorder

CURVE = "curve.pt"


def settings(start: Start, seed: int) -> dict[str, Any]:
    """Training arguments common to TRL's configurations."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(start.scratch / "trl"),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not cuda,
        "bf16": start.dtype == "bfloat16",
        "model_init_kwargs": {"dtype": start.dtype},
        "report_to": "none",
        "save_strategy": "steps" if start.save_every else "no",
        "save_steps": start.save_every or 1,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }


def record(trainer: Trainer, recorder: Recorder, reward: str | None = None) -> None:
    """Run the training, or go on with it, with `recorder` at its side; `reward` names the logged mean reward, where
    there is one.
    """
    from transformers import PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            recorder.measure(0, model)

        def on_save(self, args, state, control, **_):
            with written(Path(args.output_dir) / f"checkpoint-{state.global_step}" / CURVE) as temporary:
                torch.save(recorder.state(), temporary)

        def on_log(self, args, state, control, logs=None, model=None, **_):
            if "loss" in logs:
                recorder.saw(state.global_step, logs["loss"], logs.get(reward, float("nan")))
                recorder.measure(state.global_step, model)

    in_one_piece(plain(trainer.model))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Record())
    found = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
    if found is not None:
        recorder.go_on(torch.load(Path(found) / CURVE, weights_only=True))
    trainer.train(resume_from_checkpoint=found)
