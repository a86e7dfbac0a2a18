"""How adapters of the sentence encoder are trained: the guard's and that of the sentences' roles."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

from psychosafe_utils.finetune import last_checkpoint

RANK, LEARNING_RATE, BATCH_SIZE = 16, 1e-3, 16


def lora(**options) -> LoraConfig:
    """The adapters' shape; `options` are further ones of peft."""
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.1, **options)


def train_encoder(net: torch.nn.Module, rows: list[dict], collator, work: Path, *, epochs: float, seed: int = 0, **arguments) -> None:
    """Train what is trainable of a network with the encoder in it, resuming from the last checkpoint in `work`.

    Args:
        rows: Inputs of the network by name, with labels.
        collator: Makes a batch of rows.
        arguments: Further `TrainingArguments`.
    """
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, num_train_epochs=epochs, warmup_steps=100, lr_scheduler_type="cosine",
        weight_decay=0.01, train_sampling_strategy="group_by_length", seed=seed, data_seed=seed, save_steps=250, save_total_limit=1, logging_steps=50,
        remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, log_level="error", **arguments,
    )
    Trainer(model=net, args=arguments, train_dataset=rows, data_collator=collator).train(resume_from_checkpoint=last_checkpoint(work))
