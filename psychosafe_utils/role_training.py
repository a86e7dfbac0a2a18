"""Training of the adapter that reads the roles of an answer's sentences, on the labelled answers whose sentences have been read one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from peft import get_peft_model
from sklearn.metrics import f1_score
from transformers import DataCollatorForTokenClassification, set_seed

from psychosafe_utils.config import cache_dir
from psychosafe_utils.embeddings import PACKAGE, Passage, load_encoder, masked_sentences
from psychosafe_utils.encoder_training import BATCH_SIZE, LEARNING_RATE, RANK, lora, train_encoder
from psychosafe_utils.finetune import save_adapter
from psychosafe_utils.sentence_roles import ADAPTER, LETTERS, ROLES, encode_exchanges, load_role_model, new_role_model, role_probabilities, token_sentences
from psychosafe_utils.tables import content_hash

EPOCHS, SMOOTHING, UNLABELLED = 3, 0.05, -100


def role_rows(table: pd.DataFrame, answers: list[Passage]) -> list[dict]:
    """Inputs and labels of the encoder, a row a window: each token of a sentence has the sentence's role.

    Args:
        table: Columns prompt, response, roles (a letter a sentence).
        answers: From `embed_sentences`.
    """
    encoded, rows = encode_exchanges(table.prompt.tolist(), [masked_sentences(r, a.places) for r, a in zip(table.response, answers)]), []
    for i, own in enumerate(encoded["overflow_to_sample_mapping"]):
        roles = np.array([LETTERS.index(letter) for letter in table.roles.iloc[own]] + [UNLABELLED])
        rows.append({name: encoded[name][i] for name in load_encoder()[0].model_input_names} | {"labels": roles[token_sentences(encoded, i)].tolist()})
    return rows


def train_roles(table: pd.DataFrame, answers: list[Passage], folder: Path, work: Path, *, epochs: float = EPOCHS, seed: int = 0) -> None:
    """Train an adapter into `folder`, resuming from the last checkpoint in `work`; see `role_rows` for the data."""
    set_seed(seed)
    net = get_peft_model(new_role_model(), lora(task_type="TOKEN_CLS", target_modules=["query", "key", "value", "dense"]))
    collator = DataCollatorForTokenClassification(load_encoder()[0], label_pad_token_id=UNLABELLED)
    train_encoder(net, role_rows(table, answers), collator, work, epochs=epochs, seed=seed, label_smoothing_factor=SMOOTHING)
    save_adapter(net, folder, PACKAGE)
    load_role_model.cache_clear()  # an adapter that lay in the folder before may have been loaded


def crossed_roles(table: pd.DataFrame, answers: list[Passage], *, adapter: Path = ADAPTER, epochs: float = EPOCHS) -> list[np.ndarray]:
    """Roles of each answer's sentences by an adapter that saw no answer of its set: two learn from every other set, and the one that is kept from all.

    Args:
        table: Columns prompt, response, set, roles (a letter a sentence; '' where nobody has read them).
        answers: From `embed_sentences`.
        adapter: Folder of the one that is kept; it reads the sets of which nobody has read any sentence.
    """
    read = table.roles != ""
    half = table.set.map({name: i % 2 for i, name in enumerate(sorted(set(table.set[read])))}).fillna(2)
    work = cache_dir() / f"roles-{content_hash(table[read].to_dict('list'), RANK, LEARNING_RATE, BATCH_SIZE, epochs, SMOOTHING)}"
    found = np.empty(len(table), object)
    for unseen, folder in enumerate((work / "0", work / "1", adapter)):
        seen, mine = (np.flatnonzero(rows) for rows in (read & (half != unseen), half == unseen))
        train_roles(table.iloc[seen], [answers[i] for i in seen], folder, work / f"checkpoints-{unseen}", epochs=epochs)
        rows = role_probabilities(table.prompt.iloc[mine].tolist(), table.response.iloc[mine].tolist(), [answers[i] for i in mine], adapter=folder)
        for i, roles in zip(mine, rows):
            found[i] = roles
    return list(found)


def role_figures(table: pd.DataFrame, found: list[np.ndarray]) -> pd.DataFrame:
    """How many sentences of each role readers found, and F1 of the adapters that saw nothing of their writer; the last row is the share of all that is named rightly."""
    read = np.flatnonzero(table.roles != "")
    labels = np.array([LETTERS.index(letter) for letter in "".join(table.roles.iloc[read])])
    mine = np.concatenate([found[i] for i in read]).argmax(axis=1)
    scores = f1_score(labels, mine, labels=range(len(ROLES)), average=None, zero_division=0)
    rows = [(role, int((labels == k).sum()), f"{scores[k]:.2f}") for k, role in enumerate(ROLES)]
    return pd.DataFrame([*rows, ("all: named rightly", len(labels), f"{(mine == labels).mean():.3f}")], columns=["role", "sentences", "F1"])
