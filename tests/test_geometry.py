"""Alignment geometry: indices by hand, pooling whatever the batch, weights and directions on data whose answer is known."""

import numpy as np
import pytest
import torch

from psychosafe_utils import geometry, models
from psychosafe_utils.geometry import DIRECTION, cluster_indices
from psychosafe_utils.prompts import render_chat

# Two groups on a line: 0 and 2, 10 and 12. Centres 1 and 11, each point 1 from its own.
LINE, UNSAFE = np.array([[0.0], [2.0], [10.0], [12.0]]), np.array([False, False, True, True])


def two_clouds(n=60, apart=3.0, layers=4, seed=0):
    """States, shape (n, layers, 5), in which layer 2 alone tells the two kinds apart."""
    rng = np.random.default_rng(seed)
    states, unsafe = rng.normal(size=(n, layers, 5)).astype(np.float32), np.arange(n) % 2 == 0
    states[unsafe, 2, 0] += apart
    return states, unsafe


def test_indices_by_hand():
    found = cluster_indices(LINE, UNSAFE)
    assert found["xie_beni"] == pytest.approx(4 * 1 / (4 * 100))
    assert found["dunn"] == pytest.approx(8 / 2)
    assert found["calinski_harabasz"] == pytest.approx((4 * 25 / 1) / (4 / 2))
    assert found["davies_bouldin"] == pytest.approx((1 + 1) / 10)
    assert found["variance_ratio"] == pytest.approx(1 - (1 - 100 / 104) * 3 / 2)
    assert found["aqi_published"] == pytest.approx(100 * (0.5 * 50 / 51 + 0.5 * 100 / 101))
    assert found["aqi_dbs_di"] == pytest.approx(100 * (0.5 * 5 / 6 + 0.5 * 4 / 5))


def test_for_groups_of_one_size_the_two_terms_of_aqi_say_one_thing():
    states, unsafe = two_clouds()
    found = cluster_indices(states[:, 2], unsafe)
    assert found["variance_ratio"] == pytest.approx(1 - (1 - 1 / (1 + 4 * found["xie_beni"])) * 59 / 58, abs=1e-6)
    assert found["aqi_fixed"] == pytest.approx(100 * found["variance_ratio"], abs=1e-4)


def test_the_published_normalisation_saturates_with_the_number_of_prompts_and_the_fixed_one_does_not():
    small, large = (cluster_indices(*[x[:, 2] if x.ndim == 3 else x for x in two_clouds(n, apart=1.0)]) for n in (40, 4000))
    assert large["calinski_harabasz"] > 20 * small["calinski_harabasz"]
    assert large["calinski_harabasz"] / (1 + large["calinski_harabasz"]) > 0.99
    assert abs(large["aqi_fixed"] - small["aqi_fixed"]) < 12


@pytest.mark.parametrize("n", [8, 40])
def test_without_a_difference_the_fixed_index_is_nought_on_average_whatever_the_number(n):
    values = [cluster_indices(states[:, 0], unsafe)["aqi_fixed"] for states, unsafe in (two_clouds(n, seed=s) for s in range(200))]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


@pytest.mark.parametrize("index", DIRECTION)
def test_every_index_points_where_it_says(index):
    near, far = (cluster_indices(*[x[:, 2] if x.ndim == 3 else x for x in two_clouds(apart=a)])[index] for a in (0.5, 8.0))
    assert (far - near) * DIRECTION[index] > 0


def test_dumb_cases():
    same = np.ones((6, 2)), np.array([True, False] * 3)
    assert geometry.variance_ratio(*same) == 0 and geometry.xie_beni(*same) == np.inf and geometry.dunn(*same) == np.inf
    with pytest.raises(ValueError, match="two safe and two unsafe"):
        cluster_indices(LINE, np.array([True, False, False, False]))


PAIRS = np.arange(60) // 2


def test_shuffled_labels_are_the_floor():
    states, unsafe = two_clouds()
    shuffled = geometry.shuffled_labels(states[:, 2], unsafe, PAIRS, "variance_ratio", n=40)
    assert cluster_indices(states[:, 2], unsafe)["variance_ratio"] > shuffled.max() and abs(shuffled.mean()) < 0.02


def test_a_pair_without_its_partner_is_named():
    states, unsafe = two_clouds()
    with pytest.raises(ValueError, match="pair '0' lacks its safe or its unsafe prompt"):
        geometry.bootstrap_index(states[:, 2], unsafe, np.where(np.arange(60) == 0, 99, PAIRS), "dunn")


def test_weights_find_the_layer_and_are_sparse():
    states, unsafe = two_clouds()
    weights = geometry.fit_layer_weights(states, unsafe)
    assert weights.argmax() == 2 and weights[2] > 0.6 and weights.sum() == pytest.approx(1) and (weights >= 0).all()
    other, labels = two_clouds(seed=5)
    scales = geometry.layer_scales(states)
    learned = cluster_indices(geometry.weighted_states(other, weights, scales), labels)["variance_ratio"]
    even = cluster_indices(geometry.weighted_states(other, np.full(4, 0.25), scales), labels)["variance_ratio"]
    assert learned > even


def test_bootstrap_samples_lie_around_the_estimate_and_are_the_same_pairs_for_any_points():
    states, unsafe = two_clouds()
    drawn = {l: geometry.bootstrap_index(states[:, l], unsafe, PAIRS, "variance_ratio", n_boot=60) for l in (0, 2)}
    for l, values in drawn.items():
        assert values.mean() == pytest.approx(cluster_indices(states[:, l], unsafe)["variance_ratio"]) and values.std() > 0
    again = geometry.bootstrap_index(states[:, 2] * 10, unsafe, PAIRS, "variance_ratio", n_boot=60)
    np.testing.assert_allclose(again, drawn[2], atol=1e-6)


def test_a_direction_found_on_some_prompts_tells_others_apart():
    states, unsafe = two_clouds()
    direction = geometry.refusal_direction(states, unsafe)
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, rtol=1e-5)
    other, labels = two_clouds(seed=9)
    table = geometry.direction_separation(other, labels, direction, p_refuse=other[:, 2, 0]).pivot(index="layer", columns="index", values="value")
    assert table.roc_auc[2] > 0.95 and abs(table.roc_auc[0] - 0.5) < 0.25 and table.cohens_d[2] > 2 and table.spearman_p_refuse[2] > 0.7


def test_the_layer_of_the_direction_is_chosen_across_halves_of_the_pairs():
    rng, unsafe = np.random.default_rng(0), np.arange(24) % 2 == 0
    states = rng.normal(size=(24, 4, 200)).astype(np.float32)  # so wide that within the same prompts every layer tells them apart
    states[unsafe, 2, 0] += 6
    direction = geometry.refusal_direction(states, unsafe)
    assert geometry.direction_separation(states, unsafe, direction).query("index == 'roc_auc'").value.min() > 0.99
    assert geometry.direction_layer(states, unsafe, PAIRS[:24]) == 2


def test_states_behind_a_cached_prefix_are_those_of_a_plain_pass(tiny_model, monkeypatch):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    lengths, make = [], geometry.prefix_cache
    monkeypatch.setattr(geometry, "prefix_cache", lambda *args: lengths.append(made := make(*args)) or made)
    system, texts, answers = "talk " * 30, ["what hurts", "feel " * 9, "  two spaces"], ["talk to someone", "the person", "can talk"]
    found = geometry.pooled_states(model, tokenizer, texts, answers=answers, system_prompt=system, batch_size=2)
    assert lengths[0][1] > 20
    for i in range(3):
        head, tail = (tokenizer(part, add_special_tokens=False).input_ids for part in (render_chat(tokenizer, texts[i], system), answers[i]))
        with torch.inference_mode():
            states = model(torch.tensor([head + tail]), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(found.mean[i, 2], states[2][0, len(head):].mean(0).numpy(), atol=2e-4)
        np.testing.assert_allclose(found.last[i, 2], states[2][0, -1].numpy(), atol=2e-4)


@pytest.mark.parametrize("shape, layers, tolerance", [("tiny_model", 3, {"atol": 2e-4}), ("tiny_hybrid", 5, {"rtol": 1e-3, "atol": 1e-3})])  # recurrent layers add up rounding
def test_pooling_does_not_hang_on_batch_padding_or_order(shape, layers, tolerance, request):
    folder = str(request.getfixturevalue(shape))
    tokenizer, model = models.load_tokenizer(folder), models.load_model(folder, four_bit=False, dtype=torch.float32)
    texts = ["what hurts today", "talk " * 25, "feel"]
    one, many = geometry.pooled_states(model, tokenizer, texts, batch_size=1), geometry.pooled_states(model, tokenizer, texts[::-1], batch_size=3)
    for a, b in zip(one, many):
        assert a.shape == (3, layers, 64)
        np.testing.assert_allclose(a, b[::-1], **tolerance)


def test_the_mean_leaves_out_what_every_chat_begins_with(tiny_model):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    bare, prompted = (geometry.pooled_states(model, tokenizer, ["what hurts"], system_prompt=p) for p in ("", "talk " * 30))
    heads = [tokenizer(render_chat(tokenizer, "what hurts", p), add_special_tokens=False).input_ids for p in ("", "talk " * 30)]
    embedding = model.get_input_embeddings().weight.detach().numpy()
    shared = len(heads[1]) - len(heads[0])
    assert shared > 20
    # Layer 0 knows no context, so with or without a system prompt the mean is the same.
    np.testing.assert_allclose(bare.mean[0, 0], prompted.mean[0, 0], atol=1e-6)
    assert np.abs(prompted.mean[0, 0] - embedding[heads[1]].mean(0)).max() > 1e-4


def test_states_of_answers_are_those_of_the_answers_tokens(tiny_model):
    tokenizer, model = models.load_tokenizer(str(tiny_model)), models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32)
    found = geometry.pooled_states(model, tokenizer, ["what hurts", "feel"], answers=["talk to someone", "the person can talk"])
    head, tail = tokenizer(render_chat(tokenizer, "feel", "")).input_ids, tokenizer("the person can talk").input_ids
    with torch.inference_mode():
        states = model(torch.tensor([head + tail]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found.mean[1, 1], states[1][0, len(head):].mean(0).numpy(), atol=2e-4)
    np.testing.assert_allclose(found.last[1, 2], states[2][0, -1].numpy(), atol=2e-4)


def test_controls(tiny_model):
    model = geometry.untrained_model(str(tiny_model), seed=1)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in models.load_model(str(tiny_model), four_bit=False).parameters())
    words = geometry.bag_of_words([f"frogs {i % 3} sing" for i in range(9)] + [f"cars {i % 3} roar" for i in range(9)], n_components=3)
    assert words.shape == (18, 1, 3) and cluster_indices(words[:, 0], np.arange(18) < 9)["variance_ratio"] > 0.5
