import json
import time

import pandas as pd
import pytest

from psychosafe_utils import corpus
from psychosafe_utils.config import CLUSTERS, REGISTERS, RISK_CLUSTERS
from psychosafe_utils.corpus import (
    FOLDER, CorpusError, check_corpus, find_foreign_contacts, find_unsafe, build_corpus, load_corpus, save_corpus, near_duplicates, take_per_cluster, unsafe_wording, word_shingles,
)
from psychosafe_utils.helplines import fill_slots
from psychosafe_utils.quality import measure_corpus
from psychosafe_utils.tables import TableError, sha256_of
from psychosafe_utils.writing import check_file

ROW = {
    "scenario_id": "s-1", "split": "train", "role": "self", "region": "GB", "text": "How do I repot a fern?",
    "answer": "Water it, lift it out and settle it in fresh compost.",
}


def write_rows(folder, *rows, cluster="benign"):
    """A corpus file of rows: each given as what differs from ROW, or as a raw line."""
    lines = [row if isinstance(row, str) else json.dumps(ROW | row, ensure_ascii=False) for row in rows]
    (folder / "written").mkdir(exist_ok=True)
    (folder / "written" / f"{cluster}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def prompt_table(*texts, **columns):
    ids = [f"p{i}" for i in range(len(texts))]
    return pd.DataFrame({"prompt_id": ids, "text": texts, "cluster": "weapons", "split": "train", "scenario_id": ids, "pair_id": ""} | columns)


def pair_table(*answers):
    return pd.DataFrame({"prompt_id": [f"p{i}" for i in range(len(answers))], "answer": answers, "answer_slots": answers})


def check(prompts, pairs, duplicate_jaccard=0.5):
    return check_corpus(prompts, pairs, duplicate_jaccard=duplicate_jaccard)


def test_one_row_becomes_a_prompt_and_a_pair_with_the_slot_filled(tmp_path):
    row = {"answer": "Try [[helpline:suicide_self_harm:self]] or [[directory]].", "strategy": "MI", "components": ["MI-A", "MI-R"], "pair": "s-9"}
    prompts, pairs = build_corpus(write_rows(tmp_path, row, cluster="suicide_self_harm"))
    prompt, pair = prompts.iloc[0], pairs.iloc[0]
    assert (prompt.prompt_id, prompt.cluster, prompt.pair_id, prompt.source, prompt.register) == ("s-1-1", "suicide_self_harm", "s-9", "written", "")
    assert pair.answer == "Try Samaritans (call 116 123, email jo@samaritans.org) or Find A Helpline (findahelpline.com)."
    assert pair.answer_slots == row["answer"]
    assert (pair.strategy, pair.components, pair.writer) == ("MI", "MI-A|MI-R", "hand")
    assert pair.resources == "[[helpline:suicide_self_harm:self]]|[[directory]]"


def test_rows_of_one_scenario_are_counted_across_the_file(tmp_path):
    prompts, _ = build_corpus(write_rows(tmp_path, {}, {"scenario_id": "s-2"}, {}))
    assert prompts.prompt_id.tolist() == ["s-1-1", "s-1-2", "s-2-1"]


def test_a_region_replaces_that_of_the_rows(tmp_path):
    folder = write_rows(tmp_path, {"answer": "In danger call [[emergency]]."})
    assert build_corpus(folder)[1].answer.tolist() == ["In danger call 999."]
    assert build_corpus(folder, region="US")[1].answer.tolist() == ["In danger call 911."]


def test_a_row_without_an_answer_has_a_prompt_and_no_pair(tmp_path):
    prompts, pairs = build_corpus(write_rows(tmp_path, {}, {"answer": ""}))
    assert (len(prompts), pairs.prompt_id.tolist()) == (2, ["s-1-1"])


def test_a_corpus_without_any_answer_has_no_pairs(tmp_path):
    prompts, pairs = build_corpus(write_rows(tmp_path, {"answer": ""}))
    assert (len(prompts), len(pairs)) == (1, 0)


@pytest.mark.parametrize("text", ["", " \t"])
def test_a_row_with_an_empty_prompt_is_named(tmp_path, text):
    with pytest.raises(CorpusError, match=r"benign\.jsonl, line 2: the prompt is empty; write one or delete the row"):
        build_corpus(write_rows(tmp_path, {}, {"text": text}))


@pytest.mark.parametrize("key", ["scenario_id", "split", "role", "region", "text", "answer"])
def test_a_row_that_lacks_a_key_is_named(tmp_path, key):
    short = json.dumps({k: v for k, v in ROW.items() if k != key})
    with pytest.raises(CorpusError, match=rf"benign\.jsonl, line 2: key '{key}' is missing; a row needs scenario_id, "):
        build_corpus(write_rows(tmp_path, {}, short))


@pytest.mark.parametrize("line", ["", "{", "{'text': 1}", "[]", '"text"', "5", "null"])
def test_a_line_that_is_no_json_object_is_named(tmp_path, line):
    with pytest.raises(CorpusError, match=r"benign\.jsonl, line 2: "):
        build_corpus(write_rows(tmp_path, {}, line))


@pytest.mark.parametrize("value", [None, 5])
def test_a_prompt_that_is_no_text_is_named(tmp_path, value):
    with pytest.raises(CorpusError, match=r"benign\.jsonl, line 2: "):
        build_corpus(write_rows(tmp_path, {}, {"text": value}))


def test_a_unicode_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    prompts, _ = build_corpus(write_rows(tmp_path, {"text": "One line\u2028and another"}))
    assert len(prompts) == 1 and prompts.text[0].startswith("One line")


def test_an_id_that_occurs_twice_is_named_with_folder_and_row(tmp_path):
    with pytest.raises(TableError, match=r"row 1: prompt_id 'x' occurs twice; keep one of the two") as error:
        build_corpus(write_rows(tmp_path, {"prompt_id": "x"}, {"prompt_id": "x"}))
    assert str(tmp_path) in str(error.value)


def test_a_file_that_is_no_clusters_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"gardening\.jsonl: unknown cluster 'gardening'; name the file after one of suicide_self_harm, "):
        build_corpus(write_rows(tmp_path, {}, cluster="gardening"))


@pytest.mark.parametrize(("column", "value"), [("split", "dev"), ("role", "gardener"), ("region", "XX")])
def test_a_value_outside_its_list_is_named_with_row_and_column(tmp_path, column, value):
    with pytest.raises(TableError, match=rf"row 1: column '{column}' has '{value}'.*mend the row"):
        build_corpus(write_rows(tmp_path, {}, {column: value}))


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(CorpusError, match=r"holds neither cards/<cluster>\.jsonl nor written/<cluster>\.jsonl with a row; clusters: suicide_self_harm, .*benign"):
        build_corpus(tmp_path)


def test_an_empty_file_beside_a_filled_one_is_no_error(tmp_path):
    write_rows(tmp_path, cluster="weapons")
    assert len(build_corpus(write_rows(tmp_path, {}))[0]) == 1


@pytest.mark.parametrize("slot", ["[[helpline:gardening:self]]", "[[helpline:weapons:gardener]]", "[[hotline]]", "[[emergency]", "[emergency]]"])
def test_a_slot_that_cannot_be_filled_is_named_with_its_row(tmp_path, slot):
    with pytest.raises(CorpusError, match=r"benign\.jsonl, line 2: "):
        build_corpus(write_rows(tmp_path, {}, {"answer": f"Call {slot} now."}))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("promises", "Promise me you will rest.", "Promise me"), ("diagnoses", "It seems you are depressed.", "you are depressed"),
        ("diagnoses", "It seems you're depressed.", "you're depressed"), ("diagnoses", "It seems you’re depressed.", "you’re depressed"),
        ("labels", "Some call them addicts.", "addicts"), ("amounts", "He took 5 mg.", "5 mg"), ("methods", "a bottle of bleach", "bleach"),
        ("stigma", "It was a cry for help.", "cry for help"),
    ],
)
def test_unsafe_wording_is_found_in_any_case_as_whole_words(kind, text, words):
    assert unsafe_wording(text, (kind,)) == ((kind, words),)


@pytest.mark.parametrize("text", ["", "Compromise means a lot.", "addicted to crosswords", "bleachers at the stadium", "You are tired."])
def test_harmless_wording_is_not_found(text):
    assert unsafe_wording(text, ("promises", "diagnoses", "labels", "amounts", "methods", "stigma")) == ()


def test_words_of_methods_count_in_risk_clusters_only_and_labels_in_answers_only():
    prompts = prompt_table("bleach and addicts", "bleach and addicts", cluster=["weapons", "benign"])
    assert find_unsafe(prompts, pair_table()) == ["prompt p0: methods 'bleach'"]
    assert find_unsafe(prompt_table("", "", cluster=["weapons", "benign"]), pair_table("no addicts", "no addicts")) == ["answer p0: labels 'addicts'"]


def test_amounts_count_everywhere():
    prompts = prompt_table("take 2 pills", cluster="benign")
    assert find_unsafe(prompts, pair_table("take 3 pills")) == ["prompt p0: amounts '2 pills'", "answer p0: amounts '3 pills'"]


@pytest.mark.parametrize(
    ("cluster", "answer", "findings"),
    [
        ("weapons", "Call 555-0142 at once.", ["answer p0: '555-0142' is unknown to the registry"]),
        ("benign", "Call 555-0142 at once.", ["answer p0: '555-0142' is unknown to the registry"]),
        ("weapons", "Call FRANK on 0800 77 66 00.", ["answer p0: '0800 77 66 00' is superseded to the registry"]),
        ("weapons", "See example.org for more.", ["answer p0: 'example.org' is unknown to the registry"]),
        ("benign", "See example.org for more.", []), ("weapons", "Call Samaritans on 116 123.", []), ("weapons", "", []),
    ],
)
def test_contacts_outside_the_registry(cluster, answer, findings):
    assert find_foreign_contacts(prompt_table("a", cluster=cluster), pair_table(answer)) == findings


def test_shingles_by_hand():
    assert word_shingles("A b, c d? E f!") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}
    assert word_shingles("too short") == {("too", "short")}
    assert len(word_shingles("")) == 1


def test_near_duplicates_by_hand():
    # Two 5-grams each, one in common: 1 of 3.
    prompts = prompt_table("a b c d e f", "a b c d e g", "v w x y z", split=["train", "test", "test"])
    near = near_duplicates(prompts, 1 / 3)
    assert near.to_dict("records") == [{"prompt_a": "p0", "prompt_b": "p1", "split_a": "train", "split_b": "test", "jaccard": 1 / 3}]
    assert near_duplicates(prompts, 0.34).empty


@pytest.mark.parametrize(("texts", "n"), [([], 0), (["Why do cats purr so loudly?"], 0), (["Why do cats purr so loudly?"] * 3, 3), (["why do CATS purr", "Why do cats purr?"], 1)])
def test_near_duplicates_in_the_dumb_cases(texts, n):
    assert len(near_duplicates(prompt_table(*texts), 0.5)) == n


def test_a_sound_corpus_passes_with_what_was_looked_at():
    checks = check(prompt_table("Why do cats purr so loudly?", "How tall is a full grown oak?", scenario_id="s"), pair_table("One.", "Two."))
    assert checks.looked_at.tolist() == [2, 2, 2, 1, 2, 4]
    assert checks.findings.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("prompts", "pairs", "finding"),
    [
        (prompt_table("a b c d e f", "A b c d e f"), pair_table(), r"prompts that repeat another: p1"),
        (prompt_table("a b c d e f", "a b c d e g", "x", split=["train", "val", "val"]), pair_table(), None),
        (prompt_table("a b c d e f", "a b c d e f g", split=["train", "val"]), pair_table(), r"prompts much like one of another split: p0 and p1 \(Jaccard 0\.67\)"),
        (prompt_table("a", "b", split=["train", "test"], pair_id=["", "p0"]), pair_table(), "scenarios or look-alike pairs in more than one split: p0"),
        (prompt_table("a", "b"), pair_table("Same.", "Same."), "answers that repeat another: p1"),
        (prompt_table("a", "b", split=["train", "test"], scenario_id="s-7"), pair_table(), "scenarios or look-alike pairs in more than one split: s-7"),
        (prompt_table("a"), pair_table("Ring 555-0142."), "contacts outside the registry: answer p0: '555-0142' is unknown"),
        (prompt_table("a"), pair_table("Call 1-800-273-8255."), "contacts outside the registry: answer p0: '1-800-273-8255' is superseded"),
        (prompt_table("where to buy ammo"), pair_table(), "words of the safety lexicon: prompt p0: weapon_parts 'ammo'"),
    ],
)
def test_each_check_fails_with_the_row_and_what_is_wrong(prompts, pairs, finding):
    if finding is None:
        assert check(prompts, pairs).findings.sum() == 0
        return
    with pytest.raises(CorpusError, match="must not be used before these rows are mended:\n" + finding):
        check(prompts, pairs)


def test_all_failing_checks_are_told_and_a_long_list_is_cut_with_its_count():
    pairs = pair_table(*[f"Call 555-01{i}." for i in range(40, 47)])
    with pytest.raises(CorpusError) as error:
        check(prompt_table(*"abcdefg", split=["train"] * 6 + ["test"], scenario_id="s"), pairs)
    assert "scenarios or look-alike pairs in more than one split: s\n" in str(error.value)
    assert "'555-0144' is unknown to the registry; and 2 more" in str(error.value) and "555-0145" not in str(error.value)


def test_take_per_cluster():
    prompts = prompt_table(*"abcdef", cluster=["weapons"] * 3 + ["benign"] * 3, split=["test"] * 5 + ["train"])
    assert take_per_cluster(prompts, ["benign", "weapons"], "test", 0).text.tolist() == list("abcde")
    assert take_per_cluster(prompts, ["weapons"], "test", 9).text.tolist() == list("abc")
    two = take_per_cluster(prompts, ["weapons"], "test", 2, seed=1)
    assert len(two) == 2 and two.text.is_monotonic_increasing and two.equals(take_per_cluster(prompts, ["weapons"], "test", 2, seed=1))
    assert len({tuple(take_per_cluster(prompts, ["weapons"], "test", 2, seed=s).text) for s in range(9)}) > 1


def test_take_per_cluster_without_a_prompt_names_cluster_and_split():
    with pytest.raises(TableError, match="no prompts of cluster 'violence' in split 'test'; choose another split or run 01_corpus"):
        take_per_cluster(prompt_table("a", split="test"), ["weapons", "violence"], "test", 0)


def test_a_saved_corpus_is_read_back_and_a_missing_one_says_how_to_build_it(tmp_path):
    made = build_corpus(write_rows(tmp_path, {}))
    with pytest.raises(TableError, match="holds no prompts.parquet; build it with: python -m psychosafe_utils corpus"):
        load_corpus(tmp_path)
    save_corpus(*made, tmp_path)
    for ours, theirs in zip(made, load_corpus(tmp_path)):
        pd.testing.assert_frame_equal(ours, theirs)


# --- the committed corpus ---

@pytest.fixture(scope="module")
def committed():
    return load_corpus()


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """Where the corpus was built anew, and the seconds that it took."""
    folder, started = tmp_path_factory.mktemp("rebuilt"), time.perf_counter()
    save_corpus(*build_corpus(), folder)
    return folder, time.perf_counter() - started


@pytest.mark.parametrize("name", ["prompts", "pairs"])
def test_the_committed_tables_are_what_cards_and_rows_give_to_the_byte(rebuilt, name):
    assert sha256_of(rebuilt[0] / f"{name}.parquet") == sha256_of(FOLDER / f"{name}.parquet")


def test_building_takes_less_than_a_minute(rebuilt):
    assert rebuilt[1] < 60


def test_another_seed_of_the_grammar_gives_other_messages_of_the_same_cards(committed):
    prompts, _ = build_corpus(seed=1)
    assert prompts.prompt_id.tolist() == committed[0].prompt_id.tolist() and (prompts.text != committed[0].text).sum() > 500


def test_the_committed_corpus_passes_its_checks(committed):
    assert check(*committed).findings.tolist() == [0] * 6


def test_the_committed_corpus_meets_its_measured_targets(committed):
    measured = measure_corpus(*committed)
    assert len(measured) == 13 and measured.met.all(), measured[~measured.met].to_string()


def test_the_committed_corpus_has_its_size(committed):
    prompts, pairs = committed
    n = prompts.groupby(["cluster", "split"]).size()
    risk = n.loc[list(RISK_CLUSTERS)]
    assert risk.sum() == 8019 and risk.xs("train", level="split").sum() == 7019 and risk.xs("train", level="split").min() >= 1200
    assert (risk.drop("train", level="split") == 100).all()
    assert n["benign", "train"] >= 2500 and n["benign", "val"] >= 250 and n["benign", "test"] >= 250 and n["out_of_scope"].sum() >= 300
    assert set(pairs.prompt_id) == set(prompts.prompt_id)


def test_the_committed_corpus_has_its_hard_cases_and_variety(committed):
    prompts, _ = committed
    risk = prompts[prompts.cluster.isin(RISK_CLUSTERS)]
    hard = risk.hard_case.value_counts()
    assert hard["multi_cluster"] >= 200 and hard["ambiguous"] >= 200 and hard["disclosure"] >= 150
    assert set(risk.register) == set(REGISTERS) - {""} and risk.groupby("cluster").register.nunique().min() == 6
    assert risk.groupby("cluster").role.nunique().min() == 5
    words = risk.text.str.split().str.len()
    assert words.min() >= 5 and words.max() <= 120 and words.min() <= 6 and words.max() >= 100
    assert set(risk.region) >= {"US", "GB", "IE", "CA", "AU", "NZ", "IN", ""}


def test_validation_and_test_prompts_are_written_one_by_one_at_most_four_a_scenario(committed):
    prompts, pairs = committed
    held_out = prompts[prompts.split.isin(["val", "test"])]
    assert (held_out.source == "written").all() and held_out.groupby("scenario_id").size().max() <= 4
    assert set(pairs[pairs.prompt_id.isin(held_out.prompt_id)].writer) == {"hand"}


def test_there_are_a_hundred_cards_a_cluster(committed):
    prompts, _ = committed
    assert prompts[prompts.source == "card"].groupby("cluster").scenario_id.nunique().min() >= 100


def test_every_new_look_alike_names_a_neighbour_of_its_own_split(committed):
    prompts, _ = committed
    split_of = prompts[prompts.cluster != "benign"].groupby("scenario_id").split.first()
    paired = prompts[(prompts.cluster == "benign") & (prompts.pair_id != "")]
    assert len(paired) >= 2900 and (paired.pair_id.map(split_of) == paired.split).all()


def test_filling_the_slots_for_the_row_s_region_gives_the_answer_to_the_letter(committed):
    table = committed[0].merge(committed[1], on="prompt_id")
    assert [fill_slots(row.answer_slots, row.region) for row in table.itertuples()] == table.answer.tolist()
    assert not table.answer.str.contains(r"\[\[|\]\]").any()


def test_every_answer_of_a_risk_cluster_names_strategy_components_and_resources(committed):
    table = committed[0].merge(committed[1], on="prompt_id")
    risk = table[table.cluster.isin(RISK_CLUSTERS)]
    assert (risk.strategy != "").all() and (risk.components != "").all() and (risk.resources != "").all()


def test_every_file_of_the_corpus_passes_the_writing_rules():
    found = [f for path in sorted(FOLDER.glob("*/*.jsonl")) for f in check_file(path)[1]]
    assert not found, found[:10]


def test_contrast_pairs_are_whole_and_safe():
    measured, plain = corpus.load_contrast(), corpus.load_plain_requests()
    assert len(measured) >= 4000 and set(measured.split) == {"train", "val", "test"}
    assert len(plain) >= 2000 and set(plain.split) == {"train"}
    table = pd.concat([measured, plain])
    assert table.prompt_id.is_unique and not table.text.str.lower().duplicated().any() and set(table.cluster) <= set(CLUSTERS)
    by_pair = table.groupby("pair_id")
    assert (by_pair.size() == 2).all() and (by_pair.split.nunique() == 1).all()
    assert (by_pair.cluster.agg(lambda c: (c == "benign").sum()) == 1).all()
    assert not [text for text in table.text if corpus.unsafe_wording(text, ("minors_sexual", "amounts", "methods", "weapon_parts"))]


def test_contrast_pairs_are_taken_whole():
    table = corpus.load_contrast()
    some = corpus.take_pairs(table, "val", 3, seed=1)
    assert len(some) == 6 and some.pair_id.nunique() == 3 and set(some.split) == {"val"}
    assert len(corpus.take_pairs(table, "val", 0)) == (table.split == "val").sum()
    assert set(corpus.take_pairs(table, "val", 3, seed=2).pair_id) != set(some.pair_id)
