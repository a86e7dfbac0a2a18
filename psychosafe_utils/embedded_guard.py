"""A guard for the CPU, trained on our own corpus (`guard_training`): words first, a tuned sentence encoder where words leave a doubt."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import hstack
from scipy.special import expit, logsumexp
from sklearn.feature_extraction.text import HashingVectorizer

from psychosafe_utils.benchmarks import load_coconot, load_simple_safety, load_xstest
from psychosafe_utils.config import CLUSTERS, DATA
from psychosafe_utils.corpus import load_contrast, load_corpus
from psychosafe_utils.embeddings import embed, embed_sentences
from psychosafe_utils.guard import JUDGEMENTS, Verdict
from psychosafe_utils.refusals import refusal_probabilities
from psychosafe_utils.sentence_roles import read_exchanges
from psychosafe_utils.stats import bootstrap_interval, f1, roc_interval

MODEL = Path(__file__).parent / "rubric" / "guard_model.npz"
CARD = MODEL.with_name("GUARD_MODEL.md")
ADAPTER = DATA / "adapters" / "guard_encoder"
WORD_FEATURES, LETTER_FEATURES = 2**17, 2**17


class GuardModel(NamedTuple):
    """Weights of hashed words and letters, and of the tuned embedding for each cluster, shape (384, clusters), each with its bias; the logit beyond which words decide alone;
    slopes and offset that make a probability of the words' logit (alone, shape (2,)), and of words' and embedding's (together, shape (3,))."""

    words: np.ndarray
    words_bias: float
    head: np.ndarray
    head_bias: np.ndarray
    sure: float
    alone: np.ndarray
    together: np.ndarray


def word_features(texts: list[str]):
    """Hashed words, pairs and triples of words, and letters within words, a sparse row a text."""
    parts = [
        HashingVectorizer(n_features=WORD_FEATURES, ngram_range=(1, 3), alternate_sign=False).transform(texts),
        HashingVectorizer(n_features=LETTER_FEATURES, analyzer="char_wb", ngram_range=(2, 5), alternate_sign=False).transform(texts),
    ]
    return hstack(parts, format="csr")


@cache
def load_guard_model() -> GuardModel:
    """The committed model (its card stands beside it)."""
    with np.load(MODEL, allow_pickle=False) as arrays:
        return GuardModel(*(arrays[name].astype(float) if arrays[name].ndim else float(arrays[name]) for name in GuardModel._fields))


def harm_logits(by_cluster: np.ndarray) -> np.ndarray:
    """Logit of any harm against none, shape (n,), from logits of the clusters, shape (n, clusters)."""
    harmless = CLUSTERS.index("benign")
    return logsumexp(np.delete(by_cluster, harmless, axis=1), axis=1) - by_cluster[:, harmless]


def harm_probabilities(texts: list[str], model: GuardModel | None = None, *, adapter: Path = ADAPTER, words_alone: bool = False) -> np.ndarray:
    """Calibrated probability that each message asks for harm, shape (n,); the encoder reads those that words leave in doubt."""
    model = model or load_guard_model()
    logits = word_features(texts) @ model.words + model.words_bias
    p = expit(model.alone[0] * logits + model.alone[1])
    doubtful = np.flatnonzero(np.abs(logits) <= model.sure)
    if len(doubtful) and not words_alone:
        read = harm_logits(embed([texts[i] for i in doubtful], adapter=adapter) @ model.head + model.head_bias)
        p[doubtful] = expit(model.together[0] * logits[doubtful] + model.together[1] * read + model.together[2])
    return p


def guard_messages(messages: pd.DataFrame) -> pd.DataFrame:
    """The three judgements of each exchange, as probabilities: columns prompt_harmful, response_refuses, response_harmful; NaN where there is no response.

    A response counts as harmful where it complies with a harmful request: the product of the two. No harmful answer was ever written to learn from.

    Args:
        messages: Columns prompt and response ('' for none).
    """
    harmful, given = harm_probabilities(messages.prompt.tolist()), (messages.response.str.strip() != "").to_numpy()
    refuses = np.full(len(messages), np.nan)
    if given.any():
        asked, said = messages.prompt[given].tolist(), messages.response[given].tolist()
        answers = embed_sentences(said)
        refuses[given] = 1 - refusal_probabilities(asked, said, embed(asked), answers, read_exchanges(asked, said, answers))[:, 0]  # in part or in whole
    return pd.DataFrame({"prompt_harmful": harmful, "response_refuses": refuses, "response_harmful": harmful * (1 - refuses)}, index=messages.index)


def verdicts(probabilities: pd.DataFrame) -> list[Verdict]:
    """Yes from one half on, `n/a` where there is no response."""
    said = [["n/a" if p != p else "yes" if p >= 0.5 else "no" for p in row] for row in probabilities[list(JUDGEMENTS)].to_numpy()]
    return [Verdict(*row) for row in said]


def guard_figures(sets: pd.DataFrame, probabilities: np.ndarray, **bootstrap) -> pd.DataFrame:
    """F1 of harm, recall, false alarms and ROC area of a guard, a row a set, with intervals.

    Args:
        sets: Columns set, label (safe or unsafe), a row a message.
        probabilities: Of harm, shape (n,); NaN counts as unread and as no alarm.
    """
    rows, said = [], (np.nan_to_num(probabilities, nan=0.0) >= 0.5).astype(float)
    for name, place in sets.groupby("set", sort=False).indices.items():
        unsafe, mine = (sets.label.to_numpy()[place] == "unsafe"), said[place]
        row = {"set": name, "harmful": int(unsafe.sum()), "harmless": int((~unsafe).sum()), "unread": int(np.isnan(probabilities[place]).sum())}
        row |= {"recall": mine[unsafe].mean() if unsafe.any() else np.nan, "false alarms": mine[~unsafe].mean() if (~unsafe).any() else np.nan}
        if unsafe.any() and (~unsafe).any():
            found = bootstrap_interval(np.column_stack([mine, unsafe]).astype(float), f1, **bootstrap)
            row |= {"F1": found.estimate, "F1 low": found.low, "F1 high": found.high, "ROC area": roc_interval(np.nan_to_num(probabilities[place]), unsafe, **bootstrap).estimate}
        rows.append(row)
    return pd.DataFrame(rows)


def reliability(sets: pd.DataFrame, probabilities: np.ndarray, *, n_bins: int = 8) -> pd.DataFrame:
    """Mean probability beside the share that is harmful, in bins of equal number, a line a set of both kinds: columns set, p, share, n."""
    rows = []
    for name, place in sets.groupby("set", sort=False).indices.items():
        unsafe, p = sets.label.to_numpy()[place] == "unsafe", probabilities[place]
        if not 0 < unsafe.sum() < len(unsafe):
            continue
        for part in np.array_split(np.argsort(p, kind="stable"), min(n_bins, len(p))):
            rows.append({"set": name, "p": p[part].mean(), "share": unsafe[part].mean(), "n": len(part)})
    return pd.DataFrame(rows, columns=["set", "p", "share", "n"])


def unseen_messages() -> pd.DataFrame:
    """Messages that the guard has not seen: test splits of the corpus and of the contrast pairs, and benchmarks where they are at hand: prompt_id, text, set, label."""
    prompts, contrast = load_corpus()[0], load_contrast()
    public = {"XSTest": load_xstest()[0], "CoCoNot": load_coconot()[0], "SimpleSafetyTests": load_simple_safety()[0]}
    tables = [t[t.split == "test"].assign(set=name, label=lambda t: np.where(t.cluster == "benign", "safe", "unsafe")) for name, t in (("corpus", prompts), ("contrast pairs", contrast))]
    tables += [t[t.label != "other"].assign(set=name) for name, t in public.items() if t is not None]
    return pd.concat([t[["prompt_id", "text", "set", "label"]] for t in tables], ignore_index=True)
