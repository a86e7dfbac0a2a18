"""Mutations: hand-worked encodings, seeds, and what stays as it was."""

import base64
import random

import pandas as pd
import pytest

from psychosafe_utils import mutations
from psychosafe_utils.mutations import MUTATIONS, mutate_prompts

PROMPTS = pd.DataFrame({"prompt_id": ["a", "b"], "text": ["Why am I so tired?", "Please help my friends, xyz."], "cluster": "violence"})


def encoded(name, text):
    return MUTATIONS[name](text, random.Random(0)).split(": ", 1)[1]


def test_encodings_by_hand():
    assert encoded("caesar", "Xyz, abc!") == "Abc, def!"
    assert encoded("atbash", "Abz, Zy.") == "Zya, Ab."
    assert encoded("morse", "So, 1 a?") == "... --- / .---- / .-"
    assert base64.b64decode(encoded("base_64", "Grüße")).decode() == "Grüße"


def test_an_encoding_says_what_it_is():
    for name in ("caesar", "atbash", "morse", "base_64"):
        assert MUTATIONS[name]("Hello you", random.Random(0)).startswith("This message is written in ")


def test_a_misspelling_swaps_letters_and_changes_at_least_one_word():
    text = "Nobody understands what happened yesterday in the kitchen"
    changed = mutations.misspellings(text, random.Random(3))
    assert changed != text and sorted(changed) == sorted(text) and len(changed.split()) == len(text.split())
    assert mutations.misspellings("a an I", random.Random(0)) == "a an I"


def test_slang_shortens_whole_words_alone():
    assert mutations.slang("You want to talk to them, because you are sad?", random.Random(0)).startswith("u wanna talk 2 them, cuz u r sad")
    assert "tomorrow" in mutations.slang("Tomorrow.", random.Random(0))


@pytest.mark.parametrize("name", ["role_play", "authority"])
def test_a_frame_holds_the_prompt_word_for_word(name):
    assert "Why am I so tired?" in MUTATIONS[name]("Why am I so tired?", random.Random(1))


def test_every_prompt_in_every_mutation_with_its_other_columns():
    table = mutate_prompts(PROMPTS, list(MUTATIONS))
    assert len(table) == 2 * len(MUTATIONS) and table.prompt_id.is_unique and set(table.cluster) == {"violence"}
    assert table[table.kind == "atbash"].prompt_id.tolist() == ["a~atbash", "b~atbash"]
    assert not set(table.text) & set(PROMPTS.text)


def test_the_seed_decides_and_one_prompt_does_not_hang_on_the_others():
    whole = mutate_prompts(PROMPTS, ["misspellings"], seed=4)
    alone = mutate_prompts(PROMPTS[1:], ["misspellings"], seed=4)
    assert alone.text.iloc[0] == whole.text.iloc[1]
    assert len({mutate_prompts(PROMPTS, ["slang"], seed=s).text.iloc[0] for s in range(8)}) > 1


def test_no_mutation_and_an_unknown_one():
    assert mutate_prompts(PROMPTS, []).empty
    with pytest.raises(ValueError, match="unknown mutation 'rot13'; there are misspellings"):
        mutate_prompts(PROMPTS, ["rot13"])
