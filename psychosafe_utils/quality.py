"""How good a corpus is: measures with their targets, each counted over what it looked at."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from psychosafe_utils.config import RISK_CLUSTERS
from psychosafe_utils.corpus import find_foreign_contacts, find_unsafe, near_duplicates
from psychosafe_utils.judges import rate_parts
from psychosafe_utils.references import contact_label, find_contacts
from psychosafe_utils.words import content_stems, sentences_of


def commonest_share(sentences: list[str]) -> float:
    """Share of the commonest of some sentences."""
    return pd.Series(sentences).value_counts(normalize=True).iloc[0] if sentences else 0.0


def distinct_n(texts: list[str], n: int = 3) -> float:
    """Different word n-grams as a share of all (Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(words[i:i + n]) for t in texts for words in [re.findall(r"[\w']+", t.lower())] for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _tfidf(*lists: list[str]) -> list[csr_matrix]:
    """A matrix with rows of unit length for each list of texts, on one vocabulary."""
    texts = [t for texts in lists for t in texts]
    rows = TfidfVectorizer(analyzer=content_stems, sublinear_tf=True).fit_transform(texts)
    ends = np.cumsum([len(texts) for texts in lists])
    return [rows[end - len(texts):end] for end, texts in zip(ends, lists)]


def nearest_similarity(texts: list[str], block: int = 500) -> float:
    """Mean cosine similarity (TF-IDF) of each text to its nearest neighbour among the others."""
    (rows,), nearest = _tfidf(texts), []
    for start in range(0, rows.shape[0], block):
        similarity = (rows[start:start + block] @ rows.T).toarray()
        similarity[np.arange(similarity.shape[0]), np.arange(start, start + similarity.shape[0])] = -1
        nearest.append(similarity.max(axis=1))
    return float(np.concatenate(nearest).mean())


def fits_own_prompt(table: pd.DataFrame, *, n_others: int = 9, seed: int = 0) -> pd.Series:
    """Whether each answer takes up a content word of its prompt and is nearer to it (TF-IDF) than to prompts of other scenarios.

    Args:
        table: Columns text, answer, cluster, scenario_id.
        n_others: Prompts of the same cluster (of all, where it has one scenario) that the own one is compared with, drawn with the seed.
    """
    rng = np.random.default_rng(seed)
    prompts, answers = _tfidf(table.text.tolist(), table.answer.tolist())
    scenario, cluster = table.scenario_id.to_numpy(), table.cluster.to_numpy()
    members = {c: np.flatnonzero(cluster == c) for c in set(cluster)}
    others = np.empty((len(table), n_others), dtype=int)
    for i in range(len(table)):
        rivals = members[cluster[i]][scenario[members[cluster[i]]] != scenario[i]]
        others[i] = rng.choice(rivals if len(rivals) else np.delete(np.arange(len(table)), i), n_others)

    def likeness(of: np.ndarray) -> np.ndarray:
        return np.asarray(prompts[of].multiply(answers).sum(axis=1)).ravel()

    best = np.max([likeness(others[:, k]) for k in range(n_others)], axis=0)
    # Nearer than another prompt with no word in common means at least one in common.
    return pd.Series(likeness(np.arange(len(table))) > best, index=table.index)


def _missing_part(row) -> bool:
    parts = rate_parts(row.text, row.answer, refusal_wanted=row.hard_case not in ("disclosure", "ambiguous"))
    return None in parts.values()


def measure_corpus(prompts: pd.DataFrame, pairs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The quality of a corpus beside its targets.

    Returns:
        Columns measure, value, target, met, looked_at; `met` is True, False, or None where a measure is only reported.
    """
    table = prompts.merge(pairs, on="prompt_id")
    risk = table[table.cluster.isin(RISK_CLUSTERS)]
    near = near_duplicates(prompts, 0.5)
    same = near[(near.split_a == near.split_b) & (near.jaccard >= 0.7)]
    across = near[near.split_a != near.split_b]
    situation = prompts.pair_id.where(prompts.pair_id != "", prompts.scenario_id)
    # Where no region is told, only an international service fits.
    misfits = sum(
        contact_label(c, cluster=row.cluster, also=row.also, role=row.role, region=row.region or "INT") != "fits"
        for row in risk.itertuples() for c in find_contacts(row.answer)
    )
    contacts = sum(len(find_contacts(answer)) for answer in risk.answer)
    openings, closings = zip(*((s[0], s[-1]) for s in map(sentences_of, risk.answer)))
    alike = len(set(same.prompt_a) | set(same.prompt_b)) / len(prompts)
    rows = [
        ("exact duplicates among prompts", float(prompts.text.duplicated().sum()), "0", 0.0, len(prompts)),
        ("exact duplicates among answers", float(pairs.answer.duplicated().sum()), "0", 0.0, len(pairs)),
        ("prompts with a near-duplicate in their split (Jaccard 0.7)", alike, "<= 2 %", 0.02, len(prompts)),
        ("near-duplicates across splits (Jaccard 0.5)", float(len(across)), "0", 0.0, len(prompts)),
        ("scenarios and look-alike pairs in two splits", float((prompts.groupby(situation).split.nunique() > 1).sum()), "0", 0.0, situation.nunique()),
        ("commonest opening sentence of an answer", commonest_share(list(openings)), "<= 1 %", 0.01, len(risk)),
        ("commonest closing sentence of an answer", commonest_share(list(closings)), "<= 1 %", 0.01, len(risk)),
        ("answers that fit one of nine other prompts better than their own", 1 - fits_own_prompt(risk, seed=seed).mean(), "<= 5 %", 0.05, len(risk)),
        ("contacts outside the registry, or of another cluster, role or region", float(misfits), "0", 0.0, contacts),
        ("answers without one of the four parts, by the rule rater", float(np.mean([_missing_part(r) for r in risk.itertuples()])), "<= 2 %", 0.02, len(risk)),
        ("answers of 60 to 160 words, share outside", float((~risk.answer.str.split().str.len().between(60, 160)).mean()), "0", 0.0, len(risk)),
        ("contacts unknown or superseded, any answer", float(len(find_foreign_contacts(prompts, pairs))), "0", 0.0, len(pairs)),
        ("words of the safety lexicon", float(len(find_unsafe(prompts, pairs))), "0", 0.0, len(prompts) + len(pairs)),
    ]
    measured = pd.DataFrame(rows, columns=["measure", "value", "target", "bound", "looked_at"])
    measured["met"] = measured.value <= measured.bound
    return measured[["measure", "value", "target", "met", "looked_at"]]


def one_template_corpus(table: pd.DataFrame) -> pd.Series:
    """The answers as they would be with one text a cluster: each cluster's first answer, for every prompt of it."""
    return table.cluster.map(table.groupby("cluster").answer.first())


def variety(table: pd.DataFrame, *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Distinct-3 and nearest-neighbour similarity of `n` answers drawn with the seed, beside one template a cluster.

    Both measures depend on how many texts are looked at, so both corpora are measured on the same rows.
    """
    table = table.sample(min(n, len(table)), random_state=seed)
    answers = {"this corpus": table.answer.tolist(), "one template a cluster": one_template_corpus(table).tolist()}
    return pd.DataFrame({name: {"distinct-3": distinct_n(texts), "mean nearest-neighbour similarity": nearest_similarity(texts)} for name, texts in answers.items()})
