"""What each sentence of an answer does (declines, gives what was asked, helps otherwise, cautions, or none of these) and whether the whole refuses; read by the sentence encoder with an adapter (`role_training`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, BatchEncoding

from psychosafe_utils.config import DATA
from psychosafe_utils.embeddings import Passage, encoder_folder, load_encoder, masked_sentences

REFUSAL_CLASSES = ("full_compliance", "full_refusal", "partial_refusal")

# In the order of their letters in the labelled answers: DCAMO.
ROLES = ("declines", "gives what was asked", "helps otherwise", "cautions", "other")
LETTERS = "DCAMO"
DECLINES, GIVES, HELPS = range(3)
ADAPTER = DATA / "adapters" / "sentence_roles"
# Letters of the prompt that are read (and tokens: a Korean letter can be three), and tokens of a window: a longer answer is read in several, each behind the prompt.
PROMPT_PART, WINDOW = 300, 448
N_FEATURES = 6


class Reading(NamedTuple):
    """Probabilities of what each sentence of an answer does, shape (sentences, roles), and of the answer's class, shape (3,)."""

    roles: np.ndarray
    classes: np.ndarray


def encode_exchanges(prompts: list[str], sentences: list[list[str]]) -> BatchEncoding:
    """Tokens of prompt and answer, a row a window; `overflow_to_sample_mapping` says whose."""
    tokenizer = load_encoder()[0]
    opening = tokenizer([p[:PROMPT_PART] for p in prompts], add_special_tokens=False, truncation=True, max_length=PROMPT_PART, return_offsets_mapping=True)
    parts = [[prompt[:offsets[-1][1] if offsets else 0]] for prompt, offsets in zip(prompts, opening.offset_mapping)]
    return tokenizer(parts, sentences, is_split_into_words=True, truncation="only_second", max_length=WINDOW, return_overflowing_tokens=True)


def token_sentences(encoded: BatchEncoding, window: int) -> np.ndarray:
    """Which sentence each token of a window belongs to, shape (tokens,); -1 for the prompt's and the marks between, which stand for the whole answer."""
    return np.array([word if part == 1 else -1 for word, part in zip(encoded.word_ids(window), encoded.sequence_ids(window))])


def new_role_model():
    """The sentence encoder with an untrained head for the roles and, behind them, the classes."""
    return AutoModelForTokenClassification.from_pretrained(encoder_folder(), num_labels=len(ROLES) + len(REFUSAL_CLASSES), dtype=torch.float32)


@cache
def load_role_model(adapter: str):
    """The sentence encoder with an adapter's weights merged into it, and the adapter's head."""
    return PeftModel.from_pretrained(new_role_model(), adapter).merge_and_unload().eval()


@torch.inference_mode()
def read_exchanges(prompts: list[str], responses: list[str], answers: list[Passage], *, adapter: Path = ADAPTER, batch_size: int = 16) -> list[Reading]:
    """What the adapter reads in each answer: of a sentence the mean of its tokens, of the class that of the prompt's.

    Args:
        answers: From `embed_sentences`.
        adapter: Folder of the adapter.
    """
    if not responses:
        return []
    tokenizer, model = load_encoder()[0], load_role_model(str(adapter))
    encoded = encode_exchanges(prompts, [masked_sentences(r, a.places) for r, a in zip(responses, answers)])
    sums = [np.zeros((len(a.places) + 1, len(ROLES) + len(REFUSAL_CLASSES))) for a in answers]  # the last row is of the prompt's tokens
    order = sorted(range(len(encoded.input_ids)), key=lambda i: len(encoded.input_ids[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        padded = tokenizer.pad({name: [encoded[name][i] for i in batch] for name in tokenizer.model_input_names}, return_tensors="pt")
        for i, p in zip(batch, model(**padded).logits.softmax(-1).numpy()):
            where = token_sentences(encoded, i)
            np.add.at(sums[encoded["overflow_to_sample_mapping"][i]], where, p[:len(where)])
    return [_reading(rows) for rows in sums]


def _reading(sums: np.ndarray) -> Reading:
    """Probabilities from sums over tokens, a row a sentence and one of the prompt's."""
    roles, classes = sums[:-1, :len(ROLES)], sums[-1, len(ROLES):]
    roles[roles.sum(axis=1) == 0, -1] = 1  # letters that the encoder doesn't know
    return Reading(roles / roles.sum(axis=1, keepdims=True), classes / classes.sum())


def role_features(reading: Reading) -> list[float]:
    """Whether one sentence declines and another gives what was asked, how much there is of declining, of giving, and of help in place of it, and the log odds of either refusal against compliance.

    Help counts as given as far as no sentence declines: a reader of single sentences often can't tell advice that was asked for from advice that was not.
    """
    declines, gives, helps = (reading.roles[:, role] for role in (DECLINES, GIVES, HELPS))
    both, refused = np.outer(declines, gives), declines.max()
    np.fill_diagonal(both, 0)
    odds = np.log(reading.classes[1:] / reading.classes[0])
    return [both.max(), *(np.log1p(x.sum()) for x in (declines, gives + helps * (1 - refused), helps * refused)), *odds]
