"""QLoRA: a memory plan before it starts, training on the answers alone, and a run that resumes from its checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig, AutoModelForCausalLM, DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed,
)

from psychosafe_utils.config import DATA
from psychosafe_utils.generate import report_progress
from psychosafe_utils.models import add_rows, load_config, load_model
from psychosafe_utils.prompts import render_chat
from psychosafe_utils.tables import content_hash, sha256_of, write_atomically

SHAPES = DATA / "model_shapes"
NF4_BITS = 4 + 0.127  # a weight, and its share of the doubly quantised constants (QLoRA, arXiv 2305.14314, section 3)
RESERVE = 1.1  # what the allocator and the framework take on top


class Recipe(NamedTuple):
    """What a training run is made of, beside model and data. Lengths in tokens, steps in optimiser steps (0: by epochs)."""

    lora_r: int = 16
    lora_alpha: int = 32
    learning_rate: float = 5e-4
    epochs: float = 1.0
    max_steps: int = 0
    warmup_steps: int = 5
    batch_size: int = 4
    gradient_accumulation: int = 1
    max_length: int = 384
    gradient_checkpointing: bool = False
    eval_steps: int = 25
    seed: int = 0
    four_bit: bool = True
    first_layer: int = 0  # layers below get no adapter and no backward pass


class FitError(MemoryError):
    """Training that can't fit into this machine's memory."""


def model_shape(model_id: str):
    """A model's configuration: from the hub or its folder, or the committed shape when the hub is out of reach."""
    path = SHAPES / f"{model_id.split('/')[-1].lower()}.json"
    return AutoConfig.for_model(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else load_config(model_id)


def count_parameters(config) -> tuple[int, int, int]:
    """Parameters of a model as (in linear layers that 4 bits apply to, all others, of LoRA per unit of rank).

    The model is built without memory for its weights.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [
        module for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    ]
    packed = sum(module.weight.numel() for module in linear)
    per_rank = sum(module.in_features + module.out_features for module in linear)
    return packed, sum(p.numel() for p in model.parameters()) - packed, per_rank


def memory_plan(config, recipe: Recipe) -> pd.Series:
    """Expected memory of training, in GB (1e9 bytes), by part.

    Activations follow Korthikanti et al. 2022 (arXiv 2205.05198): 34 bytes a token, hidden unit and layer in 16 bits without
    the attention matrix; with gradient checkpointing the layer inputs and one layer. Logits are kept once in 16 and twice in
    32 bits. An estimate to plan with, not a measurement.
    """
    packed, others, per_rank = count_parameters(config)
    text = config.get_text_config()
    adapter = per_rank * recipe.lora_r
    tokens = recipe.batch_size * recipe.max_length
    layers, hidden = text.num_hidden_layers, text.hidden_size
    # An MLP wider than the 4 x hidden that the formula assumes, or narrower, changes the larger part of it.
    layer = 34 * tokens * hidden * (0.5 + 0.5 * text.intermediate_size * 1.5 / (4 * hidden))
    kept = 2 * tokens * hidden * layers + layer if recipe.gradient_checkpointing else layer * layers
    parts = {
        "weights": packed * (NF4_BITS if recipe.four_bit else 16) / 8 + others * 2,
        "adapter": adapter * 4.0, "gradients": adapter * 4.0, "optimiser": adapter * 8.0,
        "activations": kept + tokens * text.vocab_size * 10.0,
    }
    plan = pd.Series(parts) / 1e9
    return pd.concat([plan, pd.Series({"total": plan.sum() * RESERVE})])


def available_memory_gb() -> float:
    """Free memory in GB: of the GPU where there is one, of the machine otherwise."""
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    return free / 1e9


def check_fit(plan: pd.Series, available_gb: float) -> None:
    """Raise FitError when a memory plan does not fit into `available_gb`, naming what helps."""
    if plan["total"] > available_gb:
        raise FitError(
            f"training needs about {plan['total']:.1f} GB, of which activations {plan['activations']:.1f} GB, but "
            f"{available_gb:.1f} GB are free; lower batch_size or max_length, or set gradient_checkpointing=True or four_bit=True"
        )


def encode_pair(tokenizer, prompt: str, answer: str, system_prompt: str, max_length: int, *, ends: bool = True) -> dict:
    """Token ids of a chat and its answer (or of how it begins, where it does not end); labels are -100 outside the answer, so that the loss is on the answer alone."""
    head = tokenizer(render_chat(tokenizer, prompt, system_prompt), add_special_tokens=False).input_ids
    tail = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ends
    ids = (head + tail)[:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ([-100] * len(head) + tail)[:max_length]}


def encode_pairs(tokenizer, rows: pd.DataFrame, system_prompt: str, max_length: int) -> Dataset:
    """A dataset of encoded pairs.

    Args:
        rows: Columns text and answer; `ends` where some answers are beginnings alone.
    Raises:
        ValueError: When a row's prompt leaves no room for its answer; names the row.
    """
    encoded = [encode_pair(tokenizer, row.text, row.answer, system_prompt, max_length, ends=getattr(row, "ends", True)) for row in rows.itertuples()]
    for row, item in zip(rows.itertuples(), encoded):
        if all(label == -100 for label in item["labels"]):
            raise ValueError(f"prompt {row.prompt_id} fills all {max_length} tokens, nothing is left to learn from; raise max_length")
    return Dataset.from_list(encoded)


def rows_in_order(lengths: list[int], batch_size: int, seed: int) -> list[int]:
    """Rows so ordered that each batch has rows of like length, which saves padding, and the batches come in random order.

    The library's own grouping goes from long rows to short ones again and again, so that training always ends on short rows, whatever those teach.
    """
    rng = np.random.default_rng(seed)
    by_length = sorted(rng.permutation(len(lengths)).tolist(), key=lambda i: lengths[i])
    rest = len(lengths) % batch_size
    # The shortest rows, which fill no batch, come last.
    batches, left_over = [by_length[i:i + batch_size] for i in range(rest, len(lengths), batch_size)], by_length[:rest]
    if not batches:
        return left_over
    # The longest rows come first: if memory is short, it shows at the start.
    turn = [len(batches) - 1, *rng.permutation(len(batches) - 1)]
    return [i for b in turn for i in batches[b]] + left_over


def _collate(collator, items: list[dict]) -> dict:
    """A batch, padded on the left, with how many of the last positions carry a label: only their logits are computed, for a vocabulary is wide."""
    batch = collator(items)
    first = int((batch["labels"] != -100).any(dim=0).int().argmax())
    return {**batch, "logits_to_keep": batch["labels"].shape[1] - first + 1}


def _loss_on_kept(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Cross entropy of the labelled tokens, from the logits of the last positions alone."""
    kept = labels[:, -(outputs.logits.shape[1] - 1):].to(outputs.logits.device)
    total = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].float().flatten(0, 1), kept.flatten(), ignore_index=-100, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else (kept != -100).sum())


class _Progress(TrainerCallback):
    """A line on stderr at every twentieth of the training and at every evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.perf_counter(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % max(1, state.max_steps // 20) == 0:
            report_progress("training steps", state.global_step - self.first, state.max_steps - self.first, self.started)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        print(f"validation loss {metrics['eval_loss']:.3f} at step {state.global_step}", file=sys.stderr, flush=True)


def _training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=recipe.batch_size, per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation, learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs, max_steps=recipe.max_steps or -1, warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="cosine", logging_steps=max(1, recipe.eval_steps // 5), eval_strategy="steps",
        eval_steps=recipe.eval_steps, eval_on_start=True, save_strategy="steps", save_steps=recipe.eval_steps,
        save_total_limit=2, seed=recipe.seed, data_seed=recipe.seed, report_to="none", disable_tqdm=True,
        activation_checkpointing=recipe.gradient_checkpointing, use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(), remove_unused_columns=False, log_level="error",
        prediction_loss_only=True,
        train_sampling_strategy="sequential",  # the rows are put in order before, by `rows_in_order`
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; one that a kill cut short is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for path in reversed(found):
        if (path / "trainer_state.json").exists():
            return str(path)
        shutil.rmtree(path)
    return None


def learning_curve(log_history: list[dict]) -> pd.DataFrame:
    """Table `curves` from a Trainer's log: mean loss a token on train and validation, by step."""
    rows = [
        {"step": entry["step"], "split": split, "loss": float(entry[key]), "learning_rate": entry.get("learning_rate", float("nan"))}
        for entry in log_history for split, key in (("train", "loss"), ("val", "eval_loss")) if key in entry
    ]
    return pd.DataFrame(rows).drop_duplicates(["step", "split"], keep="last").reset_index(drop=True)


def adapter_hash(folder: Path) -> str:
    """Short hash of an adapter's weights."""
    return sha256_of(Path(folder) / "adapter_model.safetensors")[:16]


def find_adapter(run_dir: Path, generations: pd.DataFrame) -> Path:
    """Folder of the adapter that made a run's tuned answers.

    Raises:
        FileNotFoundError: When it is not among the run's adapters.
    """
    wanted = generations.adapter.iloc[0]
    for weights in sorted((Path(run_dir) / "training").glob("*/adapter_model.safetensors")):
        if adapter_hash(weights.parent) == wanted:
            return weights.parent
    raise FileNotFoundError(f"no adapter with hash {wanted} in {run_dir}/training; run 03_finetune_qlora again")


def train_adapter(
    model_id: str, revision: str, tokenizer, train: pd.DataFrame, val: pd.DataFrame, system_prompt: str, *, recipe: Recipe, work: Path,
    token_ids: tuple[int, ...] = (),
) -> tuple[Path, pd.DataFrame]:
    """Train a LoRA adapter on pairs; resume from the last checkpoint, or return what an earlier run finished.

    Args:
        train, val: Columns prompt_id, text, answer; `ends` as for `encode_pairs`.
        tokenizer: Where it has more tokens than the model, room is made for them.
        token_ids: Tokens whose rows of the vocabulary are trained as well: new ones, or free ones, whose rows may be all alike.
        work: Folder for checkpoints; the run gets a folder in it that is named after all that made it.
    Returns:
        Folder of the adapter, and its learning curve (table `curves`).
    """
    pairs = [f[[c for c in ("text", "answer", "ends") if c in f]].values.tolist() for f in (train, val)]
    folder = Path(work) / f"adapter-{content_hash(model_id, revision, recipe, system_prompt, token_ids, pairs)}"
    curve_file = folder / "log_history.json"
    if not curve_file.exists():
        log = _train(model_id, tokenizer, train, val, system_prompt, recipe, folder, token_ids)
        write_atomically(curve_file, lambda p: p.write_text(json.dumps(log), encoding="utf-8"))
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return folder, learning_curve(json.loads(curve_file.read_text(encoding="utf-8")))


def _targets(model, first_layer: int) -> str | list[str]:
    """What gets an adapter: every linear layer, or those of the layers from `first_layer` on, by name (peft's own selection by layer passes over small models)."""
    if not first_layer:
        return "all-linear"
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in linear if (found := re.search(r"\.layers\.(\d+)\.", name)) and int(found[1]) >= first_layer]


def _rows_to_train(model, token_ids: list[int]) -> dict[str, list[int]]:
    """The tokens' rows, by the name of the matrix: of the input side, and of the output side where it is another matrix."""
    sides = [model.get_input_embeddings()] + ([] if model.config.get_text_config().tie_word_embeddings else [model.get_output_embeddings()])
    return {name.split(".")[-1]: token_ids for name, module in model.named_modules() if any(module is side for side in sides)}


@torch.no_grad()
def _set_apart(model, token_ids: tuple[int, ...], seed: int) -> None:
    """Give tokens rows at right angles to each other, of the vocabulary's mean length: free tokens often share one row, and small steps would not part them."""
    for weight in {id(side.weight): side.weight for side in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        drawn = torch.randn(weight.shape[1], len(token_ids), generator=torch.Generator().manual_seed(seed))
        rows = torch.linalg.qr(drawn)[0].T * weight.float().norm(dim=1).mean()
        weight[list(token_ids)] = rows.to(weight)


def save_adapter(model, folder: Path, base: str) -> None:
    """Write an adapter under its base model's name, not the folder that it lies in on this machine, and without peft's empty card."""
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)  # new tokens' rows are kept beside the matrices, not the whole vocabulary
    (Path(folder) / "README.md").unlink(missing_ok=True)


def _train(model_id, tokenizer, train, val, system_prompt, recipe: Recipe, folder: Path, token_ids=()) -> list[dict]:
    """One training run into `folder`; returns the Trainer's log."""
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(recipe.seed)
    model = load_model(model_id, four_bit=recipe.four_bit, for_training=True)
    if recipe.four_bit and recipe.gradient_checkpointing:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, target_modules=_targets(model, recipe.first_layer), task_type="CAUSAL_LM")
    add_rows(model, tokenizer)
    if token_ids:
        _set_apart(model, token_ids, recipe.seed)
        lora.trainable_token_indices = _rows_to_train(model, list(token_ids))
    model = get_peft_model(model, lora)
    rows = encode_pairs(tokenizer, train, system_prompt, recipe.max_length)
    trainer = Trainer(
        model=model, args=_training_arguments(recipe, folder), callbacks=[_Progress()],
        train_dataset=rows.select(rows_in_order([len(ids) for ids in rows["input_ids"]], recipe.batch_size, recipe.seed)),
        eval_dataset=encode_pairs(tokenizer, val, system_prompt, recipe.max_length),
        data_collator=partial(_collate, DataCollatorForSeq2Seq(tokenizer, padding=True)), compute_loss_func=_loss_on_kept,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    save_adapter(model, folder, model_id)
    return trainer.state.log_history
