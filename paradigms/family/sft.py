"""Supervised fine-tuning on worked demonstrations, by TRL's `SFTTrainer`.

1. The base starts from random weights and sees the demonstrations several times.
2. The control goes on from the base, on prompts the base has not seen, each once.
3. `rft` trains on the base's own right answers by the same function.
4. The loss is the mean NLL of the demonstration's tokens given the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paradigms.family.policy import Start
from paradigms.family.recipe import Shape
from paradigms.family.trainer import record, settings
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from paradigms.family.curves import Recorder

SFT_TRAINING = Step("family-sft", 1)
SFT_MORE_TRAINING = Step("family-sft-more", 1)


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A model with random weights, of the shape's architecture, fit to the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


def train_supervised(
    start: Start,
    demonstrations: Sequence[tuple[str, str]],
    steps: int,
    batch: int,
    learning_rate: float,
    beta2: float,
    warmup: int,
    shuffle: bool,
    seed: int,
    recorder: Recorder,
) -> PreTrainedModel:
    """Train from `start` on (question, worked answer) pairs and return the model.

    Args:
        start: the checkpoint, and what of it learns.
        demonstrations: (question, worked answer); repeated until `steps` are done.
        steps, batch, learning_rate, beta2, warmup: of AdamW with a linear decay.
        shuffle: whether their order is drawn from `seed`, or as given.
        recorder: collects the curve.

    Raises:
        TrainingDiverged: a loss was not finite.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": question, "completion": f" {worked}"} for question, worked in demonstrations]
    trainer = SFTTrainer(
        model=str(start.folder),
        args=SFTConfig(
            **settings(start, seed),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            adam_beta2=beta2,
            lr_scheduler_type="linear",
            warmup_steps=warmup,
            completion_only_loss=True,
            train_sampling_strategy="random" if shuffle else "sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=start.tokenizer(),
        peft_config=start.peft(),
    )
    record(trainer, recorder)
    return trainer.model
