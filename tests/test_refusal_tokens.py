"""Refusal tokens: their ids, what is learnt, p(refuse) whatever the padding, thresholds by hand, and adapters that know new tokens."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from psychosafe_utils import finetune, generate, models
from psychosafe_utils import refusal_tokens as rt
from psychosafe_utils.prompts import render_chat
from psychosafe_utils.refusal_tokens import CATEGORIES, REFUSALS, RESPOND

PROMPTS = pd.DataFrame({
    "prompt_id": ["a", "b", "c", "d", "e"], "text": ["what hurts today", "talk about it", "feel for someone", "how are frogs", "trick them"],
    "cluster": ["violence", "violence", "weapons", "benign", "out_of_scope"],
})


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return models.load_tokenizer(str(tiny_model))


def test_the_embedded_vocabulary_has_free_tokens_and_they_are_single_ids():
    tokenizer = models.load_tokenizer(models.EMBEDDED)
    before = len(tokenizer)
    tokens = rt.assign_tokens(tokenizer)
    ids = rt.token_ids(tokenizer, tokens)
    assert len(tokenizer) == before and len(set(ids)) == 7 and set(tokens) == set(CATEGORIES)
    assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
    assert not any(text in tokenizer.chat_template for text in tokens.values())
    assert tokenizer("x" + tokens["weapons"] + "y", add_special_tokens=False).input_ids.count(ids[4]) == 1


def test_new_tokens_where_the_vocabulary_has_none(tiny_model):
    tokenizer = models.load_tokenizer(str(tiny_model))
    before, special = len(tokenizer), dict(tokenizer.special_tokens_map)
    tokens = rt.assign_tokens(tokenizer)
    assert rt.token_ids(tokenizer, tokens) == list(range(before, before + 7))
    assert tokenizer.special_tokens_map["eos_token"] == special["eos_token"]
    assert rt.assign_tokens(tokenizer) == tokens and len(tokenizer) == before + 7


def test_a_tokenizer_without_the_tokens_is_refused(tokenizer):
    fresh = models.load_tokenizer(tokenizer.name_or_path)
    with pytest.raises(rt.TokenError, match="not one id of its own"):
        rt.token_ids(fresh, {c: f"<|{c}|>" for c in CATEGORIES})


def test_what_is_learnt():
    tokens = {c: f"<{c}>" for c in CATEGORIES}
    alone = rt.token_rows(PROMPTS, tokens)
    assert alone.prompt_id.tolist() == list("abcde") and alone.answer.tolist() == ["<violence>", "<violence>", "<weapons>", "<respond>", "<out_of_scope>"]
    assert not alone.ends.any()
    risks = [c for c in REFUSALS if c != "out_of_scope"]
    prompts = pd.DataFrame({"prompt_id": list("abcdefgh"), "text": list("ABCDEFGH"), "cluster": [*risks, "violence", "benign", "out_of_scope"], "split": "train"})
    pairs = pd.DataFrame({"prompt_id": list("abcdefgh"), "answer_slots": ["1", "2", "3", "4", "5", None, "7", "8"]})
    answered = rt.answer_rows(prompts, pairs, tokens, "train", n_per_cluster=1)  # the untuned model answers the others, or a fixed line does
    assert answered.answer.tolist() == [f"<{c}>{i}" for i, c in enumerate(risks, start=1)] and answered.ends.all()
    assert len(rt.answer_rows(prompts, pairs.fillna("6"), tokens, "train", n_per_cluster=0)) == 6 and list(answered) == list(alone)


@pytest.mark.parametrize("shape, tolerance", [("tiny_model", 1e-5), ("tiny_hybrid", 1e-4)])  # recurrent layers add up rounding
def test_probabilities_do_not_hang_on_padding_batch_or_order(shape, tolerance, request):
    folder = str(request.getfixturevalue(shape))
    tokenizer, model = models.load_tokenizer(folder), models.load_model(folder, four_bit=False, dtype=torch.float32)
    tokens = rt.assign_tokens(tokenizer)
    torch.manual_seed(1)  # the new rows are drawn
    models.add_rows(model, tokenizer)
    texts = ["what hurts today", "talk " * 30, "feel", "someone can talk about what hurts " * 4]
    one_by_one, mass = rt.category_probabilities(model, tokenizer, texts, "", tokens, batch_size=1)
    together, mass_together = (rows[::-1] for rows in rt.category_probabilities(model, tokenizer, texts[::-1], "", tokens, batch_size=4))
    np.testing.assert_allclose(one_by_one, together, atol=tolerance)
    np.testing.assert_allclose(one_by_one.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(mass, mass_together, atol=tolerance)
    assert (0 < mass).all() and (mass < 0.2).all()  # an untrained model would say other things
    assert np.ptp(np.log(one_by_one[:, 0])) > 0.01


def test_probabilities_behind_a_system_prompt_are_those_of_a_plain_pass(tiny_model, monkeypatch):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    tokens = rt.assign_tokens(tokenizer)
    models.add_rows(model, tokenizer)
    lengths, make = [], rt.prefix_cache
    monkeypatch.setattr(rt, "prefix_cache", lambda *args: lengths.append(made := make(*args)) or made)
    found, mass = rt.category_probabilities(model, tokenizer, ["what hurts", "feel " * 9], "talk " * 30, tokens)
    assert lengths[0][1] > 20
    chat = tokenizer(render_chat(tokenizer, "what hurts", "talk " * 30), add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        plain = model(**chat).logits[0, -1].softmax(-1)[rt.token_ids(tokenizer, tokens)].numpy()
    np.testing.assert_allclose(found[0], plain / plain.sum(), atol=1e-5)
    assert mass[0] == pytest.approx(plain.sum(), abs=1e-5)


def test_bias_on_respond_is_a_threshold_on_p_refuse():
    p = np.array([[0.7, 0.1, 0.2, 0, 0, 0, 0], [0.4, 0.6, 0, 0, 0, 0, 0]])
    shifted = rt.shift_respond(p, np.log(2))
    assert shifted[0] == pytest.approx(np.array([1.4, 0.1, 0.2, 0, 0, 0, 0]) / 1.7) and shifted[1, 0] == pytest.approx(0.8 / 1.4)
    # p(refuse) >= t before is p(refuse) >= 1/2 after a bias of log(t / (1 - t))
    threshold = 0.25
    after = 1 - rt.shift_respond(p, np.log(threshold / (1 - threshold)))[:, 0]
    assert ((after >= 0.5) == (1 - p[:, 0] >= threshold)).all()


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.25])
def test_the_bias_is_the_least_that_keeps_the_budget(budget):
    rng = np.random.default_rng(2)
    p, harmful = rng.dirichlet(np.ones(7), 400), rng.random(400) < 0.4
    bias = rt.choose_bias(p, harmful, budget=budget)
    refused = rt.shift_respond(p, bias + 1e-9).argmax(axis=1) > 0
    assert refused[~harmful].mean() <= budget
    one_more = rt.shift_respond(p, bias - 1e-6).argmax(axis=1) > 0
    assert one_more[~harmful].sum() == refused[~harmful].sum() + 1


def rows(*pairs):
    """Probabilities from (category, p_refuse)."""
    table = np.zeros((len(pairs), 7))
    for i, (category, p) in enumerate(pairs):
        table[i, 0], table[i, 1 + REFUSALS.index(category)] = 1 - p, p
    return table


def test_thresholds_by_hand():
    # violence separates at once; among weapons one harmless message lies above a harmful one.
    p = rows(("violence", 0.9), ("violence", 0.2), ("weapons", 0.8), ("weapons", 0.6), ("weapons", 0.4), ("weapons", 0.1))
    harmful = np.array([True, False, True, False, True, False])
    strict = rt.choose_thresholds(p, harmful, budget=0.0)
    assert 0.2 < strict["violence"] <= 0.9 and 0.6 < strict["weapons"] <= 0.8 and strict["substance_use"] == 1.0
    assert rt.decide(p, strict) == ["violence", RESPOND, "weapons", RESPOND, RESPOND, RESPOND]
    loose = rt.choose_thresholds(p, harmful, budget=0.34)
    assert rt.decide(p, loose) == ["violence", RESPOND, "weapons", "weapons", "weapons", RESPOND]


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1, 0.5])
def test_the_budget_is_kept_and_a_larger_one_refuses_no_less(budget):
    rng = np.random.default_rng(1)
    harmful = rng.random(400) < 0.4
    p_refuse = np.clip(rng.normal(0.35 + 0.3 * harmful, 0.2), 0.01, 0.99)
    p = rows(*[(REFUSALS[rng.integers(6)], value) for value in p_refuse])
    refused = np.array([c != RESPOND for c in rt.decide(p, rt.choose_thresholds(p, harmful, budget=budget))])
    assert refused[~harmful].mean() <= budget
    more = np.array([c != RESPOND for c in rt.decide(p, rt.choose_thresholds(p, harmful, budget=budget + 0.2))])
    assert more[harmful].mean() >= refused[harmful].mean()


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_refuse_more_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    p = rows(*[(REFUSALS[rng.integers(3)], value) for value in rng.uniform(0.05, 0.95, 16)])
    harmful, (category, p_refuse) = rng.random(16) < 0.6, rt.top_refusal(p)
    refused = np.array([c != RESPOND for c in rt.decide(p, rt.choose_thresholds(p, harmful, budget=0.5))])
    tried = [p_refuse >= np.array(cuts)[category] for cuts in itertools.product([*p_refuse, 1.0], repeat=3)]
    assert refused[harmful].sum() == max(t[harmful].sum() for t in tried if t[~harmful].mean() <= 0.5)


def test_a_budget_of_nothing_refuses_nothing_where_a_harmless_message_is_as_sure_as_can_be():
    p, harmful = rows(("violence", 1.0), ("violence", 1.0), ("weapons", 1.0)), np.array([True, False, True])
    found = rt.choose_thresholds(p, harmful, budget=0.0)
    assert found["violence"] == 1.0 and rt.decide(p, found) == [RESPOND, RESPOND, "weapons"]


def test_the_mapping_is_saved_beside_the_adapter_and_read_again(tmp_path):
    tokens, thresholds = {c: f"<{c}>" for c in CATEGORIES}, {c: 0.5 for c in REFUSALS}
    rt.save_tokens(tmp_path, tokens, thresholds, budget=0.02)
    assert rt.load_tokens(tmp_path) == (tokens, thresholds)
    saved = json.loads((tmp_path / rt.TOKENS_FILE).read_text())
    del saved["thresholds"]["weapons"]
    (tmp_path / rt.TOKENS_FILE).write_text(json.dumps(saved))
    with pytest.raises(rt.TokenError, match="'weapons' is missing; run 07"):
        rt.load_tokens(tmp_path)
    with pytest.raises(rt.TokenError, match="knows no refusal tokens"):
        rt.load_tokens(tmp_path / "none")


@pytest.mark.parametrize("name", ["tiny_model", "tiny_hybrid"])
def test_new_tokens_are_learnt_and_their_rows_alone_are_kept(name, request, tmp_path):
    """A vocabulary without free tokens, with two matrices and with one for both sides: the harmful message's token comes first, also from the saved adapter."""
    tiny_model = request.getfixturevalue(name)
    tokenizer = models.load_tokenizer(str(tiny_model))
    tokens = rt.assign_tokens(tokenizer)
    learnt = rt.token_rows(PROMPTS, tokens)
    recipe = finetune.Recipe(lora_r=4, lora_alpha=8, learning_rate=0.03, max_steps=30, warmup_steps=2, batch_size=5, max_length=128, eval_steps=30, four_bit=False)
    folder, _ = finetune.train_adapter(str(tiny_model), "r", tokenizer, learnt, learnt, "", recipe=recipe, work=tmp_path, token_ids=tuple(rt.token_ids(tokenizer, tokens)))
    assert (folder / "adapter_model.safetensors").stat().st_size < 600 * 64 * 4
    model = models.load_model(str(tiny_model), four_bit=False, adapter=str(folder), tokenizer=tokenizer)
    p, mass = rt.category_probabilities(model, tokenizer, PROMPTS.text.tolist(), "", tokens)
    assert [CATEGORIES[i] for i in p.argmax(axis=1)] == ["violence", "violence", "weapons", RESPOND, "out_of_scope"] and (mass > 0.5).all()


def test_rows_begin_at_right_angles_and_as_long_as_others(tiny_model):
    model = models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    weight = model.get_input_embeddings().weight
    others, length = weight[10:].clone(), weight.norm(dim=1).mean().item()
    finetune._set_apart(model, (3, 5, 7), 0)
    found = weight[[3, 5, 7]].detach().numpy()
    np.testing.assert_allclose(found @ found.T, length**2 * np.eye(3), atol=1e-4)
    assert (weight[10:] == others).all()


def test_an_answer_goes_on_behind_its_token(tiny_model, tmp_path):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    decoding = generate.Decoding(max_new_tokens=5, batch_size=2)
    asked = PROMPTS[["prompt_id", "text"]].iloc[:2]
    plain = generate.generate_answers(model, tokenizer, asked, "", decoding=decoding, journal=tmp_path / "a.jsonl")
    begun = generate.generate_answers(model, tokenizer, asked.assign(begins="talk to someone"), "", decoding=decoding, journal=tmp_path / "b.jsonl")
    assert not begun.response.str.startswith("talk to someone").any() and plain.response.tolist() != begun.response.tolist()


def test_the_embedded_models_free_tokens_are_all_alike_until_they_are_trained(tmp_path):
    """Four of the seven have the same row but for rounding: no adapter on the layers alone can tell them apart."""
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer, model = models.load_tokenizer(models.EMBEDDED), models.load_model(models.EMBEDDED, four_bit=False)
    ids = rt.token_ids(tokenizer, rt.assign_tokens(tokenizer))
    rows = model.get_output_embeddings().weight[ids]
    like = torch.nn.functional.cosine_similarity(rows[:, None].float(), rows[None].float(), dim=-1)
    assert (like > 0.999).sum(dim=1).max() >= 4
    trained = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=finetune._rows_to_train(model, ids)))
    out = trained(input_ids=torch.tensor([[10, 20, 30]]), logits_to_keep=1).logits[0, -1, ids]
    out[-1].backward()
    gradients = [p.grad for n, p in trained.named_parameters() if "trainable_tokens" in n and p.grad is not None]
    assert gradients and any((g[-1] != 0).any() for g in gradients)
