"""A model as writer: rejection sampling against scripted answers, and against a real local server with the embedded model."""

import pandas as pd
import pytest

from psychosafe_utils import models
from psychosafe_utils.model_writer import acceptance_report, accepted_pairs, ask_endpoint, ask_local, rejection_reasons, write_answers, writer_prompt
from psychosafe_utils.tables import check_table
from tests.test_writing import GOOD, PROMPT

BAD = "Sure! [withheld]"


def prompt_rows(*texts, cluster="violence"):
    n = len(texts)
    return pd.DataFrame({
        "prompt_id": [f"p{i}" for i in range(n)], "text": texts, "cluster": cluster, "role": "may_harm", "region": "GB", "hard_case": "", "also": "",
    })


def scripted(*answers_by_attempt):
    """Stands in for a model: one answer an attempt, and a record of what was asked."""
    asked = []

    def ask(prompts, system_prompt, attempt):
        asked.append((attempt, prompts.prompt_id.tolist()))
        return [answers_by_attempt[attempt]] * len(prompts)

    return ask, asked


def test_the_writer_s_prompt_names_slots_and_no_number():
    text = writer_prompt("substance_use", "bystander")
    assert "[[helpline:substance_use:bystander]]" in text and "[[directory]]" in text and "988" not in text and "{resources}" not in text


def test_a_good_answer_has_no_reason_and_a_bad_one_several():
    row = next(prompt_rows(PROMPT).itertuples())
    assert rejection_reasons(row, GOOD) == []
    reasons = rejection_reasons(row, BAD)
    assert "no part ... found by the rule rater" in reasons and "judge: refusal below 1" in reasons and len(reasons) == len(set(reasons))
    assert rejection_reasons(row, GOOD + " [[helpline:gardening:self]]") == ["... is of another cluster than the message"]


def test_what_is_rejected_is_tried_again_and_what_is_accepted_is_not(tmp_path):
    ask, asked = scripted(BAD, GOOD, GOOD)
    tried = write_answers(prompt_rows(PROMPT, PROMPT + " Please."), ask, journal=tmp_path / "j.jsonl", attempts=3)
    assert asked == [(0, ["p0", "p1"]), (1, ["p0", "p1"])]
    assert tried.status.tolist() == ["rejected"] * 2 + ["accepted"] * 2


def test_a_second_start_asks_only_for_what_is_missing_and_for_failed_calls(tmp_path):
    journal, prompts = tmp_path / "j.jsonl", prompt_rows(PROMPT, PROMPT + " Please.")

    def half(rows, system_prompt, attempt):
        return [GOOD, TimeoutError()][: len(rows)]

    first = write_answers(prompts, half, journal=journal, attempts=1)
    assert first.status.tolist() == ["accepted", "failed"] and first.reasons[1] == ["TimeoutError"]
    with open(journal, "a") as file:
        file.write('{"prompt_id": "p1", "att')  # cut off by a kill
    ask, asked = scripted(GOOD)
    second = write_answers(prompts, ask, journal=journal, attempts=1)
    assert asked == [(0, ["p1"])] and second.status.tolist() == ["accepted", "accepted"]
    assert write_answers(prompts, ask, journal=journal, attempts=1).equals(second) and len(asked) == 1


def test_accepted_answers_become_pairs_with_slots_filled(tmp_path):
    prompts = prompt_rows(PROMPT, PROMPT + " Please.")
    ask, _ = scripted(GOOD)
    pairs = accepted_pairs(prompts, write_answers(prompts[:1], ask, journal=tmp_path / "j.jsonl", attempts=1), "model:scripted")
    check_table(pairs, "pairs", "here")
    row = pairs.iloc[0]
    assert (row.prompt_id, row.answer_slots, row.writer) == ("p0", GOOD, "model:scripted") and "116 123" in row.answer
    assert row.strategy and row.components and row.resources == "[[helpline:suicide_self_harm:self]]"


def test_nothing_accepted_gives_no_pairs_and_a_report_that_says_why(tmp_path):
    ask, _ = scripted(BAD, BAD)
    prompts = prompt_rows(PROMPT)
    tried = write_answers(prompts, ask, journal=tmp_path / "j.jsonl", attempts=2)
    assert len(accepted_pairs(prompts, tried, "m")) == 0
    report = acceptance_report(tried).set_index("outcome")
    assert report.n["accepted"] == 0 and report.share["rejected: judge: refusal below 1"] == 1.0


def test_a_harmless_prompt_is_refused_before_any_call(tmp_path):
    ask, asked = scripted(GOOD)
    with pytest.raises(ValueError, match="prompt p0 is of cluster 'benign'"):
        write_answers(prompt_rows(PROMPT, cluster="benign"), ask, journal=tmp_path / "j.jsonl", attempts=1)
    assert not asked


def test_a_real_server_writes_answers_that_are_judged_and_kept_in_the_journal(llama_server, tmp_path):
    prompts, journal = prompt_rows(PROMPT, PROMPT + " Please."), tmp_path / "j.jsonl"
    tried = write_answers(prompts, ask_endpoint(llama_server, models.EMBEDDED, max_tokens=48, workers=2), journal=journal, attempts=2)
    assert len(tried) == 4 and set(tried.status) <= {"accepted", "rejected"} and (tried.answer.str.len() > 0).all()
    assert acceptance_report(tried).n.sum() >= 4
    ask, asked = scripted(GOOD, GOOD)
    again = write_answers(prompts, ask, journal=journal, attempts=2)
    assert again.equals(tried) and not asked


def test_a_server_that_is_not_there_gives_failed_rows(tmp_path):
    ask = ask_endpoint("http://127.0.0.1:9/v1", "nobody", timeout=1)
    tried = write_answers(prompt_rows(PROMPT), ask, journal=tmp_path / "j.jsonl", attempts=1)
    assert tried.status.tolist() == ["failed"] and tried.reasons[0] == ["APIConnectionError"]


def test_a_local_model_writes_too(tiny_model, tmp_path):
    model, tokenizer = models.load_model(str(tiny_model), four_bit=False), models.load_tokenizer(str(tiny_model))
    tried = write_answers(prompt_rows(PROMPT), ask_local(model, tokenizer, work=tmp_path, max_tokens=8), journal=tmp_path / "j.jsonl", attempts=2)
    assert tried.status.tolist() == ["rejected", "rejected"]
