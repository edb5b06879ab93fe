"""What the three TRL trainings share: settings for a processor, and a callback that records the curve.

1. One process, float32, no checkpoints, no reports: TRL's own defaults are for long runs on accelerators.
2. Every step's loss is looked at, so that a diverged training stops where it diverged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

    from paradigms.family.curves import Recorder


def settings(output: str, seed: int) -> dict[str, Any]:
    """Training arguments common to TRL's configurations."""
    return {
        "output_dir": output,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
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
    """Run the training with `recorder` at its side; `reward` names the logged mean reward, where there is one."""
    from transformers import PrinterCallback, TrainerCallback

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            recorder.measure(0, model)

        def on_log(self, args, state, control, logs=None, model=None, **_):
            if "loss" in logs:
                recorder.saw(state.global_step, logs["loss"], logs.get(reward, float("nan")))
                recorder.measure(state.global_step, model)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Record())
    trainer.train()
