"""How far raters agree: coefficients with intervals, bias between two raters, and whether a judge may stand in for a person."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import krippendorff
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.multitest import multipletests

from psychosafe_utils.rubrics import rubric_items
from psychosafe_utils.stats import Interval, bootstrap_interval, mean_interval


def ratings_matrix(judgements: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Scores of one criterion, a row an answer (generation_id), a column a rater; NaN where a rater gave none.

    Raises:
        ValueError: When nobody rated the criterion, or a rater rated an answer twice.
    """
    rows = judgements[judgements.criterion == criterion]
    if rows.empty:
        raise ValueError(f"no rater has criterion '{criterion}'; rated are {', '.join(sorted(set(judgements.criterion)))}")
    twice = rows[rows.duplicated(["generation_id", "rater"])]
    if len(twice):
        raise ValueError(f"rater '{twice.rater.iloc[0]}' rated answer {twice.generation_id.iloc[0]} twice on '{criterion}'; keep one row")
    return rows.pivot(index="generation_id", columns="rater", values="score")


def panel_scores(ratings: pd.DataFrame) -> pd.DataFrame:
    """What a panel says of each answer: mean, majority (NaN on a tie), and for each rater the mean of the others.

    Args:
        ratings: From `ratings_matrix`.
    Returns:
        Columns mean, majority, and `without <rater>`.
    """
    modes = ratings.mode(axis=1)
    majority = modes[0].where(modes[1].isna() if 1 in modes else True)
    others = {f"without {rater}": ratings.drop(columns=rater).mean(axis=1) for rater in ratings}
    return pd.DataFrame({"mean": ratings.mean(axis=1), "majority": majority, **others})


def alpha(ratings: pd.DataFrame, level: str) -> float:
    """Krippendorff's alpha; NaN where fewer than two answers have two ratings, or all ratings are the same.

    Args:
        ratings: A row an answer, a column a rater, NaN for none.
        level: `nominal`, `ordinal` or `interval`.
    """
    rated = ratings[ratings.notna().sum(axis=1) >= 2]
    if len(rated) < 2 or len(set(rated.stack())) < 2:
        return float("nan")
    return float(krippendorff.alpha(reliability_data=rated.to_numpy(float).T, level_of_measurement=level))


def alpha_interval(ratings: pd.DataFrame, level: str, *, n_boot: int = 1000, coverage: float = 0.95, seed: int = 0) -> Interval:
    """Krippendorff's alpha with a percentile interval; answers are resampled with all their ratings."""
    rated = ratings[ratings.notna().sum(axis=1) >= 2]
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(n_boot if len(rated) else 0):
        value = alpha(rated.iloc[rng.integers(0, len(rated), len(rated))], level)
        drawn += [] if np.isnan(value) else [value]
    tail = (1 - coverage) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if drawn else (np.nan, np.nan)
    return Interval(alpha(rated, level), float(low), float(high), len(rated))


def _nominal_kappa(pairs: np.ndarray) -> np.ndarray:
    """Cohen's kappa of pairs of labels, shape (samples, n, 2); NaN where chance agreement is complete."""
    labels = np.unique(pairs)
    shares = [(pairs == label).mean(axis=1) for label in labels]
    chance = sum(share[:, 0] * share[:, 1] for share in shares)
    with np.errstate(all="ignore"):
        return np.where(chance < 1, ((pairs[..., 0] == pairs[..., 1]).mean(axis=1) - chance) / (1 - chance), np.nan)


def label_agreement(found: pd.Series, labels: pd.Series, **bootstrap) -> pd.Series:
    """Accuracy and Cohen's kappa (1960) of classes against labels, each with an interval over answers; `accuracy`, `kappa`, `n`, and their bounds `..._low`, `..._high`."""
    pairs = np.column_stack([found, labels])
    accuracy, kappa = mean_interval((pairs[:, 0] == pairs[:, 1]).astype(float), **bootstrap), bootstrap_interval(pairs, _nominal_kappa, **bootstrap)
    return pd.Series({
        "accuracy": accuracy.estimate, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high,
        "kappa": kappa.estimate, "kappa_low": kappa.low, "kappa_high": kappa.high, "n": len(pairs),
    })


def quadratic_kappa(scores: pd.Series, reference: pd.Series) -> float:
    """Cohen's kappa with quadratic weights, over answers that both rated (Cohen 1968)."""
    both = pd.concat([scores, reference], axis=1).dropna().round().astype(int)
    return float(cohen_kappa_score(both.iloc[:, 0], both.iloc[:, 1], weights="quadratic"))


def icc(ratings: pd.DataFrame) -> pd.Series:
    """ICC(2,1) and ICC(2,k): two-way random effects, absolute agreement, one rater and the mean of k (Shrout & Fleiss 1979).

    Answers that a rater left out are left out; the number used is in `n_answers`.
    """
    import pingouin  # slow to import, and used here alone

    whole = ratings.dropna()
    long = whole.rename_axis("answer").reset_index().melt("answer", var_name="rater", value_name="score")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pingouin.intraclass_corr(long, targets="answer", raters="rater", ratings="score")
    values = table.assign(kind=table.Type.str.replace(r"[(),]", "", regex=True).str.upper()).set_index("kind").ICC
    single, mean = (next(values[name] for name in names if name in values) for names in (("ICC2", "ICCA1"), ("ICC2K", "ICCAK")))
    return pd.Series({"icc_2_1": float(single), "icc_2_k": float(mean), "n_answers": len(whole)})


def gwet_ac2(ratings: pd.DataFrame, categories: list[float], weights: str = "quadratic") -> float:
    """Gwet's AC2 for any number of raters and missing ratings; with `weights="identity"` it is AC1 (Gwet 2014, chapters 2 and 3).

    Args:
        categories: All scores that the scale has, in order.
    Raises:
        ValueError: For other weights.
    """
    if weights not in ("identity", "quadratic"):
        raise ValueError(f"weights '{weights}' are unknown; use 'identity' or 'quadratic'")
    values = np.asarray(categories, float)
    distance = np.abs(values[:, None] - values[None]) / (values.max() - values.min())
    weight = (distance == 0).astype(float) if weights == "identity" else 1 - distance**2
    counts = np.stack([(ratings == c).sum(axis=1) for c in categories], axis=1).astype(float)
    n_raters = counts.sum(axis=1)
    shared = counts[n_raters >= 2]
    r = shared.sum(axis=1)
    observed = ((shared * (shared @ weight - 1)).sum(axis=1) / (r * (r - 1))).mean()
    share = (counts[n_raters > 0] / n_raters[n_raters > 0, None]).mean(axis=0)
    chance = weight.sum() * (share * (1 - share)).sum() / (len(values) * (len(values) - 1))
    return float((observed - chance) / (1 - chance))


def rank_correlations(scores: pd.Series, reference: pd.Series) -> pd.Series:
    """Spearman's rho and Kendall's tau-b over answers that both rated."""
    both = pd.concat([scores, reference], axis=1).dropna()
    first, second = both.iloc[:, 0], both.iloc[:, 1]
    return pd.Series({"spearman": stats.spearmanr(first, second).statistic, "kendall": stats.kendalltau(first, second).statistic, "n_answers": len(both)})


def bland_altman(scores: pd.Series, reference: pd.Series) -> pd.Series:
    """Mean difference, its standard deviation, and 95 % limits of agreement (Bland & Altman 1986)."""
    difference = (scores - reference).dropna()
    bias, sd = difference.mean(), difference.std(ddof=1)
    return pd.Series({"bias": bias, "sd": sd, "low": bias - 1.96 * sd, "high": bias + 1.96 * sd, "n_answers": len(difference)})


class Replacement(NamedTuple):
    """Outcome of the alternative-annotator test: share of people that the judge does not fall behind, and how often it is as good."""

    winning_rate: float
    advantage: float
    passed: bool


def alternative_annotator_test(people: pd.DataFrame, judge: pd.Series, *, epsilon: float = 0.15, q: float = 0.05) -> Replacement:
    """May the judge stand in for one of the people? (Calderon, Reichart & Dror 2025, arXiv 2501.10970.)

    Each person is left out in turn; person and judge are compared in closeness (negative squared distance) to the others' mean, and a one-sided t test asks
    whether the person is ahead by less than `epsilon`, the price of people. Benjamini-Yekutieli over the people; the judge
    passes when it holds for at least half of them.

    Args:
        people: A row an answer, a column a person, NaN for none; at least three people.
        judge: Scores of the same answers.
    Raises:
        ValueError: With fewer than three people.
    """
    if people.shape[1] < 3:
        raise ValueError(f"the test needs at least three people, here are {people.shape[1]}")
    p_values, advantages = [], []
    for person in people:
        others = people.drop(columns=person).mean(axis=1)
        used = people[person].notna() & others.notna() & judge.notna()
        of_person, of_judge = ((x - others)[used] ** 2 for x in (people[person], judge))
        person_wins, judge_wins = (of_person <= of_judge).astype(float), (of_judge <= of_person).astype(float)
        lead = person_wins - judge_wins
        # A lead that is the same everywhere has no spread to test with: then it is below epsilon, or not.
        p = stats.ttest_1samp(lead, epsilon, alternative="less").pvalue if lead.std() > 0 else float(lead.mean() >= epsilon)
        p_values.append(p)
        advantages.append(judge_wins.mean())
    rejected = multipletests(p_values, alpha=q, method="fdr_by")[0]
    return Replacement(float(rejected.mean()), float(np.mean(advantages)), bool(rejected.mean() >= 0.5))


def judge_against_people(people: pd.DataFrame, judge: pd.DataFrame, version: str, **bootstrap) -> pd.DataFrame:
    """How far people agree with each other, and a judge with them, a row a criterion that both rated.

    Args:
        people: Table `judgements` of at least two people, first readings alone.
        judge: Table `judgements` of one rater.
        version: The rubric's, for the ends of each scale.
    Returns:
        Columns criterion, people, answers; alpha with its interval, ac2, icc_2_1, icc_2_k (people); kappa (quadratic, judge and the people's median),
        spearman, kendall, bias and its limits of agreement; may_replace (alternative-annotator test, None with fewer than three people).
    """
    rows = []
    for criterion, item in rubric_items(version).items():
        if criterion not in set(people.criterion) or criterion not in set(judge.criterion):
            continue
        ratings, scores = ratings_matrix(people, criterion), ratings_matrix(judge, criterion).iloc[:, 0]
        scores = scores.reindex(ratings.index)
        median, interval = ratings.median(axis=1), alpha_interval(ratings, "ordinal", **bootstrap)
        limits, ranks = bland_altman(scores, median), rank_correlations(scores, median)
        rows.append({
            "criterion": criterion, "people": ratings.shape[1], "answers": len(ratings), "alpha": interval.estimate, "alpha_low": interval.low, "alpha_high": interval.high,
            "ac2": gwet_ac2(ratings, item["scale"]), "icc_2_1": icc(ratings).icc_2_1, "icc_2_k": icc(ratings).icc_2_k,
            "kappa": quadratic_kappa(scores, median), "spearman": ranks.spearman, "kendall": ranks.kendall, "bias": limits.bias, "low": limits.low, "high": limits.high,
            "may_replace": alternative_annotator_test(ratings, scores).passed if ratings.shape[1] >= 3 else None,
        })
    return pd.DataFrame(rows)
