"""What each sentence of an answer does: declines, gives what was asked, helps otherwise, cautions, or none of these; read by the sentence encoder with an adapter (`role_training`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, BatchEncoding

from psychosafe_utils.config import DATA
from psychosafe_utils.embeddings import Passage, encoder_folder, load_encoder, masked_sentences

# In the order of their letters in the labelled answers: DCAMO.
ROLES = ("declines", "gives what was asked", "helps otherwise", "cautions", "other")
LETTERS = "DCAMO"
DECLINES, GIVES, HELPS = range(3)
ADAPTER = DATA / "adapters" / "sentence_roles"
# Letters of the prompt that are read (and tokens: a Korean letter can be three), and tokens of a window: a longer answer is read in several, each behind the prompt.
PROMPT_PART, WINDOW = 300, 448
N_FEATURES = 4


def encode_exchanges(prompts: list[str], sentences: list[list[str]]) -> BatchEncoding:
    """Tokens of prompt and answer, a row a window; `overflow_to_sample_mapping` says whose."""
    tokenizer = load_encoder()[0]
    opening = tokenizer([p[:PROMPT_PART] for p in prompts], add_special_tokens=False, truncation=True, max_length=PROMPT_PART, return_offsets_mapping=True)
    parts = [[prompt[:offsets[-1][1] if offsets else 0]] for prompt, offsets in zip(prompts, opening.offset_mapping)]
    return tokenizer(parts, sentences, is_split_into_words=True, truncation="only_second", max_length=WINDOW, return_overflowing_tokens=True)


def token_sentences(encoded: BatchEncoding, window: int) -> np.ndarray:
    """Which sentence each token of a window belongs to, shape (tokens,); -1 for the prompt's and the marks between."""
    return np.array([word if part == 1 else -1 for word, part in zip(encoded.word_ids(window), encoded.sequence_ids(window))])


def new_role_model():
    """The sentence encoder with an untrained head for the roles."""
    return AutoModelForTokenClassification.from_pretrained(encoder_folder(), num_labels=len(ROLES), dtype=torch.float32)


@cache
def load_role_model(adapter: str):
    """The sentence encoder with an adapter's weights merged into it, and the adapter's head."""
    return PeftModel.from_pretrained(new_role_model(), adapter).merge_and_unload().eval()


@torch.inference_mode()
def role_probabilities(prompts: list[str], responses: list[str], answers: list[Passage], *, adapter: Path = ADAPTER, batch_size: int = 16) -> list[np.ndarray]:
    """Probability of each role for each sentence of each answer, the mean of its tokens': arrays of shape (sentences, roles).

    Args:
        answers: From `embed_sentences`.
        adapter: Folder of the adapter.
    """
    if not responses:
        return []
    tokenizer, model = load_encoder()[0], load_role_model(str(adapter))
    encoded = encode_exchanges(prompts, [masked_sentences(r, a.places) for r, a in zip(responses, answers)])
    sums = [np.zeros((len(a.places), len(ROLES) + 1)) for a in answers]  # the last column counts tokens
    order = sorted(range(len(encoded.input_ids)), key=lambda i: len(encoded.input_ids[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        padded = tokenizer.pad({name: [encoded[name][i] for i in batch] for name in tokenizer.model_input_names}, return_tensors="pt")
        for i, p in zip(batch, model(**padded).logits.softmax(-1).numpy()):
            where = token_sentences(encoded, i)
            told = np.flatnonzero(where >= 0)
            np.add.at(sums[encoded["overflow_to_sample_mapping"][i]], where[told], np.column_stack([p[told], np.ones(len(told))]))
    for rows in sums:
        rows[rows[:, -1] == 0, -2:] = 1  # letters that the encoder doesn't know
    return [rows[:, :-1] / rows[:, -1:] for rows in sums]


def role_features(roles: np.ndarray) -> list[float]:
    """Whether one sentence declines and another gives what was asked, and how much there is of declining, of giving, and of help in place of it.

    Help counts as given as far as no sentence declines: a reader of single sentences often can't tell advice that was asked for from advice that was not.

    Args:
        roles: Shape (sentences, roles).
    """
    declines, gives, helps = roles[:, DECLINES], roles[:, GIVES], roles[:, HELPS]
    both, refused = np.outer(declines, gives), declines.max()
    np.fill_diagonal(both, 0)
    return [both.max(), *(np.log1p(x.sum()) for x in (declines, gives + helps * (1 - refused), helps * refused))]
