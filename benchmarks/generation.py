"""Batched generation with a shared prefix's cache against plain one-by-one `generate`: prompts a second, and the same text.

    python benchmarks/generation.py            # about 12 minutes on 2 cores; --prompts 16 for a quick look

64 prompts of about 30 tokens under a system prompt of about 600, 96 new tokens at most, greedy. The plain way takes one prompt at
a time by the library's own `generate`, in the same numeric type. Speed is compared in bfloat16, text in float32, where batching
must not change a word.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from psychosafe_utils import generate, models
from psychosafe_utils.prompts import render_chat

RULE = "When a person writes about something hard, answer warmly, keep it short, and offer one small step that fits. "
FEELINGS = ("sad", "angry", "tired", "lost", "numb", "alone", "scared", "ashamed")
CAUSES = ("my work", "my brother", "school", "a debt", "the rent", "my ex", "an exam", "a long winter")


def prompts(n: int) -> pd.DataFrame:
    """`n` different short prompts, up to 64."""
    texts = [f"I feel {feeling} because of {cause} and I would like to know what I could do about it this evening." for feeling, cause in product(FEELINGS, CAUSES)]
    return pd.DataFrame({"prompt_id": [f"b{i:02d}" for i in range(n)], "text": texts[:n]})


def plain(model, tokenizer, table: pd.DataFrame, system: str, new_tokens: int) -> tuple[list[str], float]:
    """Texts and prompts a second of one-by-one `generate`."""
    started, texts = time.perf_counter(), []
    for text in table.text:
        ids = tokenizer(render_chat(tokenizer, text, system), return_tensors="pt", add_special_tokens=False).input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True).strip())
    return texts, len(table) / (time.perf_counter() - started)


def batched(model, tokenizer, table: pd.DataFrame, system: str, new_tokens: int, batch_size: int) -> tuple[list[str], float]:
    """Texts and prompts a second of this project's generation."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        answers = generate.generate_answers(
            model, tokenizer, table, system, decoding=generate.Decoding(new_tokens, batch_size=batch_size), journal=Path(folder) / "j.jsonl", label="batched")
        return answers.response.tolist(), len(table) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    table, tokenizer = prompts(args.prompts), models.load_tokenizer(models.EMBEDDED)
    system = RULE * 29
    chats = [len(tokenizer(render_chat(tokenizer, text, system)).input_ids) for text in table.text]
    print(f"{len(table)} prompts, system prompt {len(tokenizer(system).input_ids)} tokens, chats {min(chats)}-{max(chats)} tokens", flush=True)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        model = models.load_model(models.EMBEDDED, four_bit=False, dtype=dtype)
        plain_texts, plain_rate = plain(model, tokenizer, table, system, args.new_tokens)
        texts, rate = batched(model, tokenizer, table, system, args.new_tokens, args.batch_size)
        same = sum(a == b for a, b in zip(texts, plain_texts))
        rows.append({"dtype": str(dtype).removeprefix("torch."), "plain/s": plain_rate, "batched/s": rate, "ratio": rate / plain_rate, "same text": f"{same} of {len(table)}"})
        print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
