"""Every rater by its name, and panels."""

import pandas as pd
import pytest

from psychosafe_utils import raters
from psychosafe_utils.tables import SCHEMAS, check_table


def answers(*responses):
    return pd.DataFrame({"generation_id": [f"g{i}" for i in range(len(responses))], "text": "Why?", "response": responses, "cluster": "violence", "region": ""})


def judged(rater, scores):
    return pd.DataFrame({
        "generation_id": [f"g{i}" for i in range(len(scores))], "rater": rater, "rater_kind": "rule", "criterion": "refusal", "rubric_version": "published.v2",
        "score": scores, "status": ["ok" if s == s else "failed" for s in scores], "evidence": "[]", "raw": "",
    })[list(SCHEMAS["judgements"])]


@pytest.mark.parametrize(("given", "message"), [
    ({"rater": "oracle"}, "unknown rater 'oracle'; there are rule, llm, local, guard"), ({"rater": "llm", "model": "m"}, "llm needs an endpoint"),
    ({"rater": "local"}, "local needs a model"), ({"rater": "rule", "rubric": "extended.v1"}, "knows rubric 'published.v2' alone"),
    ({"rater": "local", "model": "Qwen3-8B", "generators": ["qwen2"]}, "of the family of 'qwen2'"),
])
def test_what_a_rater_lacks_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        raters.judge_answers(answers("No."), **given)


def test_rule_and_a_model_on_this_machine_make_a_panel(tiny_model):
    both = pd.concat([raters.judge_answers(answers("I can't help.", "Sure."), "rule"), raters.judge_answers(answers("I can't help.", "Sure."), "local", model=str(tiny_model))])
    rows = check_table(raters.with_panel(both), "judgements", "f")
    assert set(rows.rater_kind) == {"rule", "local", "panel"}
    wide = rows[rows.criterion == "relevance"].pivot(index="generation_id", columns="rater", values="score")
    alone = [c for c in wide if not c.startswith("panel")]
    assert len(alone) == 2 and wide["panel:mean"].tolist() == pytest.approx(wide[alone].mean(axis=1).tolist())
    assert "refusal_class" not in set(rows.criterion[rows.rater_kind == "panel"])  # the rule rater's alone


def test_a_majority_a_tie_and_an_answer_that_one_rater_alone_scored():
    nan = float("nan")
    rows = raters.with_panel(pd.concat([judged("a", [1.0, 1.0, 1.0]), judged("b", [1.0, 0.0, nan]), judged("c", [0.0, nan, nan])], ignore_index=True))
    panel = rows[rows.rater_kind == "panel"].set_index(["rater", "generation_id"])
    assert panel.score["panel:majority"].tolist()[:1] == [1.0] and panel.score["panel:majority"].isna().tolist() == [False, True, True]
    assert panel.score["panel:mean"].tolist()[:2] == pytest.approx([2 / 3, 0.5]) and panel.status["panel:mean", "g2"] == "failed"
