"""Agreement against published worked examples, to three decimals."""

import numpy as np
import pandas as pd
import pytest

from psychosafe_utils import agreement

N = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units.
KRIPPENDORFF = pd.DataFrame([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3], [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]).T
# Shrout & Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = pd.DataFrame([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], columns=list("abcd"), dtype=float)
# Bland & Altman 1986, table 1: peak flow of 17 people by two meters, first readings.
LARGE_METER = pd.Series([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427])
MINI_METER = pd.Series([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451])


@pytest.mark.parametrize("level, value", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level, value):
    assert agreement.alpha(KRIPPENDORFF, level) == pytest.approx(value, abs=5e-4)


def test_the_interval_of_alpha_holds_it_and_narrows_with_more_answers():
    few = agreement.alpha_interval(KRIPPENDORFF, "ordinal", n_boot=200)
    many = agreement.alpha_interval(pd.concat([KRIPPENDORFF] * 6, ignore_index=True), "ordinal", n_boot=200)
    assert few.low < few.estimate < few.high and few.n_prompts == 11
    assert many.high - many.low < 0.7 * (few.high - few.low)
    assert few == agreement.alpha_interval(KRIPPENDORFF, "ordinal", n_boot=200)


def test_alpha_without_variation_is_not_a_number():
    assert np.isnan(agreement.alpha(pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 1.0]}), "nominal"))


def test_icc_of_the_published_example():
    values = agreement.icc(SHROUT_FLEISS)
    assert values.icc_2_1 == pytest.approx(0.290, abs=5e-4) and values.icc_2_k == pytest.approx(0.620, abs=5e-4)
    assert agreement.icc(pd.concat([SHROUT_FLEISS, pd.DataFrame([[1, N, 2, 3]], columns=list("abcd"))], ignore_index=True)).n_answers == 6


def test_limits_of_agreement_of_the_published_example():
    values = agreement.bland_altman(LARGE_METER, MINI_METER)
    assert values.bias == pytest.approx(-2.1, abs=0.05) and values.sd == pytest.approx(38.8, abs=0.05)
    assert values.low == pytest.approx(-2.118 - 1.96 * 38.765, abs=0.01) and values.high == pytest.approx(73.86, abs=0.01)


def test_gwet_of_the_published_example():
    """The same four observers: AC1 .775 (Gwet 2014, table 2.10; he codes the twelve units as here)."""
    assert agreement.gwet_ac2(KRIPPENDORFF, [1, 2, 3, 4, 5], "identity") == pytest.approx(0.775, abs=5e-4)
    assert agreement.gwet_ac2(KRIPPENDORFF, [1, 2, 3, 4, 5]) > agreement.gwet_ac2(KRIPPENDORFF, [1, 2, 3, 4, 5], "identity")
    with pytest.raises(ValueError, match="'linear' are unknown"):
        agreement.gwet_ac2(KRIPPENDORFF, [1, 2], "linear")


def test_gwet_by_hand():
    """Two raters, four answers, three agreements: observed .75, shares .625 and .375, chance 2 x .625 x .375 = .46875."""
    ratings = pd.DataFrame({"a": [1, 1, 2, 1], "b": [1, 1, 2, 2]}, dtype=float)
    assert agreement.gwet_ac2(ratings, [1, 2], "identity") == pytest.approx((0.75 - 0.46875) / (1 - 0.46875))


def test_quadratic_kappa_by_hand_leaves_out_what_one_did_not_rate():
    """Scores 1-3: observed disagreement (1 + 0 + 0 + 4) / 4 / 4, expected from the margins 5/8 of the squared width."""
    a, b = pd.Series([1, 2, 3, 1, 2], dtype=float), pd.Series([2, 2, 3, 3, N])
    observed = np.mean([1, 0, 0, 4]) / 4
    expected = np.mean([(x - y) ** 2 for x in (1, 2, 3, 1) for y in (2, 2, 3, 3)]) / 4
    assert agreement.quadratic_kappa(a, b) == pytest.approx(1 - observed / expected)


def test_rank_correlations_by_hand():
    values = agreement.rank_correlations(pd.Series([1.0, 2, 3, 4]), pd.Series([1.0, 3, 2, 4]))
    assert values.spearman == pytest.approx(0.8) and values.kendall == pytest.approx(2 / 3) and values.n_answers == 4


def people(n=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, n)
    return truth, pd.DataFrame({f"p{i}": np.clip(truth + rng.integers(-1, 2, n), 1, 5).astype(float) for i in range(4)})


def test_a_judge_as_good_as_people_passes_and_a_random_one_does_not():
    truth, raters = people()
    good = agreement.alternative_annotator_test(raters, pd.Series(truth, dtype=float))
    noise = agreement.alternative_annotator_test(raters, pd.Series(np.random.default_rng(1).integers(1, 6, len(truth)), dtype=float))
    assert good.passed and good.winning_rate == 1 and good.advantage > 0.8
    assert not noise.passed and noise.winning_rate == 0 and noise.advantage < good.advantage
    with pytest.raises(ValueError, match="at least three people, here are 2"):
        agreement.alternative_annotator_test(raters[["p0", "p1"]], pd.Series(truth))


def test_a_panel_is_a_pivot():
    rows = pd.DataFrame({
        "generation_id": ["g1"] * 3 + ["g2"] * 2, "rater": ["a", "b", "c", "a", "b"], "criterion": "relevance", "score": [1.0, 1, 4, 2, 3],
    })
    ratings = agreement.ratings_matrix(rows, "relevance")
    panel = agreement.panel_scores(ratings)
    assert panel.loc["g1"].to_dict() == {"mean": 2.0, "majority": 1.0, "without a": 2.5, "without b": 2.5, "without c": 1.0}
    assert np.isnan(panel.majority["g2"]) and panel["without c"]["g2"] == 2.5
    with pytest.raises(ValueError, match="no rater has criterion 'empathy'; rated are relevance"):
        agreement.ratings_matrix(rows, "empathy")
    with pytest.raises(ValueError, match="rater 'a' rated answer g1 twice"):
        agreement.ratings_matrix(pd.concat([rows, rows.head(1)]), "relevance")


def test_kappa_of_classes_by_hand():
    """20 of 50 and 15 of 50 agree: observed 0.7, expected 0.5 (the textbook's 2x2 table)."""
    found = pd.Series([1] * 20 + [1] * 5 + [2] * 10 + [2] * 15)
    labels = pd.Series([1] * 20 + [2] * 5 + [1] * 10 + [2] * 15)
    row = agreement.label_agreement(found, labels, n_boot=500)
    assert row.accuracy == pytest.approx(0.7) and row.kappa == pytest.approx(0.4) and row.n == 50
    assert row.kappa_low < 0.4 < row.kappa_high and 0.5 < row.accuracy_low < 0.7 < row.accuracy_high
    assert np.isnan(agreement.label_agreement(pd.Series([1, 1]), pd.Series([1, 1])).kappa)


def test_a_judge_beside_people_a_row_a_criterion():
    truth, raters = people()
    long = raters.rename_axis("generation_id").reset_index().melt("generation_id", var_name="rater", value_name="score").assign(criterion="relevance")
    judge = pd.DataFrame({"generation_id": range(60), "rater": "judge", "criterion": "relevance", "score": truth.astype(float)})
    table = agreement.judge_against_people(long, judge, "published.v2", n_boot=50)
    row = table.iloc[0]
    assert table.criterion.tolist() == ["relevance"] and (row.people, row.answers) == (4, 60)
    assert row.alpha_low < row.alpha < row.alpha_high and abs(row.bias) < 0.3 and row.low < row.bias < row.high and row.spearman > 0.8 and row.may_replace
    two = agreement.judge_against_people(long[long.rater.isin(["p0", "p1"])], judge, "published.v2", n_boot=50)
    assert two.may_replace.iloc[0] is None
