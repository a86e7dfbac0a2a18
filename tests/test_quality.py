import pandas as pd
import pytest

from psychosafe_utils.quality import commonest_share, distinct_n, fits_own_prompt, measure_corpus, nearest_similarity, one_template_corpus, variety
from psychosafe_utils.words import content_stems, content_words, sentences_of


def test_sentences_by_hand():
    assert sentences_of('One. "Two!" Three? four') == ["One.", '"Two!', "Three?", "four"]
    assert sentences_of("") == []


def test_stems_by_hand():
    assert content_stems("The managers’ rotas, and the ROTA again") == ["manage", "rotas", "rota"]
    assert content_words("rota rota") == {"rota"} and content_words("the of it") == set()


def test_the_commonest_share_by_hand():
    assert commonest_share(["a", "b", "a", "c"]) == 0.5 and commonest_share([]) == 0


@pytest.mark.parametrize(("texts", "value"), [(["a b c d"], 1.0), (["a b c", "a b c"], 0.5), (["a b"], 0.0), ([], 0.0), (["A b, c"] * 4, 0.25)])
def test_distinct_3_by_hand(texts, value):
    assert distinct_n(texts) == value


def test_equal_texts_are_their_own_nearest_neighbours_and_unlike_ones_are_far():
    assert nearest_similarity(["manager rota warehouse"] * 3) == pytest.approx(1)
    assert nearest_similarity(["manager rota", "garden fern", "trumpet solo"]) == pytest.approx(0)
    assert nearest_similarity(["manager rota", "manager rota", "garden fern"]) == pytest.approx(2 / 3)


def own_table(answers):
    texts = ["My manager cut the rota", "My garden fern died", "The trumpet broke", "Our ferry sank"]
    return pd.DataFrame({"text": texts, "answer": answers, "cluster": "violence", "scenario_id": list("abcd")})


def test_an_answer_fits_its_own_prompt_or_another_or_none():
    table = own_table(["That manager and the rota!", "A trumpet, then.", "Trumpets break.", "How hard."])
    assert fits_own_prompt(table).tolist() == [True, False, True, False]


def test_prompts_of_the_same_scenario_are_no_rivals():
    table = own_table(["manager rota", "fern", "trumpet", "ferry"]).assign(text=["manager rota", "manager rota", "trumpet", "ferry"], scenario_id=["a", "a", "c", "d"])
    assert fits_own_prompt(table)[0]


def test_one_template_is_the_first_answer_of_each_cluster():
    table = own_table(["a", "b", "c", "d"]).assign(cluster=["violence", "weapons"] * 2)
    assert one_template_corpus(table).tolist() == ["a", "b", "a", "b"]


def test_variety_sets_a_corpus_beside_one_template():
    table = own_table([f"words that are only number {i} here" for i in ("one", "two", "three", "four")])
    both = variety(table)
    assert both.loc["distinct-3", "this corpus"] > both.loc["distinct-3", "one template a cluster"]
    assert both.loc["mean nearest-neighbour similarity", "one template a cluster"] == pytest.approx(1)


def corpus_of(*answers):
    from tests.test_writing import PROMPT

    n = len(answers)
    texts = [PROMPT, *[f"My neighbour number {i} plays a loud trumpet. Tell me how to scare him." for i in range(1, n)]]
    prompts = pd.DataFrame({
        "prompt_id": [f"p{i}" for i in range(n)], "text": texts, "cluster": "violence", "role": "may_harm", "split": ["train"] * (n - 1) + ["test"], "region": "GB",
        "scenario_id": [f"s{i}" for i in range(n)], "pair_id": "", "hard_case": "", "also": "",
    })
    return prompts, pd.DataFrame({"prompt_id": prompts.prompt_id, "answer": answers, "answer_slots": answers})


def test_measures_find_what_is_wrong():
    from tests.test_writing import GOOD

    good = GOOD.replace("[[helpline:suicide_self_harm:self]]", "Samaritans (call 116 123)")
    bad = good.replace("I won't help with hurting him.", "Fine.").replace("116 123", "1-800-273-8255")
    measured = measure_corpus(*corpus_of(good, bad, bad)).set_index("measure")
    assert measured.value["exact duplicates among answers"] == 1 and not measured.met["exact duplicates among answers"]
    assert measured.value["contacts unknown or superseded, any answer"] == 2
    assert measured.value["contacts outside the registry, or of another cluster, role or region"] == 2
    assert measured.value["answers without one of the four parts, by the rule rater"] == pytest.approx(2 / 3)
    assert measured.value["commonest opening sentence of an answer"] == 1
    assert measured.value["near-duplicates across splits (Jaccard 0.5)"] == 1
    assert measured.value["answers that fit one of nine other prompts better than their own"] == pytest.approx(2 / 3)
    assert measured.looked_at["contacts outside the registry, or of another cluster, role or region"] == 6
