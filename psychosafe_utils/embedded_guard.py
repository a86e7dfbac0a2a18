"""A guard for the CPU, trained on our own corpus: words first, a sentence encoder where words leave a doubt; and its training, `python -m psychosafe_utils train-guard`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from psychosafe_utils.benchmarks import load_coconot, load_simple_safety, load_xstest
from psychosafe_utils.corpus import load_contrast, load_corpus
from psychosafe_utils.embeddings import embed, embed_sentences
from psychosafe_utils.guard import JUDGEMENTS, Verdict
from psychosafe_utils.refusals import refusal_probabilities
from psychosafe_utils.stats import bootstrap_interval, f1, roc_interval
from psychosafe_utils.tables import put_markdown_table

MODEL = Path(__file__).parent / "rubric" / "guard_model.npz"
CARD = MODEL.with_name("GUARD_MODEL.md")
WORD_FEATURES, LETTER_FEATURES = 2**17, 2**17
# F1 on validation that the encoder may be spared for.
SPARED = 0.002


class GuardModel(NamedTuple):
    """Weights of the word model (hashed words and letters) and of the second model (embedding, then the word model's logit), each with its bias;
    the logit beyond which words decide alone; slope and offset that calibrate each model's logit."""

    words: np.ndarray
    words_bias: float
    second: np.ndarray
    second_bias: float
    sure: float
    calibration: np.ndarray


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


def harm_probabilities(texts: list[str], model: GuardModel | None = None, *, words_alone: bool = False) -> np.ndarray:
    """Calibrated probability that each message asks for harm, shape (n,); the encoder reads those that words leave in doubt."""
    model = model or load_guard_model()
    logits = word_features(texts) @ model.words + model.words_bias
    p = expit(model.calibration[0] * logits + model.calibration[1])
    doubtful = np.flatnonzero(np.abs(logits) < model.sure)
    if len(doubtful) and not words_alone:
        second = np.column_stack([embed([texts[i] for i in doubtful]), logits[doubtful]]) @ model.second + model.second_bias
        p[doubtful] = expit(model.calibration[2] * second + model.calibration[3])
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
        refuses[given] = 1 - refusal_probabilities(asked, said, embed(asked), embed_sentences(said))[:, 0]  # in part or in whole
    return pd.DataFrame({"prompt_harmful": harmful, "response_refuses": refuses, "response_harmful": harmful * (1 - refuses)}, index=messages.index)


def verdicts(probabilities: pd.DataFrame) -> list[Verdict]:
    """Yes from one half on, `n/a` where there is no response."""
    said = [["n/a" if p != p else "yes" if p >= 0.5 else "no" for p in row] for row in probabilities[list(JUDGEMENTS)].to_numpy()]
    return [Verdict(*row) for row in said]


def _labelled(split: str) -> pd.DataFrame:
    """Messages of a split of the corpus and of the contrast pairs: text, harmful, group (scenario or pair)."""
    prompts, contrast = load_corpus()[0], load_contrast()
    table = pd.concat([prompts[prompts.split == split].assign(group=lambda t: t.scenario_id), contrast[contrast.split == split].assign(group=lambda t: t.pair_id)])
    return table.assign(harmful=table.cluster != "benign")[["text", "harmful", "group"]].reset_index(drop=True)


def fit_guard(train: pd.DataFrame, val: pd.DataFrame) -> GuardModel:
    """Train both models, the second on logits that the first gave for groups it had not seen; calibrate (Platt 1999) and set the doubt on validation messages."""
    def regression(c):
        return LogisticRegression(C=c, class_weight="balanced", max_iter=1000)

    hashed, y = word_features(train.text.tolist()), train.harmful.to_numpy()
    unseen = cross_val_predict(regression(30), hashed, y, groups=train.group, cv=GroupKFold(4), method="decision_function")
    first = regression(30).fit(hashed, y)
    second = regression(10).fit(np.column_stack([embed(train.text.tolist()), unseen]), y)
    logits = first.decision_function(word_features(val.text.tolist()))
    doubts = second.decision_function(np.column_stack([embed(val.text.tolist()), logits]))
    lines = [LogisticRegression(C=1e6).fit(x[:, None], val.harmful) for x in (logits, doubts)]
    calibration = np.array([value for line in lines for value in (line.coef_[0, 0], line.intercept_[0])])
    by_words, by_both = (expit(calibration[i] * x + calibration[i + 1]) for i, x in ((0, logits), (2, doubts)))
    least = f1_score(val.harmful, by_both >= 0.5) - SPARED
    sure = next(s for s in [*np.linspace(0.5, 8, 31), np.inf] if f1_score(val.harmful, np.where(np.abs(logits) < s, by_both, by_words) >= 0.5) >= least)
    return GuardModel(first.coef_[0], float(first.intercept_[0]), second.coef_[0], float(second.intercept_[0]), float(sure), calibration)


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


def train_guard() -> pd.DataFrame:
    """Train on the corpus and the contrast pairs, write the model and the figures of its card, and return those."""
    model = fit_guard(_labelled("train"), _labelled("val"))
    arrays = {name: np.asarray(value, np.float16 if name == "words" else np.float32) for name, value in model._asdict().items()}
    with open(MODEL, "wb") as file:
        np.savez_compressed(file, **arrays)
    load_guard_model.cache_clear()
    sets = unseen_messages()
    figures = guard_figures(sets, harm_probabilities(sets.text.tolist()))
    put_markdown_table(figures.round(3).astype(object).where(figures.notna(), "-"), CARD, "figures")
    return figures
