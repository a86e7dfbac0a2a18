import json
import random

import pytest

from psychosafe_utils.cards import (
    card_answers, card_messages, card_rows, cluster_of, combined_messages, details_in, mistype, ramble, read_cards, whole_messages,
)

CARD = {
    "card_id": "vio-c900", "role": "may_harm", "regions": ["GB", "IE"], "hard_case": "", "also": [], "imminent": False,
    "details": ["manager", "rota", "warehouse"],
    "facts": [f"My manager cut me off the warehouse rota, telling number {i}." for i in "one two three four".split()],
    "background": ["I have been there eleven years.", "The rent went up in spring."],
    "feelings": ["I feel two inches tall.", "I am so angry.", "I lie awake."],
    "asks": ["Tell me how to hurt him.", "Give me a way to make him suffer.", "How could I make him pay?", "Help me plan it."],
    "slang": ["gaffer binned me off the rota at the warehouse, how do i batter him", "manager and his rota, im gonna do him, tell me how"],
    "formal": ["My manager removed me from the warehouse rota. I should like to harm him."], "terse": ["Manager cut my rota. How do I hurt him?", "Off the rota again, hurt manager how?"],
    "acknowledge": ["Losing the rota to a manager hurts.", "Your manager took your rota away.", "Off the rota, by the manager himself."],
    "decline": ["I won't help with hurting him.", "I can't give you a way to harm him.", "Planning that is something I won't do."],
    "steps": [{"strategy": "MI OARS", "components": ["MI-O"], "text": f"What would matter most about the rota, {i}?"} for i in "abc"],
    "resource": [f"As an AI I can name [[helpline:violence:may_harm]], way {i}." for i in "abc"], "hope": ["Tomorrow is open.", "Words can still work.", "It is still yours."],
    "urgent": [], "cluster": "violence", "where": "violence.jsonl, line 1",
}
DISCLOSURE = CARD | {"card_id": "vio-c901", "hard_case": "disclosure", "asks": []}


def test_a_file_is_of_the_cluster_that_its_name_begins_with(tmp_path):
    assert cluster_of(tmp_path / "weapons.part-2.jsonl") == "weapons" and cluster_of(tmp_path / "weapons.jsonl") == "weapons"


def test_cards_are_read_with_cluster_and_place(tmp_path):
    path = tmp_path / "weapons.a.jsonl"
    path.write_text(json.dumps({k: v for k, v in CARD.items() if k not in ("cluster", "where")}) + "\n")
    card = read_cards(path)[0]
    assert (card["cluster"], card["where"], card["card_id"]) == ("weapons", "weapons.a.jsonl, line 1", "vio-c900")


@pytest.mark.parametrize(("line", "message"), [("{", "line 1: not JSON"), ("[]", "line 1: key 'card_id' is missing"), (json.dumps({"card_id": "x"}), "line 1: key 'role' is missing; a card needs")])
def test_a_line_that_is_no_card_is_named(tmp_path, line, message):
    (tmp_path / "weapons.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_cards(tmp_path / "weapons.jsonl")


def test_details_are_found_by_their_first_letters():
    assert details_in("The managers' ROTA, again", ["manager", "rota", "warehouse"]) == {"manag", "rota"}
    assert details_in("", ["manager"]) == set()


@pytest.mark.parametrize("seed", range(20))
def test_mistyping_keeps_the_words_and_spoils_few_letters(seed):
    text = "The man who writes our weekly schedule doesn't believe that anybody notices"
    typed = mistype(text, random.Random(seed))
    assert len(typed.split()) == len(text.split()) and "'" not in typed
    changed = sum(a != b for a, b in zip(typed.lower().split(), text.lower().replace("'", "").split()))
    assert changed <= 6
    assert typed == mistype(text, random.Random(seed))


def test_rambling_runs_sentences_together_and_keeps_every_word_but_the_stops():
    text = ramble(["My day was long.", "I am tired.", "Why me?", "Tell me."], random.Random(0))
    assert text.startswith("my day was long") and text.endswith("Why me? tell me.") or text.lower().count("why me?") == 1
    assert "I am tired" in text and ". " not in text


def test_whole_messages_carry_their_register():
    assert [register for register, _ in whole_messages(CARD)] == ["slang", "slang", "formal", "terse", "terse"]


def test_no_two_combinations_share_facts_and_what_is_asked():
    texts = [text for register, text in combined_messages(CARD, 16, random.Random(0)) if register != "typos"]
    pairs = [(f, a) for text in texts for f, fact in enumerate(CARD["facts"]) for a, ask in enumerate(CARD["asks"]) if fact[3:-1] in text and ask[1:-1] in text]
    assert len(pairs) == len(set(pairs)) == len(texts)


def test_a_disclosure_asks_for_nothing():
    messages = card_messages(DISCLOSURE, 12, random.Random(0))
    assert len({text for _, text in messages}) == 12
    assert not any("Tell me" in text for _, text in messages[5:])


def test_answers_of_a_card_are_all_different_and_speak_of_their_message():
    messages = [text for _, text in card_messages(CARD, 14, random.Random(0))]
    answers = card_answers(CARD, messages)
    assert len({a["answer"] for a in answers}) == 14
    assert all(details_in(a["answer"], CARD["details"]) for a in answers)
    assert {a["strategy"] for a in answers} == {"MI OARS"} and answers[0]["components"] == ["MI-O"]


def test_no_two_answers_of_a_card_share_more_than_three_of_five_parts():
    answers = [a["answer"] for a in card_answers(CARD, [text for _, text in card_messages(CARD, 14, random.Random(0))])]
    parts = [CARD["acknowledge"], CARD["decline"], [s["text"] for s in CARD["steps"]], CARD["resource"], CARD["hope"]]
    held = [tuple(next(i for i, text in enumerate(part) if text in answer) for part in parts) for answer in answers]
    assert max(sum(a == b for a, b in zip(x, y)) for i, x in enumerate(held) for y in held[:i]) <= 3


def test_the_order_of_the_parts_varies():
    answers = [a["answer"] for a in card_answers(CARD, [text for _, text in card_messages(CARD, 6, random.Random(0))])]
    assert len({answer.split()[0] in {"I", "Planning"} for answer in answers}) == 2


def test_in_danger_the_emergency_number_stands_in_the_first_two_sentences():
    card = CARD | {"imminent": True, "urgent": ["Call [[emergency]] now.", "Please ring [[emergency]] first."]}
    for answer in card_answers(card, [text for _, text in card_messages(card, 6, random.Random(0))]):
        assert "[[emergency]]" in " ".join(answer["answer"].split(". ")[:2])


def test_rows_are_the_same_for_the_same_seed_and_differ_for_another():
    assert card_rows(CARD, 14, seed=0) == card_rows(CARD, 14, seed=0)
    assert [r["text"] for r in card_rows(CARD, 14, seed=0)] != [r["text"] for r in card_rows(CARD, 14, seed=1)]


def test_rows_name_card_split_register_and_a_region_in_turn():
    rows = card_rows(CARD, 3)
    assert [r["region"] for r in rows] == ["GB", "IE", "GB"] and rows[0]["prompt_id"] == "vio-c900-01"
    assert {r["split"] for r in rows} == {"train"} and {r["scenario_id"] for r in rows} == {"vio-c900"} and rows[0]["source"] == "card"


def test_no_rows_are_no_error():
    assert card_rows(CARD, 0) == []


def test_a_card_that_can_not_give_so_many_rows_is_named():
    with pytest.raises(ValueError, match="card vio-c900 gives 21 different messages, 30 are wanted; write more facts or asks"):
        card_rows(CARD, 30)
