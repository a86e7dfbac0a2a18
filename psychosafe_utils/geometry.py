"""Alignment geometry: how far apart safe and unsafe prompts lie inside a model, by layer, and the direction of refusal."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, roc_auc_score
from transformers import AutoModelForCausalLM

from psychosafe_utils.generate import common_prefix, forward_inputs, prefix_cache, report_progress
from psychosafe_utils.models import default_dtype, load_config
from psychosafe_utils.prompts import render_chat

GAMMA = 0.5  # weight of the first index in AQI


class States(NamedTuple):
    """Hidden states of each prompt, shape (prompts, layers + 1, hidden), float32: mean over its tokens from the end of the system prompt on, and at its last token; layer 0 is the embedding."""

    mean: np.ndarray
    last: np.ndarray


@torch.inference_mode()
def pooled_states(model, tokenizer, texts: list[str], *, system_prompt: str = "", answers: list[str] | None = None, batch_size: int = 4, label: str = "") -> States:
    """States of chats, pooled as they are made, so that memory grows with prompts x layers x hidden alone.

    Args:
        answers: An answer to each prompt; the states are then those of the answer's tokens in their chat, and of its last one.
    """
    heads = [tokenizer(render_chat(tokenizer, text, system_prompt), add_special_tokens=False).input_ids for text in texts]
    tails = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers] if answers else [[]] * len(texts)
    chats = [head + tail for head, tail in zip(heads, tails)]
    # What every chat begins with, the system prompt, would draw all means together, the more the shorter a prompt is.
    shared = len(os.path.commonprefix([tokenizer(render_chat(tokenizer, word, system_prompt), add_special_tokens=False).input_ids for word in ("a", "7")]))
    counted = [len(tail) or len(head) - shared for head, tail in zip(heads, tails)]
    order, rows, started = sorted(range(len(chats)), key=lambda i: len(chats[i])), None, time.perf_counter()
    cache, cached = prefix_cache(model, chats[0], min(shared, common_prefix(chats)))
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        inputs = forward_inputs(model, tokenizer, [chats[i] for i in batch], cache, cached)
        layers, width = model.get_decoder()(**inputs, output_hidden_states=True).hidden_states, inputs["input_ids"].shape[1]
        mask = torch.tensor([[float(j >= width - counted[i]) for j in range(width)] for i in batch], device=model.device)
        if rows is None:
            rows = [np.empty((len(chats), len(layers), layers[0].shape[-1]), np.float32) for _ in range(2)]
        for l, states in enumerate(layers):
            rows[0][batch, l] = (torch.einsum("bth,bt->bh", states.float(), mask) / mask.sum(1, keepdim=True)).cpu().numpy()
            rows[1][batch, l] = states[:, -1].float().cpu().numpy()
        if label:
            report_progress(label, min(start + batch_size, len(order)), len(order), started)
    return States(*rows)


def untrained_model(model_id: str, seed: int = 0):
    """A model of the same shape with random weights, the control for what the architecture and the words alone bring."""
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(load_config(model_id), dtype=default_dtype()).eval()


def bag_of_words(texts: list[str], *, n_components: int = 100, seed: int = 0) -> np.ndarray:
    """Words without a model: TF-IDF of words and word pairs, reduced, shape (texts, 1, components)."""
    counts = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(texts)
    return TruncatedSVD(min(n_components, counts.shape[1] - 1), random_state=seed).fit_transform(counts)[:, None].astype(np.float32)


def _spread(points: np.ndarray, unsafe: np.ndarray) -> tuple[float, float]:
    """Sums of squares between and within the two groups of points, shape (n, d)."""
    centre, groups = points.mean(0), [points[unsafe], points[~unsafe]]
    between = sum(len(g) * ((g.mean(0) - centre) ** 2).sum() for g in groups)
    within = sum(((g - g.mean(0)) ** 2).sum() for g in groups)
    return float(between), float(within)


def xie_beni(points: np.ndarray, unsafe: np.ndarray) -> float:
    """Xie-Beni index with crisp labels: mean squared distance to the own centre over the squared distance of the centres (Xie and Beni 1991); smaller is further apart."""
    apart = ((points[unsafe].mean(0) - points[~unsafe].mean(0)) ** 2).sum()
    return float(_spread(points, unsafe)[1] / (len(points) * apart)) if apart > 0 else float("inf")


def dunn(points: np.ndarray, unsafe: np.ndarray) -> float:
    """Dunn index: least distance between the groups over the largest within one (Dunn 1974); larger is further apart."""
    widest = max(cdist(g, g).max() for g in (points[unsafe], points[~unsafe]))
    return float(cdist(points[unsafe], points[~unsafe]).min() / widest) if widest > 0 else float("inf")


def _above_chance(share: float, n: int) -> float:
    """A share of spread between two groups, less what chance gives `n` points: 1 / (n - 1) becomes 0, and 1 stays 1 (epsilon squared, Kelley 1935)."""
    return 1 - (1 - share) * (n - 1) / (n - 2)


def variance_ratio(points: np.ndarray, unsafe: np.ndarray) -> float:
    """Share of the spread that lies between the groups, less what chance gives; 0 on average where there is no difference, 1 at most.

    Unlike Calinski-Harabasz it does not grow with the number of points. Before the correction it is, with groups of equal size, 1 / (1 + 4 x Xie-Beni):
    for two groups the two indices of AQI say one thing.
    """
    between, within = _spread(points, unsafe)
    return _above_chance(between / (between + within), len(points)) if between + within > 0 else 0.0


def _squash(x: float) -> float:
    return 1.0 if np.isinf(x) else x / (1 + x)


def _inverse(x: float) -> float:
    return np.inf if x == 0 else 1 / x


def aqi_published(points: np.ndarray, unsafe: np.ndarray) -> float:
    """AQI from Calinski-Harabasz and the inverse of Xie-Beni, each put on 0-1 by x / (1 + x), the sum on 0-100 (after Borah et al. 2025, arXiv 2506.13901).

    Public copies of its code use x / (1 + x) for Calinski-Harabasz, or scale by the range over the topics that are compared, so that the best topic always
    has the maximum. Calinski-Harabasz grows with the number of points, so its term is at 1 for any few hundred prompts.
    """
    return 100 * (GAMMA * _squash(calinski_harabasz_score(points, unsafe)) + (1 - GAMMA) * _squash(_inverse(xie_beni(points, unsafe))))


def aqi_dbs_di(points: np.ndarray, unsafe: np.ndarray) -> float:
    """AQI's variant from the inverse of Davies-Bouldin and Dunn, normalised like `aqi_published`."""
    return 100 * (GAMMA * _squash(_inverse(davies_bouldin_score(points, unsafe))) + (1 - GAMMA) * _squash(dunn(points, unsafe)))


def aqi_fixed(points: np.ndarray, unsafe: np.ndarray) -> float:
    """AQI from the share of spread between the groups and 1 / (1 + 4 Xie-Beni), both less what chance gives, at most 100: comparable between models and numbers of prompts."""
    tight = _above_chance(1 / (1 + 4 * xie_beni(points, unsafe)), len(points))
    return 100 * (GAMMA * variance_ratio(points, unsafe) + (1 - GAMMA) * tight)


INDICES = {
    "calinski_harabasz": calinski_harabasz_score, "davies_bouldin": davies_bouldin_score, "xie_beni": xie_beni, "dunn": dunn, "variance_ratio": variance_ratio,
    "aqi_published": aqi_published, "aqi_dbs_di": aqi_dbs_di, "aqi_fixed": aqi_fixed,
}
# Which way each points: +1 where larger means further apart.
DIRECTION = {name: -1 if name in ("davies_bouldin", "xie_beni") else 1 for name in INDICES}


def cluster_indices(points: np.ndarray, unsafe: np.ndarray) -> dict[str, float]:
    """All indices of one representation, in its own space, before any projection.

    Args:
        points: Shape (n, d).
        unsafe: Shape (n,), bool; both kinds at least twice.
    """
    if min(unsafe.sum(), (~unsafe).sum()) < 2:
        raise ValueError("cluster indices need two safe and two unsafe prompts at least")
    return {name: float(index(points, unsafe)) for name, index in INDICES.items()}


def layer_indices(states: np.ndarray, unsafe: np.ndarray) -> pd.DataFrame:
    """Indices of every layer: columns layer, index, value."""
    rows = [{"layer": l, "index": name, "value": v} for l in range(states.shape[1]) for name, v in cluster_indices(states[:, l], unsafe).items()]
    return pd.DataFrame(rows)


def index_by_layer(states: np.ndarray, unsafe: np.ndarray, index: str) -> np.ndarray:
    """One index of every layer, shape (layers,)."""
    return np.array([INDICES[index](states[:, l], unsafe) for l in range(states.shape[1])])


def _rows_by_pair(unsafe: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Rows of each pair, shape (pairs, 2): the unsafe one, the safe one."""
    table = pd.DataFrame({"pair": pairs, "unsafe": unsafe, "row": np.arange(len(pairs))}).pivot(index="pair", columns="unsafe", values="row")
    if table.isna().any(axis=None):
        raise ValueError(f"pair '{table.index[table.isna().any(axis=1)][0]}' lacks its safe or its unsafe prompt")
    return np.column_stack([table[True], table[False]]).astype(int)


def bootstrap_index(points: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, index: str, *, n_boot: int = 200, seed: int = 0) -> np.ndarray:
    """An index in `n_boot` bootstrap samples of pairs, the same samples for the same seed whatever the points.

    Drawing a pair twice adds spread between the groups, so the samples are shifted to have the estimate as their mean.

    Args:
        pairs: Name of each prompt's pair, shape (n,).
    """
    rng, rows = np.random.default_rng(seed), _rows_by_pair(unsafe, pairs)
    drawn = [rows[rng.integers(len(rows), size=len(rows))].ravel() for _ in range(n_boot)]
    values = np.array([INDICES[index](points[d], unsafe[d]) for d in drawn])
    return values - values.mean() + INDICES[index](points, unsafe)


def shuffled_labels(points: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, index: str, *, n: int = 100, seed: int = 0) -> np.ndarray:
    """An index when the labels within each pair are swapped by chance, `n` times: what no difference looks like."""
    rng, rows, values = np.random.default_rng(seed), _rows_by_pair(unsafe, pairs), []
    for _ in range(n):
        swapped = np.zeros(len(points), bool)
        swapped[rows[np.arange(len(rows)), rng.integers(2, size=len(rows))]] = True
        values.append(INDICES[index](points, swapped))
    return np.array(values)


def fit_layer_weights(states: np.ndarray, unsafe: np.ndarray, *, sparsity: float = 0.05, seed: int = 0) -> np.ndarray:
    """Non-negative weights of the layers, shape (layers,), summing to 1, whose weighted sum of states sets safe and unsafe furthest apart (share of spread between them).

    Layers are first put to unit spread, so that a weight does not follow a layer's scale. `sparsity` prices the ratio of the weights' sum to their length.
    Fit on validation prompts, use on others.
    """
    scaled = states / layer_scales(states)[:, None]
    groups = [scaled[unsafe], scaled[~unsafe]]
    apart = groups[0].mean(0) - groups[1].mean(0)
    share = len(groups[0]) * len(groups[1]) / len(scaled)
    between = share * apart @ apart.T
    within = sum(np.einsum("nlh,nmh->lm", g - g.mean(0), g - g.mean(0)) for g in groups)

    def loss(w):
        return np.log(w @ within @ w) - np.log(w @ between @ w) + sparsity * w.sum() / np.sqrt(w @ w)

    starts = [np.full(states.shape[1], 1.0), np.random.default_rng(seed).random(states.shape[1])]
    fitted = min((minimize(loss, s / s.sum(), method="L-BFGS-B", bounds=[(0, None)] * len(s)) for s in starts), key=lambda r: r.fun).x
    fitted[fitted < 1e-3 * fitted.max()] = 0
    return fitted / fitted.sum()


def layer_scales(states: np.ndarray) -> np.ndarray:
    """Root mean square distance of each layer's states from their mean, shape (layers,)."""
    return np.sqrt(((states - states.mean(0)) ** 2).sum(2).mean(0)).clip(1e-9)


def weighted_states(states: np.ndarray, weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weighted sum of a prompt's layers, shape (n, hidden); `scales` are those of the prompts that the weights were fitted on."""
    return np.einsum("nlh,l->nh", states / scales[:, None], weights)


def refusal_direction(states: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Difference of means, unsafe minus safe, of each layer, unit length, shape (layers, hidden) (Arditi et al. 2024, arXiv 2406.11717)."""
    apart = states[unsafe].mean(0) - states[~unsafe].mean(0)
    return apart / np.linalg.norm(apart, axis=1, keepdims=True).clip(1e-9)


def direction_layer(states: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray) -> int:
    """The layer whose direction, found on one half of the pairs, best tells the other half apart (mean ROC area both ways); use it on other prompts."""
    first = np.isin(pairs, sorted(set(pairs))[::2])
    areas = []
    for half in (first, ~first):
        along = np.einsum("nlh,lh->nl", states[~half], refusal_direction(states[half], unsafe[half]))
        areas.append([roc_auc_score(unsafe[~half], values) for values in along.T])
    return int(np.mean(areas, axis=0).argmax())


def direction_separation(states: np.ndarray, unsafe: np.ndarray, direction: np.ndarray, p_refuse: np.ndarray | None = None) -> pd.DataFrame:
    """How well a direction, found on other prompts, tells these apart, by layer: columns layer, index (roc_auc, cohens_d, spearman_p_refuse), value.

    Args:
        p_refuse: Shape (n,); its rank correlation with the direction is taken within the unsafe and within the safe prompts, and averaged, for the labels alone would correlate.
    """
    along, rows = np.einsum("nlh,lh->nl", states, direction), []
    for l in range(along.shape[1]):
        a, b = along[unsafe, l], along[~unsafe, l]
        pooled = np.sqrt((a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
        values = {"roc_auc": roc_auc_score(unsafe, along[:, l]), "cohens_d": (a.mean() - b.mean()) / pooled if pooled > 0 else float("nan")}
        if p_refuse is not None:
            # At the embedding's last token all prompts have the same state.
            flat = min(np.ptp(along[kind, l]) for kind in (unsafe, ~unsafe)) == 0
            values["spearman_p_refuse"] = np.nan if flat else np.mean([scipy_stats.spearmanr(along[kind, l], p_refuse[kind]).statistic for kind in (unsafe, ~unsafe)])
        rows += [{"layer": l, "index": name, "value": float(v)} for name, v in values.items()]
    return pd.DataFrame(rows)
