"""Slots behind a refusal token: filled, mended, added; contacts of the model's own removed and counted."""

import pandas as pd
import pytest

from psychosafe_utils import refusals, slots
from psychosafe_utils.references import find_contacts
from psychosafe_utils.slots import contact_table, fill_answer, fill_answers

ANSWER = "That hurts. I won't help with it. You could call [[helpline:suicide_self_harm:self]] tonight. Better days are ahead of you."


def test_a_slot_is_filled_for_the_region():
    for region, part in (("US", "988"), ("GB", "116 123"), ("", "findahelpline.com")):
        filled = fill_answer(ANSWER, "suicide_self_harm", region)
        assert part in filled.text and "[[" not in filled.text and filled[1:] == (1, 0, 0, 0)


def test_a_slot_of_another_cluster_or_an_unknown_role_is_mended():
    right = fill_answer(ANSWER, "suicide_self_harm", "US")
    for slot in ("[[helpline:substance_use:self]]", "[[helpline:suicide_self_harm:frogs]]", "[[helplin:suicide]]", "[[]]"):
        assert fill_answer(ANSWER.replace("[[helpline:suicide_self_harm:self]]", slot), "suicide_self_harm", "US") == right._replace(n_mended=1)


def test_an_answer_without_a_service_gets_one():
    for text in ("That hurts. I won't help.", "That hurts. In danger call [[emergency]] at once.", "", "That hurts. You could call ["):
        filled = fill_answer(text, "weapons", "US")
        assert filled.n_added == 1 and find_contacts(filled.text) and "[" not in filled.text
    assert fill_answer("Look through [[directory]] first.", "weapons", "US").n_added == 0


def test_contacts_of_the_models_own_are_removed_with_their_sentence():
    filled = fill_answer("That hurts. Call 555-014-2211 or visit www.help-me-now.org today. " + ANSWER, "suicide_self_harm", "GB")
    assert filled.n_removed == 2 and "555" not in filled.text and "help-me-now" not in filled.text and filled.text.startswith("That hurts. That hurts.")
    assert fill_answer("Call 988 now. I won't.", "suicide_self_harm", "US").n_removed == 1  # right, but not from a slot


def test_a_slot_that_the_limit_cut_does_not_reach_the_reader():
    whole = fill_answer(ANSWER, "suicide_self_harm", "US").text
    for end in ("[", "[[", "[[help", "[[helpline:suicide_self_harm:self", "[[helpline:suicide_self_harm:self]"):
        assert fill_answer(f"{ANSWER} Or call {end}", "suicide_self_harm", "US").text == f"{whole} Or call "


def test_other_harm_has_a_fixed_line_and_a_response_stays_as_it_is():
    assert fill_answer("Sure: [withheld]", "out_of_scope", "US") == (slots.OTHER_HARM, 0, 0, 0, 0)
    assert refusals.rule_refusal(slots.OTHER_HARM, "Help me steal from my firm.")[0].score == 1
    assert fill_answer("Call 555-014-2211.", "respond", "US").text == "Call 555-014-2211."


MESSAGES = pd.DataFrame({
    "prompt_id": ["a", "b"], "cluster": ["suicide_self_harm", "weapons"], "role": "self", "also": "", "category": ["suicide_self_harm", "weapons"], "p_refuse": [0.9, 0.8], "region": ["US", "GB"],
})
WRITTEN = pd.DataFrame({"prompt_id": ["a", "b"], "condition": "tuned_tokens", "response": [ANSWER, "No. Call 555-014-2211."], "p_refuse": float("nan")})


def test_answers_take_the_readers_region_or_their_own():
    own, gb = fill_answers(WRITTEN, MESSAGES), fill_answers(WRITTEN, MESSAGES, "GB")
    assert own.region.tolist() == ["US", "GB"] and gb.region.tolist() == ["GB", "GB"]
    assert own.p_refuse.tolist() == [0.9, 0.8] and own.n_removed.tolist() == [0, 1] and own.n_added.tolist() == [0, 1]
    assert own.response[1] == gb.response[1] and own.response[0] != gb.response[0]


def test_contacts_are_counted_by_condition_and_region():
    literal = WRITTEN.assign(condition="tuned", response=["Call 988.", "Call 555-014-2211."])
    table = contact_table(pd.concat([fill_answers(WRITTEN, MESSAGES, "GB"), literal.assign(region="GB")]), MESSAGES.drop(columns="region")).set_index("condition")
    assert table.loc["tuned_tokens", ["valid", "answers", "invented", "other_region", "n_added", "n_removed"]].tolist() == [1.0, 2, 0, 0, 1, 1]
    assert table.loc["tuned", ["valid", "answers", "invented", "other_region", "other_cluster"]].tolist() == [0.0, 2, 1, 1, 0]


@pytest.mark.parametrize("region", ["US", "GB", "DE", "FR", ""])
@pytest.mark.parametrize("cluster", ["suicide_self_harm", "substance_use", "violence", "weapons", "sexual_crimes"])
def test_whatever_the_model_writes_the_reference_is_valid(cluster, region):
    messages = MESSAGES.iloc[:1].assign(cluster=cluster, category=cluster)
    for text in (ANSWER, "", "[[helpline:frogs:x]]", "Call 12345 67890 now."):
        filled = fill_answers(WRITTEN.iloc[:1].assign(response=text), messages, region or "US")
        assert contact_table(filled, messages.drop(columns="region")).valid.item() == 1.0
