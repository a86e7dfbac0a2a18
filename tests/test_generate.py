"""Batched, cached, resumable generation against plain one-by-one `generate`."""

import errno
import json

import pandas as pd
import pytest
import torch

from psychosafe_utils import generate, models
from psychosafe_utils.prompts import render_chat
from psychosafe_utils.tables import TableError

SYSTEM = "You are kind. " * 12
PROMPTS = pd.DataFrame({
    "prompt_id": [f"p{i}" for i in range(7)],
    "text": ["someone hurts", "what can the person talk about today and who can they talk to", "feels", "they talk", "to what?", "a b c d e f g h", "hi"],
})


def plain_answers(model, tokenizer, system, max_new_tokens):
    """One prompt at a time, by the library alone."""
    texts = []
    for text in PROMPTS.text:
        ids = tokenizer(render_chat(tokenizer, text, system), return_tensors="pt", add_special_tokens=False).input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("folder", ["tiny_model", "tiny_hybrid"])
@pytest.mark.parametrize("system", [SYSTEM, ""])
def test_batches_give_the_text_of_plain_generation(folder, system, request, tmp_path):
    folder = str(request.getfixturevalue(folder))
    tokenizer, model = models.load_tokenizer(folder), models.load_model(folder, four_bit=False, dtype=torch.float32)
    answers = generate.generate_answers(
        model, tokenizer, PROMPTS, system, decoding=generate.Decoding(20, 0.0, 0, 3), journal=tmp_path / "j.jsonl",
    )
    assert answers.prompt_id.tolist() == PROMPTS.prompt_id.tolist()
    assert answers.response.tolist() == plain_answers(model, tokenizer, system, 20)
    assert len(set(answers.response)) >= 3


def test_prefix_cache_is_used_only_where_it_may_be(tiny_model, tiny_hybrid):
    assert generate.shares_prefix_cache(models.load_model(str(tiny_model), four_bit=False))
    assert not generate.shares_prefix_cache(models.load_model(str(tiny_hybrid), four_bit=False))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_run_resumes_to_the_same_rows(tiny_model, tmp_path, temperature):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.bfloat16)
    decoding = generate.Decoding(12, temperature, 3, 2)
    whole = generate.generate_answers(model, tokenizer, PROMPTS, SYSTEM, decoding=decoding, journal=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(PROMPTS)
    # Killed in the middle of a batch, in the middle of a line.
    (tmp_path / "cut.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    resumed = generate.generate_answers(model, tokenizer, PROMPTS, SYSTEM, decoding=decoding, journal=tmp_path / "cut.jsonl")
    pd.testing.assert_frame_equal(resumed, whole)
    kept = (tmp_path / "cut.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["prompt_id"] for line in kept) == sorted(PROMPTS.prompt_id)


def test_a_finished_journal_needs_no_model(tiny_model, tmp_path):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    kwargs = {"decoding": generate.Decoding(4), "journal": tmp_path / "j.jsonl"}
    first = generate.generate_answers(model, tokenizer, PROMPTS, "", **kwargs)
    pd.testing.assert_frame_equal(generate.generate_answers(None, tokenizer, PROMPTS, "", **kwargs), first)


def test_sampling_depends_on_the_seed_and_repeats(tiny_model, tmp_path):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    def sample(seed, name):
        return generate.generate_answers(
            model, tokenizer, PROMPTS, "", decoding=generate.Decoding(8, 1.5, seed, 4), journal=tmp_path / name).response.tolist()
    assert sample(1, "a") == sample(1, "b") != sample(2, "c")


def test_an_answer_is_cut_at_its_end_token(tiny_model):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    hello = tokenizer("the person").input_ids
    assert generate._answer(tokenizer, [*hello, tokenizer.eos_token_id, 5, 5], model) == ("the person", "stop", len(hello))
    assert generate._answer(tokenizer, hello, model) == ("the person", "length", len(hello))
    assert generate._answer(tokenizer, [tokenizer.eos_token_id], model) == ("", "stop", 0)


def test_generation_ids_are_blind_and_distinct():
    answers = pd.DataFrame({"prompt_id": ["a", "b"], "response": ["x", "y"], "finish_reason": "stop", "n_tokens": 1})
    made = {"model": "m", "revision": "r", "seed": 0}
    one, two = (generate.generation_rows(answers, condition=c, **made) for c in ("generic", "tuned"))
    ids = [*one.generation_id, *two.generation_id]
    assert len(set(ids)) == 4 and not any("generic" in i or "tuned" in i for i in ids)


def test_a_full_disk_keeps_what_was_answered(tiny_model, tmp_path, monkeypatch):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    kwargs = {"decoding": generate.Decoding(6, batch_size=2), "journal": tmp_path / "j.jsonl"}
    written = []

    def fsync_of_a_disk_that_fills_up(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(TableError, match="j.jsonl: the disk is full; free some space.*resumes"):
        patch.setattr(generate.os, "fsync", fsync_of_a_disk_that_fills_up)
        generate.generate_answers(model, tokenizer, PROMPTS, "", **kwargs)
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) >= 4
    assert len(generate.generate_answers(model, tokenizer, PROMPTS, "", **kwargs)) == len(PROMPTS)


def test_no_prompts_give_no_rows(tiny_model, tmp_path):
    tokenizer = models.load_tokenizer(str(tiny_model))
    empty = generate.generate_answers(None, tokenizer, PROMPTS.iloc[:0], "", decoding=generate.Decoding(), journal=tmp_path / "j")
    assert empty.empty and "response" in empty
