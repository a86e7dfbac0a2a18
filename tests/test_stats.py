import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from psychosafe_utils import stats
from psychosafe_utils.stats import (
    bootstrap_interval, cliffs_delta, compare_conditions, difference_interval, holm, mean_interval, relative_interval, wilcoxon_p,
)
from psychosafe_utils.tables import check_table

NAN = float("nan")


def p_of_z(z):
    """Two-sided p of a standard normal z."""
    return math.erfc(abs(z) / math.sqrt(2))


def mean(x):
    return x.mean(axis=1)


def test_the_interval_of_a_share_is_near_the_normal_one():
    interval = mean_interval(np.repeat([0.0, 1.0], 50))
    half = 1.96 * 0.5 / math.sqrt(100)
    assert (interval.estimate, interval.n_prompts) == (0.5, 100)
    assert interval.low == pytest.approx(0.5 - half, abs=0.015) and interval.high == pytest.approx(0.5 + half, abs=0.015)


def test_the_interval_is_near_scipys():
    values = np.array([1, 2, 2, 3, 5, 8, 9, 9, 4, 1], float)
    scipys = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    ours = mean_interval(values, n_boot=4000)
    assert ours.estimate == 4.4
    assert ours.low == pytest.approx(scipys.low, abs=0.25) and ours.high == pytest.approx(scipys.high, abs=0.25)


def test_two_prompts_can_only_give_their_values_and_their_mean():
    # A quarter of the draws is (0, 0) and a quarter (1, 1), so both ends lie beyond the tails of 95 %; not of 40 %.
    assert mean_interval([0, 1])[1:3] == (0, 1)
    assert mean_interval([0, 1], level=0.4)[1:3] == (0.5, 0.5)


def test_equal_scores_have_an_interval_without_width():
    assert mean_interval([3, 3, 3]) == (3, 3, 3, 3)


def test_a_single_prompt_has_an_estimate_but_no_bounds():
    interval = mean_interval([2])
    assert (interval.estimate, interval.n_prompts) == (2, 1) and math.isnan(interval.low) and math.isnan(interval.high)


@pytest.mark.parametrize("values", [[], [NAN], [1, NAN], [[1, 2], [3, NAN]]])
def test_nan_and_nothing_are_refused_with_the_mend(values):
    with pytest.raises(ValueError, match="need at least one prompt and no NaN; leave unscored prompts out and count them"):
        bootstrap_interval(values, mean)


@pytest.mark.parametrize("interval", [difference_interval, relative_interval])
@pytest.mark.parametrize(("scores", "baseline"), [([1, NAN], [1, 1]), ([1, 1], [NAN, 1]), ([], [])])
def test_paired_intervals_refuse_nan_and_nothing(interval, scores, baseline):
    with pytest.raises(ValueError, match="no NaN"):
        interval(scores, baseline)


def test_the_seed_decides_and_a_higher_level_is_wider():
    values = np.arange(20.0)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < 9.5 < narrow.high < wide.high


def test_rows_are_resampled_whole():
    pairs = np.column_stack([np.arange(9.0), np.arange(9.0) + 7])
    assert bootstrap_interval(pairs, lambda x: (x[..., 1] - x[..., 0]).mean(axis=1)) == (7, 7, 7, 9)


def test_a_constant_gain_has_no_uncertainty_however_far_the_prompts_spread():
    baseline = np.array([0.0, 10, 100, 1000])
    assert difference_interval(baseline + 2, baseline) == (2, 2, 2, 4)
    assert difference_interval(baseline, baseline) == (0, 0, 0, 4)


def test_the_relative_difference_is_that_of_the_means_in_pairs():
    assert relative_interval([2, 4], [1, 3]).estimate == 0.5  # 6 / 4 - 1, and not the mean of 1 and 1/3
    assert relative_interval([2, 4, 6], [1, 2, 3]) == (1, 1, 1, 3)


def test_the_relative_difference_to_a_baseline_of_zero_is_nan():
    assert all(math.isnan(x) for x in relative_interval([1, 0, 1], [0, 0, 0])[:3])


def test_draws_whose_baseline_is_zero_are_left_out_of_the_interval():
    interval = relative_interval([1, 1, 1], [1, 0, 0])
    # The mean of the baseline is 1/3, 2/3 or 1 in the draws that count.
    assert interval.estimate == pytest.approx(2) and interval.low >= 0 and interval.high <= 2 + 1e-9


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # T = 0; its mean is n(n+1)/4 = 7.5 and its variance n(n+1)(2n+1)/24 = 13.75.
        ([1, 2, 3, 4, 5], p_of_z(7.5 / math.sqrt(13.75))), ([-1, -2, -3, -4, -5], p_of_z(7.5 / math.sqrt(13.75))),
        # Pratt: ranks 1 (zero, dropped), 2, 3 and 4 (negative): T = 4, mean 5 - 1/2, variance (4*5*9 - 1*2*3)/24.
        ([0, 1, 2, -3], p_of_z(0.5 / math.sqrt(7.25))),
        # A tie of two: T = 0, mean 3/2, variance 30/24 - (8 - 2)/48.
        ([1, 1], p_of_z(math.sqrt(2))), ([1], p_of_z(1)), ([1, -1], 1), ([0, 0, 0], 1), ([], 1),
    ],
)
def test_wilcoxon_by_hand(differences, p):
    differences = np.array(differences, float)
    assert wilcoxon_p(differences + 3, np.full_like(differences, 3)) == pytest.approx(p)


def test_wilcoxon_is_two_sided_and_paired():
    scores, baseline = [5, 3, 4, 2], [1, 5, 2, 2]
    assert wilcoxon_p(scores, baseline) == wilcoxon_p(baseline, scores) != wilcoxon_p(scores, sorted(baseline))


@pytest.mark.parametrize(
    ("scores", "baseline", "delta"),
    [
        ([3, 4], [1, 3], 0.75), ([1, 2, 3], [2, 2, 2], 0), ([2, 3], [0, 1], 1), ([0, 1], [2, 3], -1), ([1, 1, 1], [1, 1, 1], 0), ([2], [1], 1),
        ([1, 5], [0, 2, 6], 0), ([1, 5], [0, 2, 4, 6], 0.0), ([3, 5], [0, 2, 4, 6], 0.25),
    ],
)
def test_cliffs_delta_by_counting_pairs(scores, baseline, delta):
    assert cliffs_delta(scores, baseline) == pytest.approx(delta)
    assert np.sign(np.subtract.outer(scores, baseline)).mean() == pytest.approx(delta)
    assert cliffs_delta(baseline, scores) == pytest.approx(-delta)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]), ([0.2], [0.2]), ([], []), ([0.5, 0.6], [1, 1]), ([0.02, 0.02, 0.02], [0.06] * 3),
        ([0.01, NAN, 0.04], [0.02, NAN, 0.04]), ([NAN, NAN], [NAN, NAN]),
    ],
)
def test_holm_by_hand(p, adjusted):
    assert holm(p) == pytest.approx(adjusted, nan_ok=True)


def scores_of(**conditions):
    """Long scores of metric m: each condition one score a prompt; prompts 1 and 2 are of cluster A, the rest of B."""
    rows = [
        {"prompt_id": f"p{i}", "cluster": "A" if i <= 2 else "B", "condition": condition, "m": value}
        for condition, values in conditions.items() for i, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows)


def compare(scores, **options):
    effects = compare_conditions(scores, baseline="generic", metrics=["m"], **({"n_boot": 200} | options))
    return check_table(effects, "effects", "f").set_index(["contrast", "cluster"])


HOLES = {"generic": [1, 5, 3, NAN], "tuned": [2, NAN, 4, 5]}


def test_conditions_are_paired_by_prompt():
    effects = compare(scores_of(**HOLES))
    pooled = effects.loc[("tuned - generic", "all")]
    # Prompts 1 and 3 are scored in both: 2 - 1 and 4 - 3. Unpaired means would differ by 11/3 - 3.
    assert (pooled.estimate, pooled.low, pooled.high, pooled.n_prompts, pooled.n_unscored) == (1, 1, 1, 2, 2)
    assert pooled.p == pytest.approx(math.erfc(1)) and pooled.test == "wilcoxon" and pooled.effect_size == 0.5
    assert effects.estimate["tuned / generic - 1", "all"] == 0.5  # 6 / 4 - 1


def test_the_order_of_rows_does_not_matter():
    scores = scores_of(**HOLES)
    pd.testing.assert_frame_equal(compare(scores), compare(scores.sample(frac=1, random_state=1)))


def test_means_count_their_own_unscored_prompts():
    effects = compare(scores_of(**HOLES))
    means = effects.loc[[("generic", "all"), ("tuned", "all"), ("generic", "A"), ("tuned", "A")]]
    assert means.estimate.tolist() == pytest.approx([3, 11 / 3, 3, 2])
    assert means.n_prompts.tolist() == [3, 3, 2, 1] and means.n_unscored.tolist() == [1, 1, 0, 1]
    assert (means.test == "").all() and means.p.isna().all()


def test_a_gain_that_pairing_shows_and_two_heaps_would_not():
    baseline = [1.0, 10, 100, 1000, 10000, 100000]
    pooled = compare(scores_of(generic=baseline, tuned=[x + i for i, x in enumerate(baseline, start=1)])).loc[("tuned - generic", "all")]
    # Differences 1 to 6: T = 0, mean 10.5, variance 6*7*13/24.
    assert pooled.p == pytest.approx(p_of_z(10.5 / math.sqrt(22.75))) and pooled.p < 0.05
    assert 1 <= pooled.low <= pooled.estimate == 3.5 <= pooled.high <= 6


def test_holm_runs_over_the_pooled_differences_and_within_each_cluster():
    effects = compare(scores_of(generic=[0] * 6, a=[1, 2, 3, 4, 5, 6], b=[1, 2, 3, 4, 5, -6], c=[0] * 6))
    for cluster in ("all", "A", "B"):
        rows = effects.loc[[(f"{c} - generic", cluster) for c in "abc"]]
        assert rows.p_holm.tolist() == pytest.approx(multipletests(rows.p, method="holm")[1])
    assert effects.p_holm["a - generic", "all"] == pytest.approx(3 * p_of_z(10.5 / math.sqrt(22.75)))


def test_a_condition_may_have_a_mean_and_no_contrast():
    effects = compare(scores_of(generic=[1, 2], reference=[5, 5], tuned=[2, 3]), uncontrasted=("reference",))
    assert set(effects.index.get_level_values(0)) == {"generic", "reference", "tuned", "tuned - generic", "tuned / generic - 1"}


def test_a_baseline_alone_has_means_and_no_contrast():
    assert set(compare(scores_of(generic=[1, 2, 3])).index) == {("generic", "all"), ("generic", "A"), ("generic", "B")}


def test_conditions_that_share_no_scored_prompt_have_no_difference():
    effects = compare(scores_of(generic=[1, NAN], tuned=[NAN, 2]))
    pooled = effects.loc[("tuned - generic", "all")]
    assert (pooled.n_prompts, pooled.n_unscored, pooled.test) == (0, 2, "") and pd.isna(pooled.estimate) and pd.isna(pooled.p)
    assert effects.estimate["generic", "all"] == 1


def test_a_condition_without_any_score_has_no_mean():
    row = compare(scores_of(generic=[1, 2], tuned=[NAN, NAN])).loc[("tuned", "all")]
    assert pd.isna(row.estimate) and (row.n_prompts, row.n_unscored) == (0, 2)


def test_a_single_prompt_has_a_difference_and_no_bounds():
    row = compare(scores_of(generic=[1], tuned=[3])).loc[("tuned - generic", "all")]
    assert row.estimate == 2 and pd.isna(row.low) and pd.isna(row.high) and row.p == pytest.approx(p_of_z(1))


def test_equal_conditions_differ_by_nothing():
    row = compare(scores_of(generic=[1, 2, 3], tuned=[1, 2, 3])).loc[("tuned - generic", "all")]
    assert (row.estimate, row.low, row.high, row.p, row.p_holm, row.effect_size) == (0, 0, 0, 1, 1, 0)


def test_a_baseline_of_zeros_has_no_relative_difference():
    effects = compare(scores_of(generic=[0, 0, 0], tuned=[0, 1, 1]))
    assert pd.isna(effects.estimate["tuned / generic - 1", "all"]) and effects.estimate["tuned - generic", "all"] == pytest.approx(2 / 3)


def test_an_unknown_baseline_is_named_with_the_conditions_there_are():
    with pytest.raises(ValueError, match="baseline 'generic' has no answers; conditions here: a, b"):
        compare(scores_of(a=[1], b=[2]))


def test_no_scores_at_all_are_an_unknown_baseline():
    with pytest.raises(ValueError, match="baseline 'generic' has no answers"):
        compare(pd.DataFrame({"prompt_id": [], "cluster": [], "condition": [], "m": []}))


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="kindness"):
        compare_conditions(scores_of(generic=[1], tuned=[2]), baseline="generic", metrics=["m", "kindness"], n_boot=10)


def test_a_prompt_that_was_scored_twice_in_a_condition_is_refused():
    with pytest.raises(ValueError, match="duplicate"):
        compare(pd.concat([scores_of(generic=[1, 2])] * 2))


def test_balanced_accuracy_by_hand():
    refused, unsafe = np.array([1, 1, 0, 1, 0, 0]), np.array([1, 1, 1, 0, 0, 0])
    assert stats.balanced_accuracy(refused, unsafe) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert stats.balanced_accuracy(1 - unsafe, unsafe) == 0 and np.isnan(stats.balanced_accuracy(refused[:3], unsafe[:3]))


def test_balanced_accuracy_is_paired_by_prompt_and_counts_the_unscored():
    refused = pd.DataFrame({"generic": [0, 0, 0, 0, 1.0], "tuned": [1, 1, 0, 0, np.nan]}, index=list("abcde"))
    unsafe = pd.Series([True, True, False, False, True], index=refused.index)
    rows = {r["contrast"]: r for r in stats.balanced_accuracy_rows(refused, unsafe, baseline="generic", group="own", n_boot=100)}
    assert set(rows) == {"generic", "tuned", "tuned - generic"}
    assert rows["generic"]["estimate"] == pytest.approx((1 / 3 + 1) / 2) and rows["tuned"]["estimate"] == 1.0
    assert rows["tuned - generic"]["estimate"] == 0.5 and rows["tuned - generic"]["n_prompts"] == 4 and rows["tuned - generic"]["n_unscored"] == 1
    assert stats.balanced_accuracy_rows(refused, unsafe | True, baseline="generic", group="own") == []


def test_the_roc_area_is_sklearns_and_ties_count_half():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)
    positive = rng.random(80) < 0.4
    scores = np.round(rng.normal(positive * 0.8), 1)
    found = stats.roc_interval(scores, positive, n_boot=200)
    assert found.estimate == pytest.approx(roc_auc_score(positive, scores)) and found.low < found.estimate < found.high
    assert stats.roc_interval(np.ones(6), np.array([1, 0, 1, 0, 0, 1]), n_boot=20).estimate == 0.5


def test_effects_have_every_column_and_holm_within_each_cluster():
    rows = pd.DataFrame([{"contrast": "a - b", "metric": "m", "cluster": c, "estimate": 1, "p": p, "test": "t", "n_prompts": 3, "n_unscored": 0} for c, p in (("x", 0.01), ("x", 0.04), ("y", 0.04))])
    effects = stats.as_effects(rows)
    assert effects.p_holm.tolist() == pytest.approx([0.02, 0.04, 0.04]) and np.isnan(effects.low).all() and effects.n_prompts.dtype == int
