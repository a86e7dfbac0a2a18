"""Training of the embedded guard on the corpus and the contrast pairs: its words, and a LoRA adapter for its sentence encoder; `python -m psychosafe_utils train-guard`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import get_peft_model
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding, set_seed

from psychosafe_utils.config import CLUSTERS, cache_dir
from psychosafe_utils.corpus import load_contrast, load_corpus, load_plain_requests
from psychosafe_utils.embedded_guard import ADAPTER, CARD, MODEL, GuardModel, guard_figures, harm_probabilities, harm_logits, load_guard_model, unseen_messages, word_features
from psychosafe_utils.embeddings import MAX_TOKENS, PACKAGE, average_states, embed, load_encoder
from psychosafe_utils.encoder_training import BATCH_SIZE, LEARNING_RATE, RANK, lora, train_encoder
from psychosafe_utils.finetune import save_adapter
from psychosafe_utils.tables import content_hash, put_markdown_table

EPOCHS, SMOOTHING = 2, 0.05
# The head reads embeddings of this length instead of one, so that one learning rate serves it and the adapter.
HEAD_SCALE = 30
# Change of a message's probability that the encoder may be spared for.
SPARED = 0.1


def labelled_messages(split: str) -> pd.DataFrame:
    """Messages of a split of the corpus, and of the pairs of one-line requests: columns text, cluster."""
    tables = pd.concat([load_corpus()[0], load_contrast(), load_plain_requests()])
    return tables.loc[tables.split == split, ["text", "cluster"]].reset_index(drop=True)


class TunedEncoder(torch.nn.Module):
    """The sentence encoder with an adapter, and a linear head for the clusters: what kind of harm it is teaches more than that it is harm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = get_peft_model(load_encoder.__wrapped__()[1], lora(target_modules="all-linear"))  # a fresh copy: the shared one stays as it is
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, len(CLUSTERS))

    def forward(self, labels=None, **encoded) -> dict:
        """Mean cross entropy of smoothed labels, and logits, shape (n, clusters)."""
        logits = self.head(HEAD_SCALE * average_states(self.encoder(**encoded).last_hidden_state, encoded["attention_mask"]))
        return {"loss": None if labels is None else cross_entropy(logits, labels, label_smoothing=SMOOTHING), "logits": logits}


def tune_encoder(train: pd.DataFrame, folder: Path, work: Path, *, epochs: float = EPOCHS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Train an adapter into `folder`, resuming from the last checkpoint in `work`; returns the head for embeddings of unit length, shape (384, clusters), and its bias.

    Args:
        train: Columns text and cluster.
    """
    set_seed(seed)
    tokenizer, net = load_encoder()[0], TunedEncoder()
    rows = [{**tokenizer(text, truncation=True, max_length=MAX_TOKENS), "labels": CLUSTERS.index(cluster)} for text, cluster in zip(train.text, train.cluster)]
    train_encoder(net, rows, DataCollatorWithPadding(tokenizer), work, epochs=epochs, seed=seed)
    save_adapter(net.encoder, folder, PACKAGE)
    load_encoder.cache_clear()  # an adapter that lay in the folder before may have been loaded
    return HEAD_SCALE * net.head.weight.detach().numpy().T, net.head.bias.detach().numpy()


def fit_guard(train: pd.DataFrame, val: pd.DataFrame, folder: Path, work: Path, *, epochs: float = EPOCHS) -> GuardModel:
    """Train words and encoder, calibrate (Platt 1999) words alone and both together on validation messages, and set the doubt on them.

    Beyond it the encoder moves no validation message's probability by more than `SPARED`. F1 would not do: it hardly falls there where words are sure
    and wrong, but does on requests of another origin.

    Args:
        train, val: Columns text and cluster.
        folder: Receives the encoder's adapter.
        work: For checkpoints.
    """
    harmful, y = (t.cluster != "benign" for t in (train, val))
    words = LogisticRegression(C=30, class_weight="balanced", max_iter=1000).fit(word_features(train.text.tolist()), harmful)
    head, head_bias = tune_encoder(train, folder, work, epochs=epochs)
    by_words = words.decision_function(word_features(val.text.tolist()))
    both = np.column_stack([by_words, harm_logits(embed(val.text.tolist(), adapter=folder) @ head + head_bias)])
    alone, together = (LogisticRegression(C=1e6).fit(x, y) for x in (by_words[:, None], both))
    p_alone, p_together = alone.predict_proba(by_words[:, None])[:, 1], together.predict_proba(both)[:, 1]
    sure = np.abs(by_words[np.abs(p_alone - p_together) > SPARED]).max(initial=0.0)
    calibration = [np.append(line.coef_[0], line.intercept_) for line in (alone, together)]
    return GuardModel(words.coef_[0], float(words.intercept_[0]), head, head_bias, float(sure), *calibration)


def train_guard() -> pd.DataFrame:
    """Train on the corpus and the contrast pairs, write adapter, model and the figures of its card, and return those."""
    train = labelled_messages("train")
    model = fit_guard(train, labelled_messages("val"), ADAPTER, cache_dir() / f"guard-{content_hash(train.to_dict('list'), RANK, LEARNING_RATE, EPOCHS, BATCH_SIZE, SMOOTHING)}")
    arrays = {name: np.asarray(value, np.float16 if name == "words" else np.float32) for name, value in model._asdict().items()}
    with open(MODEL, "wb") as file:
        np.savez_compressed(file, **arrays)
    load_guard_model.cache_clear()
    sets = unseen_messages()
    figures = guard_figures(sets, harm_probabilities(sets.text.tolist()))
    put_markdown_table(figures.round(3).astype(object).where(figures.notna(), "-"), CARD, "figures")
    return figures
