"""Training of the adapter that reads the roles of an answer's sentences and its class, on labelled answers, the sentences of most of which have been read one by one."""

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
from psychosafe_utils.sentence_roles import ADAPTER, LETTERS, ROLES, Reading, encode_exchanges, load_role_model, new_role_model, read_exchanges, token_sentences
from psychosafe_utils.tables import content_hash

EPOCHS, SMOOTHING, UNLABELLED = 3, 0.05, -100


def role_rows(table: pd.DataFrame, answers: list[Passage]) -> list[dict]:
    """Inputs and labels of the encoder, a row a window: each token of a sentence has the sentence's role, and the prompt's the class of the answer.

    Args:
        table: Columns prompt, response, label (1 to 3), roles (a letter a sentence; '' where nobody has read them).
        answers: From `embed_sentences`.
    """
    encoded, rows = encode_exchanges(table.prompt.tolist(), [masked_sentences(r, a.places) for r, a in zip(table.response, answers)]), []
    for i, own in enumerate(encoded["overflow_to_sample_mapping"]):
        roles = [LETTERS.index(letter) for letter in table.roles.iloc[own]] or [UNLABELLED] * len(answers[own].places)
        labels = np.array([*roles, len(ROLES) + table.label.iloc[own] - 1])
        rows.append({name: encoded[name][i] for name in load_encoder()[0].model_input_names} | {"labels": labels[token_sentences(encoded, i)].tolist()})
    return rows


def train_roles(table: pd.DataFrame, answers: list[Passage], folder: Path, work: Path, *, epochs: float = EPOCHS, seed: int = 0) -> None:
    """Train an adapter into `folder`, resuming from the last checkpoint in `work`; see `role_rows` for the data."""
    set_seed(seed)
    net = get_peft_model(new_role_model(), lora(task_type="TOKEN_CLS", target_modules=["query", "key", "value", "dense"]))
    collator = DataCollatorForTokenClassification(load_encoder()[0], label_pad_token_id=UNLABELLED)
    train_encoder(net, role_rows(table, answers), collator, work, epochs=epochs, seed=seed, label_smoothing_factor=SMOOTHING)
    save_adapter(net, folder, PACKAGE)
    load_role_model.cache_clear()  # an adapter that lay in the folder before may have been loaded


def crossed_readings(table: pd.DataFrame, answers: list[Passage], *, adapter: Path = ADAPTER, epochs: float = EPOCHS) -> list[Reading]:
    """What an adapter reads in each answer that saw none of its set: two learn from every other set, and the one that is kept from all but XSTest.

    Args:
        table: Columns prompt, response, set, kind ('' or XSTest's type of prompt), label, roles (a letter a sentence; '' where nobody has read them).
        answers: From `embed_sentences`.
        adapter: Folder of the one that is kept; it reads XSTest's answers.
    """
    names = sorted(set(table.set[table.kind == ""]))
    half = table.set.map({name: i % 2 for i, name in enumerate(names)}).fillna(2)
    work = cache_dir() / f"roles-{content_hash(table[half < 2].to_dict('list'), RANK, LEARNING_RATE, BATCH_SIZE, epochs, SMOOTHING)}"
    found = np.empty(len(table), object)
    for unseen, folder in enumerate((work / "0", work / "1", adapter)):
        seen, mine = (np.flatnonzero(rows) for rows in ((half < 2) & (half != unseen), half == unseen))
        train_roles(table.iloc[seen], [answers[i] for i in seen], folder, work / f"checkpoints-{unseen}", epochs=epochs)
        readings = read_exchanges(table.prompt.iloc[mine].tolist(), table.response.iloc[mine].tolist(), [answers[i] for i in mine], adapter=folder)
        for i, reading in zip(mine, readings):
            found[i] = reading
    return list(found)


def role_figures(table: pd.DataFrame, found: list[Reading]) -> pd.DataFrame:
    """How many sentences of each role readers found, and F1 of the adapters that saw nothing of their writer; the last row is the share of all that is named rightly."""
    read = np.flatnonzero(table.roles != "")
    labels = np.array([LETTERS.index(letter) for letter in "".join(table.roles.iloc[read])])
    mine = np.concatenate([found[i].roles for i in read]).argmax(axis=1)
    scores = f1_score(labels, mine, labels=range(len(ROLES)), average=None, zero_division=0)
    rows = [(role, int((labels == k).sum()), f"{scores[k]:.2f}") for k, role in enumerate(ROLES)]
    return pd.DataFrame([*rows, ("all: named rightly", len(labels), f"{(mine == labels).mean():.3f}")], columns=["role", "sentences", "F1"])
