"""Utility: the local tasks, the harness with a real model, chance, and equivalence by hand."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from psychosafe_utils import models, utility
from psychosafe_utils.utility import UtilityError, check_above_chance, equivalence


def test_the_local_tasks_are_whole():
    tasks = utility.own_tasks()
    assert tasks == ["arithmetic", "instructions", "knowledge", "reading"] and sum(len(utility.load_items(t)) for t in tasks) >= 300
    for task in tasks:
        items = utility.load_items(task)
        assert not items.question.duplicated().any() and set(map(len, items.choices)) == {4}
        assert all(len(set(c)) == 4 and 0 <= a < 4 for c, a in zip(items.choices, items.answer))
        assert items.answer.value_counts().max() < 0.4 * len(items)


def test_arithmetic_is_right():
    ways = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    for row in utility.load_items("arithmetic").itertuples():
        a, name, b = re.fullmatch(r"What is (\d+) (\w+) (\d+)\?", row.question).groups()
        assert row.choices[row.answer] == str(ways[name](int(a), int(b)))


def test_the_harness_runs_the_local_tasks_on_the_real_model():
    """Forced to a few items; the embedded model is right on most of them, and the same call gives the same."""
    model, tokenizer = models.load_model(models.EMBEDDED, four_bit=False), models.load_tokenizer(models.EMBEDDED)
    first = utility.evaluate_utility(model, tokenizer, ["knowledge", "instructions"], system_prompt="You are a helpful assistant.", limit=8)
    assert first.groupby("task").size().to_dict() == {"instructions": 8, "knowledge": 8} and set(first.n_choices) == {4}
    assert first.correct.isin([0.0, 1.0]).all() and first.correct.mean() > 0.4
    again = utility.evaluate_utility(model, tokenizer, ["knowledge"], system_prompt="You are a helpful assistant.", limit=8)
    pd.testing.assert_frame_equal(again, first[first.task == "knowledge"].reset_index(drop=True))


def test_an_unknown_task_is_named(tiny_model):
    with pytest.raises(UtilityError, match="no task 'frogology'; local are arithmetic"):
        utility.evaluate_utility(models.load_model(str(tiny_model), four_bit=False), models.load_tokenizer(str(tiny_model)), ["frogology"])


def outcomes(correct, task="t", condition="generic"):
    return pd.DataFrame({"task": task, "item": [f"{task}-{i}" for i in range(len(correct))], "question": "q", "correct": np.asarray(correct, float), "n_choices": 4, "condition": condition})


def test_a_task_at_chance_says_nothing_and_stops():
    table = check_above_chance(outcomes([1] * 15 + [0] * 5))
    assert table.accuracy.item() == 0.75 and table.chance.item() == 0.25
    assert table["p above chance"].item() == pytest.approx(stats.binom.sf(14, 20, 0.25))
    with pytest.raises(UtilityError, match="task 't': accuracy 0.30 on 20 items is not above chance .0.25.; take easier items"):
        check_above_chance(outcomes([1] * 6 + [0] * 14))


def test_equivalence_by_hand():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    scores = base + rng.normal(0.01, 0.05, 200)
    found, d = equivalence(scores, base, margin=0.05), scores - base
    error = d.std(ddof=1) / 200**0.5
    assert found.p == pytest.approx(max(stats.t.sf((d.mean() + 0.05) / error, 199), stats.t.cdf((d.mean() - 0.05) / error, 199)))
    assert found.low == pytest.approx(d.mean() - stats.t.ppf(0.95, 199) * error) and found.p < 0.05
    assert (found.p < 0.05) == (-0.05 < found.low and found.high < 0.05)
    assert equivalence(scores, base, margin=0.008).p > 0.05  # no difference shown is not equivalence shown


def test_equivalence_where_nothing_differs_rests_on_the_number_of_items():
    same = np.ones(300)
    assert equivalence(same, same, margin=0.01).p == pytest.approx(0.99**300) and equivalence(same, same, margin=0.01).high == pytest.approx(1 - 0.05 ** (1 / 300))
    assert equivalence(same[:20], same[:20], margin=0.01).p > 0.05
    assert equivalence(same * 0, same, margin=0.5).p == 1.0  # all worse, all alike
    for bad in ((same[:1], same[:1], 0.1), (same, same, 0.0)):
        with pytest.raises(ValueError, match="two items or more and a margin above 0"):
            equivalence(bad[0], bad[1], margin=bad[2])


def test_rows_for_all_tasks_and_each():
    table = pd.concat([outcomes([1, 0, 1, 1], "a"), outcomes([1, 1], "b"), outcomes([1, 0, 1, 0], "a", "tuned"), outcomes([1, 1], "b", "tuned")])
    rows = utility.equivalence_rows(table, baseline="generic", margin=0.2).set_index("cluster")
    assert list(rows.index) == ["utility", "utility: a", "utility: b"] and set(rows.contrast) == {"tuned - generic"}
    assert rows.estimate.tolist() == [pytest.approx(-1 / 6), -0.25, 0.0] and rows.n_prompts.tolist() == [6, 4, 2]
    assert utility.equivalence_rows(table.iloc[:0], baseline="generic", margin=0.2).empty
    wide = utility.accuracy_table(table).set_index("task")
    assert wide.loc["a", ["generic", "tuned", "chance", "items"]].tolist() == [0.75, 0.5, 0.25, 4]


def test_writing_arithmetic_again_gives_the_same_file(tmp_path, monkeypatch):
    committed = (utility.FOLDER / "arithmetic.jsonl").read_text()
    monkeypatch.setattr(utility, "FOLDER", tmp_path)
    utility.write_arithmetic(80)
    assert (tmp_path / "arithmetic.jsonl").read_text() == committed and len(json.loads(committed.splitlines()[0])["choices"]) == 4
