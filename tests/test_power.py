"""Power by simulation: the warning about few raters, and known values."""

import numpy as np
import pytest
from scipy import stats

from psychosafe_utils.power import Study, assigned, clustered_p, paired_p, power_table, rejection_rates


def test_few_raters_make_the_paired_test_reject_a_true_null_one_time_in_four():
    """3 raters, 150 prompts, raters' preferences with SD 0.15: about 25 % instead of 5 %; clustering by both restores it."""
    rates = rejection_rates(Study(difference=0.0))
    assert rates["paired t over prompts"] == pytest.approx(0.25, abs=0.03)
    assert rates["clustered by prompt and rater"] <= 0.05


def test_without_rater_preferences_the_paired_test_keeps_its_level_and_has_its_known_power():
    alone = Study(rater_sd=0.0, n_raters=1, raters_per_prompt=1, n_prompts=90)
    assert rejection_rates(alone._replace(difference=0.0))["paired t over prompts"] == pytest.approx(0.05, abs=0.015)
    noncentral = stats.nct(89, 0.3 * 90**0.5)
    expected = noncentral.sf(stats.t.ppf(0.975, 89)) + noncentral.cdf(-stats.t.ppf(0.975, 89))
    assert rejection_rates(alone)["paired t over prompts"] == pytest.approx(expected, abs=0.03) and expected == pytest.approx(0.80, abs=0.01)


def test_more_raters_buy_power_where_more_prompts_do_not():
    few = rejection_rates(Study(n_prompts=600))["clustered by prompt and rater"]
    many = rejection_rates(Study(n_prompts=150, n_raters=12))["clustered by prompt and rater"]
    assert few < 0.5 < 0.8 < many


def test_each_prompt_has_its_raters_and_each_rater_as_many_prompts():
    cells = assigned(Study(n_prompts=150, n_raters=15, raters_per_prompt=5))
    assert (cells.sum(axis=1) == 5).all() and (cells.sum(axis=0) == 50).all()
    with pytest.raises(ValueError, match="4 raters a prompt were asked for, but there are 3"):
        assigned(Study(raters_per_prompt=4))


def test_clustered_variance_by_hand():
    """Two prompts, two raters, all cells: mean 1, residual sums by prompt (-2, 2), by rater (0, 0), squares sum to 4."""
    differences = np.array([[[-1.0, 1.0], [3.0, 1.0]]])
    by_prompt, by_rater, both = 8 * 2, 0, 8
    variance = max(by_prompt + by_rater - both, by_prompt, by_rater) / 16
    assert clustered_p(differences)[0] == pytest.approx(2 * stats.t.sf(1 / variance**0.5, 1))
    assert paired_p(differences)[0] == pytest.approx(stats.ttest_1samp([0.0, 2.0], 0).pvalue)


def test_the_table_holds_both_tests_for_every_plan():
    table = power_table(Study(), [60, 120], [3, 6], n_sim=100)
    assert len(table) == 8 and table.power.between(0, 1).all() and set(table.prompts) == {60, 120}
