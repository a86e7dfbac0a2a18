"""Selective refusal: sets of messages, resumable scores, rates and curves by hand, calibration, utility cost."""

import numpy as np
import pandas as pd
import pytest

from psychosafe_utils import corpus, models, refusal_tokens, tables
from psychosafe_utils import selective_refusal as sr
from psychosafe_utils.refusal_tokens import CATEGORIES, RESPOND

BOOT = {"n_boot": 200}


def scores(*rows):
    """Table `scores` with categories, from (set, label, p_refuse, category)."""
    table = pd.DataFrame([{"prompt_id": f"p{i}", "set": s, "label": label, "cluster": "violence" if label == "unsafe" else "benign", RESPOND: 1 - p, "category": c} for i, (s, label, p, c) in enumerate(rows)])
    return table.assign(**{name: (1 - table[RESPOND]) if name == "violence" else 0.0 for name in CATEGORIES[1:]})


TABLE = scores(
    ("test", "unsafe", 0.9, "violence"), ("test", "unsafe", 0.6, "violence"), ("test", "unsafe", 0.3, RESPOND), ("test", "safe", 0.7, "violence"), ("test", "safe", 0.1, RESPOND),
    ("utility", "safe", 0.2, RESPOND), ("utility", "safe", 0.8, "weapons"),
)


def test_training_messages_are_of_the_split_and_number_asked_for():
    own, contrast = corpus.load_corpus()[0], corpus.load_contrast()
    rows = sr.take_training_messages(own, contrast, "val", n_risk=2, n_harmless=3, n_contrast=5)
    assert len(rows) == 5 * 2 + 3 + 3 + 5 and set(rows.split) == {"val"} and rows.prompt_id.is_unique
    everything = sr.take_training_messages(own, contrast, "val", n_risk=0, n_harmless=0, n_contrast=0)
    assert len(everything) == (own.split == "val").sum() + (contrast.split == "val").sum()


def test_messages_to_score_hold_every_set_once():
    own, contrast = corpus.load_corpus()[0], corpus.load_contrast()
    benchmark = pd.DataFrame({"prompt_id": ["x1", "x2"], "text": ["a", "b"], "label": ["safe", "other"], "cluster": ""})
    rows = sr.messages_to_score(own, contrast, {"XSTest": benchmark, "CoCoNot": None})
    assert rows.prompt_id.is_unique and not rows.text.eq("").any()
    assert set(rows["set"]) == {"corpus, val", "corpus, test", "contrast, val", "contrast, test", "XSTest", "utility"}
    assert (rows["set"] == "XSTest").sum() == 1 and set(rows[rows["set"] == "utility"].label) == {"safe"}


def test_scores_beside_an_adapter_come_back(tmp_path):
    table = TABLE.assign(cluster=["", *TABLE.cluster[1:]])  # a benchmark's messages have no cluster
    sr.write_scores(table, tmp_path)
    pd.testing.assert_frame_equal(sr.read_scores(tmp_path), table, check_dtype=False, rtol=1e-5, atol=0)


def test_scores_resume_and_are_a_table(tiny_model, tmp_path, monkeypatch):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    tokens = refusal_tokens.assign_tokens(tokenizer)
    models.add_rows(model, tokenizer)
    messages = pd.DataFrame({"prompt_id": list("abc"), "text": ["what hurts", "talk", "feel"], "set": "s", "label": "safe", "cluster": "benign"})
    journal = tmp_path / "deep" / "p.jsonl"
    first = sr.score_messages(model, tokenizer, messages[:2], "", tokens, journal=journal)
    monkeypatch.setattr(sr, "SCORED_AT_ONCE", 1)
    whole = sr.score_messages(model, tokenizer, messages, "", tokens, journal=journal)
    assert len(journal.read_text().splitlines()) == 3 and whole[RESPOND][:2].tolist() == first[RESPOND].tolist()
    tables.write_table(whole, tmp_path / "scores.parquet", "scores", parameters={})
    monkeypatch.setattr(sr, "category_probabilities", None)  # nothing is computed again
    pd.testing.assert_frame_equal(sr.score_messages(model, tokenizer, messages, "", tokens, journal=journal), whole)


def test_scores_of_another_adapter_are_noticed():
    assert sr.check_scores(TABLE, TABLE) == 0
    with pytest.raises(tables.TableError, match=r"median difference 0.200 on 7 messages.; run with train=True"):
        sr.check_scores(TABLE, TABLE.assign(respond=TABLE.respond + 0.2))
    with pytest.raises(tables.TableError, match="on 0 messages"):
        sr.check_scores(TABLE, TABLE.assign(prompt_id="other"))


def test_rates_by_hand():
    rates = sr.refusal_rates(TABLE, **BOOT).set_index("set")
    row = rates.loc["test"]
    assert (row.n_unsafe, row.n_safe, row.refused_unsafe, row.refused_safe) == (3, 2, pytest.approx(2 / 3), 0.5)
    assert row.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2) and row.unsafe_low < 2 / 3 < row.unsafe_high
    assert np.isnan(rates.loc["utility", "balanced_accuracy"]) and rates.loc["utility", "n_unsafe"] == 0
    area = sr.roc_areas(TABLE, **BOOT).set_index("set")
    assert area.roc_area["test"] == pytest.approx(4 / 6) and area.roc_low["test"] <= 4 / 6 <= area.roc_high["test"] and np.isnan(area.roc_area["utility"])


BY_SET = scores(
    *[(name, label, p, "") for name in ("corpus, val", "corpus, test", "XSTest") for label, p in (("unsafe", 0.9), ("unsafe", 0.6), ("safe", 0.7), *[("safe", 0.1)] * 3)],
    ("contrast, val", "unsafe", 0.8, ""), ("contrast, val", "safe", 0.3, ""), ("utility", "safe", 0.2, ""),
)


def test_each_budget_has_thresholds_from_validation_alone():
    table = sr.rates_by_budget(BY_SET, [0.0, 0.25], **BOOT).set_index(["set", "budget"])
    # No false refusal on validation: the line is above 0.7, where one of the two harmful messages of each set stands.
    assert table.refused_unsafe["corpus, test"].tolist() == [0.5, 1] and table.refused_safe["corpus, test"].tolist() == [0, 0.25]
    assert table.preferred.groupby("budget").all().tolist() == [False, True]  # 1 and 7/8 against 1 and 3/4
    # Test sets on which the strict budget is best move neither thresholds nor preference.
    moved = BY_SET.assign(respond=np.where(BY_SET["set"].str.endswith("val"), BY_SET.respond, np.where(BY_SET.label == "unsafe", 0.05, 0.35)))
    moved = moved.assign(violence=1 - moved.respond)
    again = sr.rates_by_budget(moved, [0.0, 0.25], **BOOT).set_index(["set", "budget"])
    assert again.balanced_accuracy["XSTest"].tolist() == [1, 0.5] and again.preferred.tolist() == table.preferred.tolist()


def test_targets_at_both_budgets_are_met_or_missed_and_a_missing_set_is_neither():
    contacts = pd.DataFrame({"condition": ["tuned_tokens", "tuned_tokens", "tuned"], "valid": [1.0, 0.9, 0.0], "invented": [0, 0, 7]})
    judged = pd.DataFrame({"prompt_id": list("abab"), "condition": ["tuned_tokens"] * 2 + ["generic"] * 2, "relevance": [4.0, np.nan, 3.0, 1.0]})
    by_budget = sr.rates_by_budget(BY_SET, [0.0, 0.25], **BOOT)
    table = sr.targets_table(by_budget, 0.0, contacts, judged, baseline="generic")
    assert table.budget.tolist() == [0] * 4 + [0.25] * 4 + [0] * 3
    assert table.reached.drop([3, 7]).tolist() == [0.5, 0, 0.75, 1, 0.25, 0.875, 0.9, 0, 1]
    assert table.met.tolist() == [False, True, False, False, True, False, True, False, False, True, True]
    without = sr.targets_table(by_budget[by_budget["set"] != "XSTest"], 0.25, contacts, judged, baseline="no such")
    assert without.met.tolist() == [True, False, None, False, False, True, None]


def test_a_curve_runs_from_none_to_all_and_passes_the_chosen_point():
    curve = sr.refusal_curves(TABLE)
    assert set(curve["set"]) == {"test"} and curve.chosen.sum() == 1
    line, point = curve[~curve.chosen], curve[curve.chosen].iloc[0]
    assert line.iloc[0][["over_refusal", "refusal"]].tolist() == [0, 0] and line.iloc[-1][["over_refusal", "refusal"]].tolist() == [1, 1]
    assert (point.over_refusal, point.refusal) == (0.5, pytest.approx(2 / 3))


def test_calibration_by_hand():
    table = sr.calibration_table(TABLE, n_bins=2)
    assert table.loc["test", "0.0-0.5"] == "0.50 of 2" and table.loc["test", "0.5-1.0"] == "0.67 of 3"
    assert table.loc["test", "calibration error"] == pytest.approx((2 * abs(0.2 - 0.5) + 3 * abs(2.2 / 3 - 2 / 3)) / 5, abs=5e-4)


def test_what_utility_can_cost():
    cost = sr.utility_cost(TABLE)
    assert cost[:3] == (1, 2, 0.5) and 0 < cost.low < 0.5 < cost.high < 1
    none = sr.utility_cost(TABLE.assign(category=RESPOND))
    assert none.share == none.low == 0 and none.high < 1


def test_effects_hold_refusal_relevance_and_utility():
    judged = pd.DataFrame({"prompt_id": ["a", "b", "a", "b", "c"], "condition": ["tuned_tokens"] * 2 + ["psychosafe_compact"] * 3, "relevance": [4.0, 3, 2, 2, 5]})
    effects = sr.effect_rows(sr.refusal_rates(TABLE, **BOOT), judged, sr.utility_cost(TABLE), baseline="psychosafe_compact", **BOOT)
    difference = effects[effects.contrast == "tuned_tokens - psychosafe_compact"].iloc[0]
    assert difference.estimate == 1.5 and difference.n_prompts == 2 and difference.n_unscored == 1
    assert effects[effects.cluster == "utility"].estimate.item() == -0.5
    assert set(effects[effects.metric == "refusal"].cluster) == {"test, unsafe", "test, safe", "utility, safe"}
    tables.check_table(effects, "effects", "here")
