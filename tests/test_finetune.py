"""QLoRA: labels, memory plan, resumed training."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from psychosafe_utils import finetune, models
from psychosafe_utils.prompts import render_chat

PAIRS = pd.DataFrame({
    "prompt_id": [f"p{i}" for i in range(6)], "text": [f"what hurts today {i}" for i in range(6)],
    "answer": [f"talk to someone {i}" for i in range(6)],
})
RECIPE = finetune.Recipe(lora_r=2, batch_size=2, max_length=128, eval_steps=1, max_steps=4, warmup_steps=1, four_bit=False)


def test_loss_is_on_the_answer_and_its_end_alone(tiny_model):
    tokenizer = models.load_tokenizer(str(tiny_model))
    item = finetune.encode_pair(tokenizer, "what hurts?", "talk to someone", "You are kind.", 200)
    learned = [token for token in item["labels"] if token != -100]
    assert learned == tokenizer("talk to someone").input_ids + [tokenizer.eos_token_id]
    assert item["input_ids"][-len(learned):] == learned
    head = tokenizer.decode(item["input_ids"][: -len(learned)])
    assert head == render_chat(tokenizer, "what hurts?", "You are kind.") and head.endswith("assistant\n")


def test_a_beginning_does_not_teach_an_end(tiny_model):
    tokenizer = models.load_tokenizer(str(tiny_model))
    item = finetune.encode_pair(tokenizer, "what hurts?", "talk", "", 200, ends=False)
    assert [t for t in item["labels"] if t != -100] == tokenizer("talk").input_ids


def test_the_loss_on_the_kept_positions_is_the_whole_models_loss(tiny_model):
    """Rows of unequal length, padded on the left; the model's own loss over all positions is the reference."""
    from transformers import DataCollatorForSeq2Seq

    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False)
    rows = [finetune.encode_pair(tokenizer, p, a, "", 200) for p, a in (("what hurts?", "talk to someone"), ("feel", "a"), ("what hurts today " * 5, "the person"))]
    batch = finetune._collate(DataCollatorForSeq2Seq(tokenizer, padding=True), rows)
    labels = batch.pop("labels")
    assert batch["logits_to_keep"] < labels.shape[1] and (labels[:, -1] != -100).all()
    with torch.inference_mode():
        kept = finetune._loss_on_kept(model(**batch), labels)
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert kept.item() == pytest.approx(whole.item(), rel=1e-5)


def test_layers_below_the_first_get_no_adapter(tiny_model, tmp_path):
    folder, _ = train(tiny_model, tmp_path, RECIPE._replace(first_layer=1, max_steps=1))
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert any(".layers.1." in n for n in names) and not any(".layers.0." in n for n in names)


def test_a_prompt_that_leaves_no_room_is_named(tiny_model):
    with pytest.raises(ValueError, match="p0 fills all 8 tokens.*max_length"):
        finetune.encode_pairs(models.load_tokenizer(str(tiny_model)), PAIRS, "", 8)


def test_parameters_are_counted_by_kind():
    config = LlamaConfig(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, tie_word_embeddings=False)
    # A layer: q 8x8, k and v 4x8, o 8x8, gate, up and down 16x8; two norms of 8. Beside them: embedding, head, one norm.
    packed, others, per_rank = finetune.count_parameters(config)
    assert packed == 2 * (64 + 32 + 32 + 64 + 3 * 128)
    assert others == 2 * 2 * 8 + 8 + 2 * 100 * 8
    assert per_rank == 2 * (16 + 12 + 12 + 16 + 3 * 24)


def test_the_shape_of_the_paper_model_has_its_published_size():
    packed, others, _ = finetune.count_parameters(finetune.model_shape("Qwen/Qwen3.5-27B"))
    assert 26.5e9 < packed + others < 27.5e9


def test_memory_plan_by_hand():
    config = finetune.model_shape("Qwen/Qwen3.5-27B")
    packed, others, per_rank = finetune.count_parameters(config)
    plan = finetune.memory_plan(config, RECIPE._replace(four_bit=True, lora_r=4))
    assert plan["weights"] == pytest.approx((packed * 4.127 / 8 + others * 2) / 1e9)
    assert plan["adapter"] == plan["gradients"] == pytest.approx(per_rank * 4 * 4 / 1e9)
    assert plan["optimiser"] == pytest.approx(2 * plan["adapter"])
    assert plan["total"] == pytest.approx(plan[:-1].sum() * 1.1)
    in_16_bits = finetune.memory_plan(config, RECIPE)
    assert in_16_bits["weights"] == pytest.approx((packed + others) * 2 / 1e9)
    less = finetune.memory_plan(config, RECIPE._replace(gradient_checkpointing=True))
    assert less["activations"] < 0.5 * in_16_bits["activations"]


def test_memory_plan_of_the_embedded_model_is_near_what_training_takes():
    """2.6 GB resident were measured for 4 x 256 tokens, of which 0.9 GB are Python and its libraries."""
    plan = finetune.memory_plan(finetune.model_shape(models.EMBEDDED), finetune.Recipe(batch_size=4, max_length=256))
    assert 1.0 < plan["total"] < 2.6


def test_training_that_does_not_fit_says_what_helps():
    plan = pd.Series({"activations": 3.0, "total": 9.0})
    finetune.check_fit(plan, 9.0)
    with pytest.raises(finetune.FitError, match="9.0 GB.*8.9 GB are free.*batch_size.*gradient_checkpointing"):
        finetune.check_fit(plan, 8.9)


def train(tiny_model, work, recipe=RECIPE):
    tokenizer = models.load_tokenizer(str(tiny_model))
    return finetune.train_adapter(str(tiny_model), "r", tokenizer, PAIRS, PAIRS[:2], "", recipe=recipe, work=work)


def test_rows_of_like_length_share_a_batch_and_batches_come_in_random_order():
    lengths = [5, 90, 7, 80, 6, 85, 70, 8, 75, 100, 20, 21, 22, 23]
    order = finetune.rows_in_order(lengths, 4, seed=1)
    assert sorted(order) == list(range(14)) and finetune.rows_in_order(lengths, 4, seed=1) == order
    batches = [sorted(lengths[i] for i in order[k:k + 4]) for k in (0, 4, 8)]
    assert batches[0] == [80, 85, 90, 100]  # a want of memory shows at the start
    assert sorted(batches[1:]) == [[7, 8, 20, 21], [22, 23, 70, 75]] and sorted(lengths[i] for i in order[12:]) == [5, 6]
    second = {finetune.rows_in_order(list(range(400)), 4, seed=s)[4] // 4 for s in range(20)}
    assert len(second) > 10  # no order by length
    assert finetune.rows_in_order([3, 2, 1], 4, seed=0) == [2, 1, 0] and finetune.rows_in_order([], 4, seed=0) == []


def test_training_learns_and_a_second_call_returns_the_same(tiny_model, tmp_path, monkeypatch):
    folder, curve = train(tiny_model, tmp_path, RECIPE._replace(learning_rate=0.05, max_steps=12))
    val = curve[curve.split == "val"].loss
    assert val.iloc[-1] < 0.8 * val.iloc[0]
    assert not list(folder.glob("checkpoint-*"))
    monkeypatch.setattr(finetune, "_train", None)  # a second training would fail
    again, curve_again = train(tiny_model, tmp_path, RECIPE._replace(learning_rate=0.05, max_steps=12))
    assert again == folder and finetune.adapter_hash(again) == finetune.adapter_hash(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)
    pd.testing.assert_frame_equal(curve, curve_again)


@pytest.mark.parametrize("four_bit", [False, True])
def test_training_resumes_to_the_same_adapter(tiny_model, tmp_path, monkeypatch, four_bit):
    recipe = RECIPE._replace(four_bit=four_bit)
    whole, curve = train(tiny_model, tmp_path / "whole", recipe)

    class Killed(Exception):
        pass

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(finetune._Progress, "on_step_begin", kill, raising=False)
        train(tiny_model, tmp_path / "cut", recipe)
    half = next((tmp_path / "cut").glob("adapter-*")) / "checkpoint-9"
    half.mkdir()  # a checkpoint that was being written when the run died
    resumed, curve_resumed = train(tiny_model, tmp_path / "cut", recipe)
    assert finetune.adapter_hash(resumed) == finetune.adapter_hash(whole)
    pd.testing.assert_frame_equal(curve_resumed, curve)


def test_another_recipe_is_another_adapter(tiny_model, tmp_path):
    one, _ = train(tiny_model, tmp_path)
    two, _ = train(tiny_model, tmp_path, RECIPE._replace(learning_rate=1e-2))
    assert one != two and finetune.adapter_hash(one) != finetune.adapter_hash(two)
    generations = pd.DataFrame({"adapter": [finetune.adapter_hash(two)]})
    (tmp_path / "training").mkdir()
    for folder in (one, two):
        folder.rename(tmp_path / "training" / folder.name)
    assert finetune.find_adapter(tmp_path, generations).name == two.name
    with pytest.raises(FileNotFoundError, match="run 03_finetune_qlora again"):
        finetune.find_adapter(tmp_path, pd.DataFrame({"adapter": ["feed"]}))


def test_gradients_reach_every_layer_in_4_bits_also_after_an_evaluation():
    """bitsandbytes' CPU kernel for evaluation would cut them off; needs layers as wide as the embedded model's to show."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(models.load_model(models.EMBEDDED, four_bit=True, for_training=True), LoraConfig(r=2, target_modules=["q_proj"]))
    ids = torch.tensor([[10, 20, 30, 40]])

    def gradients():
        model.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.stack([p.grad.norm() for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n])

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert len(before) == 30 and (before > 0).all()
    torch.testing.assert_close(gradients(), before)


def test_learning_curve_from_a_log():
    log = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.5, "learning_rate": 0.1}, {"step": 1, "eval_loss": 2.0}, {"step": 1, "train_runtime": 3}]
    curve = finetune.learning_curve(log)
    assert curve[["step", "split", "loss"]].values.tolist() == [[0, "val", 3.0], [1, "train", 2.5], [1, "val", 2.0]]
    assert torch.isnan(torch.tensor(curve.learning_rate.iloc[0]))
