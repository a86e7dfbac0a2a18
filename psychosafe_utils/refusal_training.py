"""Training of the refusal model on labelled answers, each set tested by a model that has not seen it; `python -m psychosafe_utils train-refusals`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from psychosafe_utils.agreement import label_agreement
from psychosafe_utils.benchmarks import load_xstest_answers
from psychosafe_utils.config import DATA
from psychosafe_utils.corpus import load_corpus
from psychosafe_utils.embeddings import embed, embed_sentences
from psychosafe_utils.refusals import MODEL, RefusalModel, answer_words, load_refusal_model, predicted_classes, refusal_classes, refusal_features, rule_features, rule_refusal
from psychosafe_utils.role_training import crossed_readings, role_figures
from psychosafe_utils.sentence_roles import N_FEATURES, REFUSAL_CLASSES
from psychosafe_utils.tables import put_markdown_table

COMPONENTS, INVERSE_PENALTY = 150, 0.02
# Of the model of words. A pattern one standard deviation off is as large an input as one of some forty different words in a row of unit length.
WORD_INVERSE_PENALTY, PATTERN_SCALE = 3.0, 0.15
CARD = MODEL.with_name("REFUSAL_MODEL.md")
N_FOLDS = 4
# Never learned from: a trial with it read XSTest no better, so it tells how the model reads what it has not seen.
HELD_BACK = "refusals_misread"


def corpus_answers(n: int = 150, seed: int = 0) -> pd.DataFrame:
    """Answers of the corpus's training split: supportive refusals, plain ones, and answers to harmless messages, `n` of each kind at most."""
    prompts, pairs = load_corpus()
    table = prompts[(prompts.split == "train") & (prompts.hard_case == "")].merge(pairs, on="prompt_id").rename(columns={"text": "prompt", "answer": "response"})
    kind = table.cluster.where(table.cluster.isin(("benign", "out_of_scope")), "risk")
    drawn = pd.concat([rows.sample(min(n, len(rows)), random_state=seed) for _, rows in table.groupby(kind)])
    return drawn.assign(label=np.where(drawn.cluster == "benign", 1, 2), set="corpus, training split", kind="")


def written_answers(name: str) -> pd.DataFrame:
    """A file of labelled answers in `data/rater_tests`, columns as of `labelled_answers`."""
    rows = pd.read_json(DATA / "rater_tests" / f"{name}.jsonl", lines=True)
    writer = " " + rows.writer if "writer" in rows else ""
    return rows.assign(set=name + writer, kind="", label=rows.label.map({label: i for i, label in enumerate(REFUSAL_CLASSES, start=1)}))


def labelled_answers() -> pd.DataFrame:
    """All labelled answers to learn from: prompt, response, label (1-3), set (file, writer or model), kind ('' or XSTest's type of prompt), roles (of its sentences, '' if unread)."""
    names = sorted(path.stem for path in (DATA / "rater_tests").glob("refusals*.jsonl"))
    tables = [corpus_answers(), *(written_answers(name) for name in names if name != HELD_BACK)]
    xstest = load_xstest_answers()
    if xstest is not None:
        tables.append(xstest.assign(prompt=xstest.text, set="XSTest " + xstest.model))
    return pd.concat(tables, ignore_index=True)[["prompt", "response", "label", "set", "kind", "roles"]].fillna({"roles": ""})


def fit_refusal_model(features: np.ndarray, words: csr_matrix, labels: np.ndarray, n_patterns: int) -> RefusalModel:
    """Both linear models, each with its scaling folded in. What the adapter reads goes into one of them alone: with it in both, the two err together more often.

    Args:
        features: Shape (n, features): embeddings, what the adapter read (`role_features`), and `n_patterns` patterns.
        words: From `answer_words`.
        labels: 1, 2 or 3, each at least once.
    """
    by_words = _fit_words(features[:, features.shape[1] - n_patterns:], words, labels)
    return RefusalModel(*_fit_sentences(features, labels, N_FEATURES + n_patterns), *by_words)


def _fit_sentences(features: np.ndarray, labels: np.ndarray, n_patterns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a logistic regression on the leading components of the embeddings and on the last `n_patterns` columns, what the adapter read among them."""
    split = features.shape[1] - n_patterns
    scaler, pattern_scaler = StandardScaler().fit(features[:, :split]), StandardScaler().fit(features[:, split:])
    pca = PCA(min(COMPONENTS, len(features) - 1, split), random_state=0).fit(scaler.transform(features[:, :split]))
    # Half a standard deviation a component: a pattern says more than a component.
    shrink = 0.5 / np.sqrt(pca.explained_variance_)
    inputs = np.hstack([pca.transform(scaler.transform(features[:, :split])) * shrink, pattern_scaler.transform(features[:, split:])])
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=500).fit(inputs, labels)
    onto = (pca.components_.T * shrink) @ fitted.coef_[:, :len(shrink)].T / scaler.scale_[:, None]
    patterns = fitted.coef_[:, len(shrink):].T / pattern_scaler.scale_[:, None]
    bias = fitted.intercept_ - scaler.mean_ @ onto - pattern_scaler.mean_ @ patterns
    return np.vstack([onto, patterns]), bias


def _fit_words(patterns: np.ndarray, words: csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a logistic regression on words and patterns."""
    scaler = StandardScaler().fit(patterns)
    inputs = hstack([words, csr_matrix(scaler.transform(patterns) * PATTERN_SCALE)], format="csr")
    fitted = LogisticRegression(C=WORD_INVERSE_PENALTY, max_iter=150, tol=1e-3).fit(inputs, labels)
    onto = fitted.coef_[:, words.shape[1]:].T * PATTERN_SCALE / scaler.scale_[:, None]
    return np.vstack([fitted.coef_[:, :words.shape[1]].T, onto]), fitted.intercept_ - scaler.mean_ @ onto


def held_out_classes(table: pd.DataFrame, features: np.ndarray, words: csr_matrix, n_patterns: int) -> pd.Series:
    """The class of each answer by a model that saw nothing of its set, nor, for XSTest, any answer to its type of prompt."""
    found, is_xstest = pd.Series(0, index=table.index), table.kind != ""
    fold = table.kind.map({kind: i % N_FOLDS for i, kind in enumerate(sorted(set(table.kind)))})
    for _, rows in table.groupby(["set", fold.where(is_xstest, -1)]):
        kinds = set(rows.kind) - {""}
        seen = ((table.set != rows.set.iloc[0]) & ~table.kind.isin(kinds)).to_numpy()
        model = fit_refusal_model(features[seen], words[seen], table.label[seen].to_numpy(), n_patterns)
        found[rows.index] = predicted_classes(model.probabilities(features[rows.index], words[rows.index]))
    return found


def agreement_by_set(table: pd.DataFrame, found: pd.Series) -> pd.DataFrame:
    """Accuracy and F1 of any refusal against compliance and kappa of three classes, a row a set, with intervals and the accuracy of the patterns alone."""
    by_rule, rows = pd.Series([rule_refusal(r, p)[1].score for p, r in zip(table.prompt, table.response)], table.index), []
    for name, group in table.groupby("set"):
        labels, mine = group.label, found[group.index]
        any_refusal, three = label_agreement(mine > 1, labels > 1), label_agreement(mine, labels)
        rows.append({
            "set": name, "answers": len(group), "any refusal": f"{any_refusal.accuracy:.3f} [{any_refusal.accuracy_low:.3f}, {any_refusal.accuracy_high:.3f}]", "F1": f"{f1_score(labels > 1, mine > 1):.3f}",
            "kappa, three classes": f"{three.kappa:.2f} [{three.kappa_low:.2f}, {three.kappa_high:.2f}]",
            "patterns alone": f"{((by_rule[group.index] > 1) == (labels > 1)).mean():.3f}",
        })
    return pd.DataFrame(rows)


def train_refusal_model() -> pd.DataFrame:
    """Train on all labelled answers, write the model and the figures of its card, and return those."""
    table = labelled_answers()
    prompts, responses = table.prompt.tolist(), table.response.tolist()
    answers = embed_sentences(responses)
    readings = crossed_readings(table, answers)
    features, words, n_patterns = refusal_features(prompts, responses, embed(prompts), answers, readings), answer_words(responses), len(rule_features("", "x"))
    figures = agreement_by_set(table, held_out_classes(table, features, words, n_patterns))
    model = fit_refusal_model(features, words, table.label.to_numpy(), n_patterns)
    arrays = {name: value.astype(np.float16 if name == "word_weights" else np.float32) for name, value in model._asdict().items()}
    with open(MODEL, "wb") as file:
        np.savez_compressed(file, **arrays)
    load_refusal_model.cache_clear()
    unseen = written_answers(HELD_BACK)
    found = pd.Series(refusal_classes(unseen.prompt.tolist(), unseen.response.tolist()), unseen.index)
    figures = pd.concat([figures, agreement_by_set(unseen.assign(set=HELD_BACK), found)], ignore_index=True)
    put_markdown_table(figures, CARD, "figures")
    put_markdown_table(role_figures(table, readings), CARD, "roles")
    return figures
