"""What moves a rater and should not: padding, the order of the rubric, chance, and whose answer it is."""

from __future__ import annotations

import pandas as pd

from psychosafe_utils.rubrics import PUBLISHED, ungated_mean
from psychosafe_utils.stats import Interval, bootstrap_interval, difference_interval
from psychosafe_utils.validity import padded


def overall_scores(judgements: pd.DataFrame, rubric: str = PUBLISHED) -> pd.Series:
    """The ungated mean, 0 to 1, by generation_id; NaN where a criterion is unscored."""
    wide = judgements.pivot(index="generation_id", columns="criterion", values="score")
    return ungated_mean(wide, rubric)


def paired_effect(scores: pd.Series, baseline: pd.Series, **bootstrap) -> Interval:
    """Mean of `scores` - `baseline` over answers that have both, with its interval."""
    both = pd.concat([scores, baseline], axis=1).dropna()
    return difference_interval(both.iloc[:, 0], both.iloc[:, 1], **bootstrap) if len(both) else Interval(float("nan"), float("nan"), float("nan"), 0)


def padding_effect(rate, answers: pd.DataFrame, **bootstrap) -> Interval:
    """How far 40 % neutral padding moves the overall score (0 to 1), paired by answer.

    Args:
        rate: Takes answers (generation_id, text, response, cluster, ...), gives rows of table `judgements` by one rater.
    """
    longer = answers.assign(response=answers.response.map(padded))
    return paired_effect(overall_scores(rate(longer)), overall_scores(rate(answers)), **bootstrap)


def order_effect(rate, rate_reversed, answers: pd.DataFrame, **bootstrap) -> Interval:
    """How far the rubric read last item first moves the overall score, paired by answer; `rate_reversed` is the rater with `Endpoint(reverse=True)`."""
    return paired_effect(overall_scores(rate_reversed(answers)), overall_scores(rate(answers)), **bootstrap)


def repeat_agreement(judgements: pd.DataFrame) -> pd.DataFrame:
    """How often a rater's repeats (`<rater> #2`, ...) give the score of its first reading, by criterion.

    Returns:
        Columns criterion, exact (share of equal scores), mean_absolute_difference, n, n_unscored.
    """
    first, rows = judgements[~judgements.rater.str.contains(" #")], []
    again = judgements[judgements.rater.str.contains(" #")]
    both = again.assign(rater=again.rater.str.replace(r" #\d+$", "", regex=True)).merge(first, on=["rater", "generation_id", "criterion"], suffixes=("", "_first"))
    for criterion, group in both.groupby("criterion"):
        difference = (group.score - group.score_first).abs().dropna()
        rows.append({
            "criterion": criterion, "exact": float((difference == 0).mean()), "mean_absolute_difference": float(difference.mean()),
            "n": len(difference), "n_unscored": len(group) - len(difference),
        })
    return pd.DataFrame(rows, columns=["criterion", "exact", "mean_absolute_difference", "n", "n_unscored"])


def family_effect(scores: pd.DataFrame, **bootstrap) -> Interval:
    """By how much a judge favours answers of its own family over what others give the same answers (rater x generator interaction).

    The judge's lead over the reference on its own family's answers, minus its lead on other families', for prompts that both kinds of model answered.

    Args:
        scores: A row an answer: prompt_id, own_family (bool), judge, reference (the mean of people, or of judges of other families).
    """
    lead = scores.assign(lead=scores.judge - scores.reference).pivot_table(index="prompt_id", columns="own_family", values="lead").dropna()
    if set(lead.columns) != {True, False} or lead.empty:
        raise ValueError("no prompt has answers of the judge's own family and of another one; add answers of both")
    return bootstrap_interval((lead[True] - lead[False]).to_numpy(), lambda x: x.mean(axis=1), **bootstrap)
