"""Paired comparisons over prompts: means, differences, intervals, tests and effect sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Interval(NamedTuple):
    """An estimate with its percentile interval, in the unit of what was estimated, and how many prompts it rests on."""

    estimate: float
    low: float
    high: float
    n_prompts: int


def bootstrap_interval(values: np.ndarray, statistic, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of `statistic`, resampling whole prompts.

    Args:
        values: One row a prompt, shape (n,) or (n, k). NaN is rejected, not skipped.
        statistic: Takes an array (n_boot, n) or (n_boot, n, k), gives (n_boot,).
    Raises:
        ValueError: On NaN or no rows. A single prompt has an estimate, but NaN bounds.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        raise ValueError("need at least one prompt and no NaN; leave unscored prompts out and count them")
    estimate = float(statistic(values[None])[0])
    if len(values) == 1:
        return Interval(estimate, np.nan, np.nan, 1)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(n_boot, len(values)))
    tail = (1 - level) / 2
    drawn = statistic(values[draws])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), len(values))


def mean_interval(scores: np.ndarray, **bootstrap) -> Interval:
    """Mean of scores, shape (n prompts,), with its interval."""
    return bootstrap_interval(scores, lambda x: x.mean(axis=1), **bootstrap)


def difference_interval(scores: np.ndarray, baseline: np.ndarray, **bootstrap) -> Interval:
    """Mean of `scores` - `baseline`, paired by prompt, both shape (n prompts,)."""
    return mean_interval(np.asarray(scores, float) - np.asarray(baseline, float), **bootstrap)


def relative_interval(scores: np.ndarray, baseline: np.ndarray, **bootstrap) -> Interval:
    """Ratio of means - 1, prompts resampled in pairs; NaN where the baseline's mean is 0."""

    def ratio(x):
        below = x[..., 1].mean(axis=1)
        return x[..., 0].mean(axis=1) / np.where(below == 0, np.nan, below) - 1

    with np.errstate(all="ignore"):
        return bootstrap_interval(np.column_stack([scores, baseline]), ratio, **bootstrap)


def f1(pairs: np.ndarray) -> np.ndarray:
    """F1 of said against true, both 0 or 1, shape (samples, n, 2); NaN where neither says or is any."""
    with np.errstate(all="ignore"):
        return 2 * (pairs[..., 0] * pairs[..., 1]).sum(-1) / (pairs[..., 0].sum(-1) + pairs[..., 1].sum(-1))


def balanced_accuracy(refused: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Mean of the share of unsafe prompts refused and of safe ones not refused; NaN where one kind is missing. Last axis: prompts."""
    with np.errstate(all="ignore"):
        return ((refused * unsafe).sum(-1) / unsafe.sum(-1) + ((1 - refused) * (1 - unsafe)).sum(-1) / (1 - unsafe).sum(-1)) / 2


def balanced_accuracy_rows(refused: pd.DataFrame, unsafe: pd.Series, *, baseline: str, group: str, **bootstrap) -> list[dict]:
    """Rows of table `effects` for metric balanced_accuracy: each condition, and its difference to `baseline`, paired by prompt.

    Args:
        refused: A row a prompt, a column a condition, 0 or 1, NaN for unscored.
        unsafe: Whether each prompt should be refused.
        group: What the rows' `cluster` says.
    """
    rows = []
    for condition in refused:
        for against in [None] if condition == baseline else [None, baseline]:
            scored = refused[[condition] + ([against] if against else [])].dropna()
            values = np.column_stack([scored, unsafe[scored.index]]).astype(float)
            if not 0 < values[:, -1].sum() < len(values):
                continue
            # Columns are the condition, the one it is compared with (if any), and what is unsafe.
            interval = bootstrap_interval(
                values, lambda x: balanced_accuracy(x[..., 0], x[..., -1]) - sum(balanced_accuracy(x[..., i], x[..., -1]) for i in range(1, x.shape[-1] - 1)), **bootstrap,
            )
            name = condition if against is None else f"{condition} - {against}"
            rows.append({"contrast": name, "metric": "balanced_accuracy", "cluster": group, **interval._asdict(), "n_unscored": len(refused) - len(scored)})
    return rows


def roc_interval(scores: np.ndarray, positive: np.ndarray, **bootstrap) -> Interval:
    """Area under the ROC curve with its interval, prompts resampled; ties count half (Hanley and McNeil 1982)."""

    def area(x):
        ranks = stats.rankdata(x[..., 0], axis=-1)
        n_positive = x[..., 1].sum(-1)
        n_negative = x.shape[-2] - n_positive
        with np.errstate(all="ignore"):
            return ((ranks * x[..., 1]).sum(-1) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)

    return bootstrap_interval(np.column_stack([scores, positive]).astype(float), area, **bootstrap)


def wilcoxon_p(scores: np.ndarray, baseline: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zero differences count as ties (Pratt). 1.0 when all are equal."""
    differences = np.asarray(scores, float) - np.asarray(baseline, float)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue)


def cliffs_delta(scores: np.ndarray, baseline: np.ndarray) -> float:
    """P(score > baseline) - P(score < baseline) over all pairs of values, -1 to 1 (Cliff 1993)."""
    u = stats.mannwhitneyu(scores, baseline, method="asymptotic").statistic
    return float(2 * u / (len(scores) * len(baseline)) - 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values (Holm 1979); NaN stays NaN and counts for nothing.

    Not statsmodels' `multipletests`: it collects garbage at each call, a third of a second where a model is loaded.
    """
    p_values = np.asarray(p_values, dtype=float)
    adjusted, tested = np.full_like(p_values, np.nan), np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return adjusted


def _mean_row(contrast: str, metric: str, cluster: str, scores: pd.Series, bootstrap: dict) -> dict:
    known = scores.dropna()
    interval = mean_interval(known, **bootstrap) if len(known) else Interval(np.nan, np.nan, np.nan, 0)
    return {"contrast": contrast, "metric": metric, "cluster": cluster, **interval._asdict(), "n_unscored": int(scores.isna().sum())}


def _contrast_rows(condition: str, baseline: str, metric: str, cluster: str, pair: pd.DataFrame, bootstrap: dict) -> list[dict]:
    """Absolute and relative difference of two conditions on the prompts that both were scored on."""
    both = pair.dropna()
    shared = {"metric": metric, "cluster": cluster, "n_unscored": len(pair) - len(both)}
    if both.empty:
        return [shared | {"contrast": f"{condition} - {baseline}", "n_prompts": 0}]
    scores, base = both[condition].to_numpy(), both[baseline].to_numpy()
    difference = shared | {"contrast": f"{condition} - {baseline}", **difference_interval(scores, base, **bootstrap)._asdict()}
    difference |= {"test": "wilcoxon", "p": wilcoxon_p(scores, base), "effect_size": cliffs_delta(scores, base)}
    relative = shared | {"contrast": f"{condition} / {baseline} - 1", **relative_interval(scores, base, **bootstrap)._asdict()}
    return [difference, relative]


def compare_conditions(
    scores: pd.DataFrame, *, baseline: str, metrics: list[str], n_boot: int = 2000, level: float = 0.95, seed: int = 0,
    uncontrasted: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Table `effects`: each condition's mean, and its difference to `baseline`, paired by prompt, pooled and by cluster.

    Args:
        scores: One row a prompt and condition: prompt_id, cluster, condition, and a column a metric (NaN is unscored).
        baseline: The condition that the others are compared with.
        uncontrasted: Conditions that get means but no contrast, such as reference answers.
    Returns:
        Rows with contrast `a` (mean), `a - b` (difference, Wilcoxon p, Holm over the pooled differences and over those within
        each cluster, Cliff's delta) and `a / b - 1` (relative difference). Cluster `all` pools.
    Raises:
        ValueError: When the baseline or a metric is not among the scores.
    """
    if missing := [m for m in metrics if m not in scores]:
        raise ValueError(f"metric '{missing[0]}' is no column of the scores; columns: {', '.join(scores)}")
    if baseline not in set(scores.condition):
        raise ValueError(f"baseline '{baseline}' has no answers; conditions here: {', '.join(sorted(set(scores.condition)))}")
    bootstrap = {"n_boot": n_boot, "level": level, "seed": seed}
    groups = {"all": scores, **dict(tuple(scores.groupby("cluster")))}
    rows = []
    for cluster, group in groups.items():
        for metric in metrics:
            wide = group.pivot(index="prompt_id", columns="condition", values=metric)
            rows += [_mean_row(condition, metric, cluster, wide[condition], bootstrap) for condition in wide]
            for condition in wide.columns.difference([baseline, *uncontrasted]):
                rows += _contrast_rows(condition, baseline, metric, cluster, wide[[condition, baseline]], bootstrap)
    return as_effects(pd.DataFrame(rows))


def as_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as table `effects`, every column there and of its type; Holm's correction within each cluster."""
    effects = rows.reindex(columns=[
        "contrast", "metric", "cluster", "estimate", "low", "high", "test", "p", "p_holm", "effect_size", "n_prompts", "n_unscored",
    ]).reset_index(drop=True)
    effects["test"] = effects["test"].astype(object).where(effects["test"].notna(), "").astype(str)
    for cluster in set(effects.cluster):
        rows_of = effects.cluster == cluster
        effects.loc[rows_of, "p_holm"] = holm(effects.loc[rows_of, "p"].astype(float))
    numbers = ["estimate", "low", "high", "p", "p_holm", "effect_size"]
    return effects.astype({**dict.fromkeys(numbers, float), "n_prompts": int, "n_unscored": int})
