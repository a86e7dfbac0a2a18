"""Batched generation whose rows are written as they are made, so that a killed run resumes to the same table."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from filelock import FileLock
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from psychosafe_utils.journals import append_rows, read_rows
from psychosafe_utils.prompts import render_chat
from psychosafe_utils.tables import TableError, content_hash


class Decoding(NamedTuple):
    """How an answer is decoded: token limit, temperature (0 is greedy), seed, prompts in a batch."""

    max_new_tokens: int = 160
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 32


class Answer(NamedTuple):
    """One answer, why it ended (`stop` or `length`), and its length in tokens."""

    response: str
    finish_reason: str
    n_tokens: int


def report_progress(label: str, done: int, total: int, started: float) -> None:
    """One line on stderr, which notebooks that are kept in git leave out."""
    rate = done / max(time.perf_counter() - started, 1e-9)
    print(f"{label}: {done}/{total}, {rate:.2f} a second", file=sys.stderr, flush=True)


def shares_prefix_cache(model) -> bool:
    """Whether a prefix's cache may be reused: not where recurrent layers keep a state instead of keys and values."""
    text_config = model.config.get_text_config()
    layer_types = getattr(text_config, "layer_types", None) or ["full_attention"]
    return set(layer_types) == {"full_attention"}


def prefix_cache(model, ids: list[int], length: int) -> tuple[DynamicCache | None, int]:
    """Keys and values of the first `length` tokens that all chats begin with, `ids` being one of them, computed once; and how many tokens that is: 0 where it would not pay."""
    if length < 16 or not shares_prefix_cache(model):
        return None, 0
    cache = DynamicCache(config=model.config)
    model(torch.tensor([ids[:length]], device=model.device), past_key_values=cache, logits_to_keep=1)
    return cache, length


def common_prefix(ids: list[list[int]]) -> int:
    """How many tokens all chats begin with; one token of each stays outside, because generation must start from something."""
    return min(len(os.path.commonprefix(ids)), min(map(len, ids)) - 1) if len(ids) > 1 else 0


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for what will be generated; the library's own copies all that it holds at each token."""

    def __init__(self, layer: DynamicLayer, n: int, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._length = layer.keys.shape[-2]
        self._buffers = [self._with_room(states, n, room) for states in (layer.keys, layer.values)]
        self.keys, self.values = (buffer[:, :, :self._length] for buffer in self._buffers)

    @staticmethod
    def _with_room(states: torch.Tensor, n: int, room: int) -> torch.Tensor:
        _, heads, length, width = states.shape
        buffer = states.new_empty(n, heads, length + room, width)
        buffer[:, :, :length] = states
        return buffer

    def update(self, key_states, value_states, *args, **kwargs):
        start, self._length = self._length, self._length + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, start:self._length] = states
        self.keys, self.values = (buffer[:, :, :self._length] for buffer in self._buffers)
        return self.keys, self.values


def _expanded_cache(cache: DynamicCache, n: int, room: int) -> DynamicCache:
    """The prefix's cache for `n` chats, with room for `room` more tokens each."""
    expanded = DynamicCache()
    expanded.layers = [_RoomyLayer(layer, n, room) for layer in cache.layers]
    return expanded


def _pad_behind_prefix(tokenizer, ids: list[list[int]], shared: int) -> tuple[list[list[int]], list[list[int]]]:
    """Chats of one length with their attention masks; padding goes between the shared prefix and each chat's own tokens."""
    gaps = [max(map(len, ids)) - len(chat) for chat in ids]
    padded = [chat[:shared] + [tokenizer.pad_token_id] * gap + chat[shared:] for chat, gap in zip(ids, gaps)]
    return padded, [[1] * shared + [0] * gap + [1] * (len(chat) - shared) for chat, gap in zip(ids, gaps)]


def forward_inputs(model, tokenizer, ids: list[list[int]], cache: DynamicCache | None, shared: int) -> dict:
    """What one forward pass over a batch of chats takes, behind a cache of their first `shared` tokens (see `prefix_cache`).

    Positions are counted without padding, and the last position is each chat's last token.
    """
    padded, mask = (torch.tensor(rows, device=model.device) for rows in _pad_behind_prefix(tokenizer, ids, shared))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    past = None if cache is None else _expanded_cache(cache, len(ids), padded.shape[1] - shared)
    return {"input_ids": padded[:, shared:], "attention_mask": mask, "position_ids": positions[:, shared:], "past_key_values": past, "use_cache": False}


def _decode_batch(model, tokenizer, ids: list[list[int]], cache, shared: int, decoding: Decoding) -> list[Answer]:
    """Answers to one batch of chats."""
    padded, mask = _pad_behind_prefix(tokenizer, ids, shared)
    width = len(padded[0])
    past = None if cache is None else _expanded_cache(cache, len(ids), width - shared + decoding.max_new_tokens)
    sampling = {"do_sample": True, "temperature": decoding.temperature} if decoding.temperature > 0 else {"do_sample": False}
    output = model.generate(
        input_ids=torch.tensor(padded, device=model.device), attention_mask=torch.tensor(mask, device=model.device),
        past_key_values=past, max_new_tokens=decoding.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling,
    )
    return [_answer(tokenizer, tokens, model) for tokens in output[:, width:].tolist()]


def _answer(tokenizer, tokens: list[int], model) -> Answer:
    """Text of one row of new tokens, cut at the first end-of-text token."""
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip()
    return Answer(text, "length" if stop is None else "stop", len(tokens) if stop is None else stop)


def _read_journal(path: Path) -> dict[str, Answer]:
    """Answers of a journal by prompt_id."""
    return {row.pop("prompt_id"): Answer(**row) for row in read_rows(path)}


@torch.inference_mode()
def generate_answers(
    model, tokenizer, prompts: pd.DataFrame, system_prompt: str, *, decoding: Decoding, journal: Path, label: str = "",
) -> pd.DataFrame:
    """One answer a prompt, in the order of `prompts`.

    The batches depend on the prompts alone, never on what a journal already holds, because in bf16 an answer depends a
    little on its batch: so a resumed run gives the same text as an undisturbed one.

    Args:
        prompts: Columns prompt_id and text; `begins` where the answer's first words are given (they are not part of the response).
        system_prompt: Text, or '' for none.
        journal: JSONL file that answers are appended to, a batch at a time; must be named after all that made them.
        label: Name of this work in the progress lines.
    Returns:
        Columns prompt_id, response, finish_reason, n_tokens.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(journal) + ".lock"):
        done = _read_journal(journal)
        chats = {
            row.prompt_id: tokenizer(render_chat(tokenizer, row.text, system_prompt) + getattr(row, "begins", ""), add_special_tokens=False).input_ids
            for row in prompts.itertuples()
        }
        order = sorted(chats, key=lambda prompt_id: (len(chats[prompt_id]), prompt_id))
        batches = [order[i:i + decoding.batch_size] for i in range(0, len(order), decoding.batch_size)]
        todo = [(i, batch) for i, batch in enumerate(batches) if not set(batch) <= set(done)]
        cache, shared = prefix_cache(model, chats[order[0]], common_prefix(list(chats.values()))) if todo else (None, 0)
        started, before = time.perf_counter(), len(done)
        for i, batch in todo:
            torch.manual_seed(decoding.seed + i)
            answers = _decode_batch(model, tokenizer, [chats[p] for p in batch], cache, shared, decoding)
            new = {p: a for p, a in zip(batch, answers) if p not in done}
            append_rows(journal, [{"prompt_id": p, **a._asdict()} for p, a in new.items()])
            done |= new
            report_progress(label, len(done) - before, len(chats) - before, started)
    rows = [{"prompt_id": p, **done[p]._asdict()} for p in prompts.prompt_id]
    return pd.DataFrame(rows, columns=["prompt_id", *Answer._fields]).astype({"n_tokens": int})


def generation_rows(
    answers: pd.DataFrame, *, model: str, revision: str, condition: str, seed: int, adapter: str = "",
) -> pd.DataFrame:
    """Rows of table `generations` from the answers of one condition; ids are hashes that do not tell the condition."""
    made_by = {"model": model, "revision": revision, "adapter": adapter, "condition": condition, "seed": seed}
    ids = [content_hash(made_by, prompt_id) for prompt_id in answers.prompt_id]
    return answers.assign(generation_id=ids, p_refuse=float("nan"), **made_by)


def generate_condition(
    model, tokenizer, prompts: pd.DataFrame, system_prompt: str, *, decoding: Decoding, work: Path,
    model_id: str, revision: str, condition: str, adapter: str = "", weights: str = "",
) -> pd.DataFrame:
    """Rows of table `generations` for one condition, resumable through a journal in folder `work`.

    Args:
        model_id: Name that the table shows; `revision` says which weights, `adapter` which tuning (a hash, or '').
        weights: Numeric type and quantisation, from `models.weights_name`, because they change the text.
    """
    asked = prompts[[c for c in ("prompt_id", "text", "begins") if c in prompts]].values.tolist()
    made_of = [model_id, revision, adapter, weights, system_prompt, decoding, asked]
    journal = Path(work) / f"{condition}-{content_hash(made_of)}.jsonl"
    answers = generate_answers(model, tokenizer, prompts, system_prompt, decoding=decoding, journal=journal, label=condition)
    if list(answers.prompt_id) != list(prompts.prompt_id):
        raise TableError(f"{journal} does not hold the prompts asked for; delete it and run again")
    return generation_rows(
        answers, model=model_id, revision=revision, condition=condition, seed=decoding.seed, adapter=adapter,
    )
