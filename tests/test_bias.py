"""Bias tests: a rater with a known fault shows it, one without shows none."""

import pandas as pd
import pytest

from psychosafe_utils import bias
from psychosafe_utils.rubrics import PUBLISHED, load_rubric

SCALES = {name: item["scale"] for name, item in load_rubric(PUBLISHED)["criteria"].items()}


def answers(n=12):
    return pd.DataFrame({"generation_id": [f"g{i}" for i in range(n)], "text": "Why?", "response": [f"I can't help with that. You asked number {i}. Take care of yourself." for i in range(n)], "cluster": "violence"})


def rater(share_of, name="r"):
    """Rows of a rater who gives every criterion the same share of its scale."""
    def rate(given):
        return pd.DataFrame([
            {"generation_id": row.generation_id, "rater": name, "criterion": criterion, "score": scale[0] + share_of(row) * (scale[-1] - scale[0])}
            for row in given.itertuples() for criterion, scale in SCALES.items()
        ])
    return rate


def test_a_rater_that_likes_length_is_found_and_one_that_does_not_is_not():
    longer = bias.padding_effect(rater(lambda row: min(1, len(row.response) / 200)), answers())
    assert longer.low > 0.1 and longer.n_prompts == 12
    assert bias.padding_effect(rater(lambda row: 0.5), answers())[:3] == (0, 0, 0)


def test_an_unscored_answer_is_left_out_of_a_pair():
    def gaps(given):
        rows = rater(lambda row: 0.5)(given)
        rows.loc[rows.generation_id == "g0", "score"] = float("nan")
        return rows

    assert bias.padding_effect(gaps, answers()).n_prompts == 11


def test_the_order_of_the_rubric():
    effect = bias.order_effect(rater(lambda row: 0.5), rater(lambda row: 0.75), answers())
    assert effect.estimate == pytest.approx(0.25)


def test_repeats_by_hand():
    rows = pd.DataFrame([
        ("a", "j", "relevance", 3), ("a", "j #2", "relevance", 5), ("a", "j #3", "relevance", 3), ("b", "j", "relevance", 2), ("b", "j #2", "relevance", None), ("b", "j #3", "relevance", 2),
    ], columns=["generation_id", "rater", "criterion", "score"])
    (found,) = bias.repeat_agreement(rows).to_dict("records")
    assert found == {"criterion": "relevance", "exact": pytest.approx(2 / 3), "mean_absolute_difference": pytest.approx(2 / 3), "n": 3, "n_unscored": 1}
    assert bias.repeat_agreement(rows[rows.rater == "j"]).empty


def test_favour_for_the_own_family_by_hand():
    scores = pd.DataFrame({"prompt_id": ["p", "p", "q", "q"], "own_family": [True, False] * 2, "judge": [0.9, 0.5, 0.8, 0.6], "reference": [0.6, 0.5, 0.6, 0.6]})
    assert bias.family_effect(scores).estimate == pytest.approx((0.3 + 0.2) / 2)
    with pytest.raises(ValueError, match="own family"):
        bias.family_effect(scores[scores.own_family])
