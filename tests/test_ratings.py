"""Ratings by people: plans that hold what they promise for many seeds, a journal that loses nothing, sheets with every kind of fault, no condition in sight."""

import json
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openpyxl
import pandas as pd
import pytest

from psychosafe_utils import ratings
from psychosafe_utils.ratings import ATTENTION, Entry, items_to_rate, order_for_rater
from psychosafe_utils.tables import check_table

CLUSTERS = ["suicide_self_harm", "violence", "substance_use", "sexual_crimes", "benign", "weapons"]


def answers(n_prompts=6, conditions=("CONDITION-ALPHA", "CONDITION-BETA"), response="I can't help with that."):
    return pd.DataFrame([
        {
            "generation_id": f"GENERATION-{p}-{c}", "prompt_id": f"p{p}", "text": f"Message {p}", "response": response,
            "cluster": CLUSTERS[p % len(CLUSTERS)], "condition": c,
        }
        for p in range(n_prompts) for c in conditions
    ])


def scores(entry, score=None):
    """A score for every item of an entry: the given one where the scale has it, else the lowest."""
    return {name: score if score in item["scale"] else item["scale"][0] for name, item in items_to_rate("extended.v1", entry.cluster).items()}


def rate_all(folder, rater, score=3):
    for entry in ratings.rater_plan(folder, rater).itertuples():
        ratings.save_rating(folder, rater, entry.item, entry.kind, scores(entry, score), seconds=10.0)


@pytest.mark.parametrize("seed", range(40))
def test_every_plan_keeps_its_promises(tmp_path, seed):
    n_prompts, conditions = 7 + seed, ("a", "b", "c")[:1 + seed % 3]
    table = answers(n_prompts, conditions)
    n = len(table)
    plan = ratings.make_study(table, tmp_path, raters=["ann", "ben"], repeats=0.2, attention=0.1, seed=seed)
    assert plan.equals(ratings.make_study(table, tmp_path, raters=["ann", "ben"], repeats=0.2, attention=0.1, seed=seed))
    key, orders = pd.read_csv(tmp_path / "key.csv"), []
    for _, rows in ratings.read_plan(tmp_path).groupby("rater"):
        rows = rows.sort_values("position")
        assert list(rows.position) == list(range(1, len(rows) + 1))
        assert Counter(rows.item[rows.kind == "rate"]) == Counter(key.item) and len(key) == n
        assert not (rows.prompt == rows.prompt.shift()).any()
        assert (rows.kind == "repeat").sum() == round(0.2 * n) and (rows.kind == "attention").sum() == max(1, round(0.1 * n))
        first = rows[rows.kind == "rate"].set_index("item").position
        repeats = rows[rows.kind == "repeat"]
        assert repeats.item.is_unique and (repeats.position - repeats.item.map(first) >= 5).all()
        heavy = rows.cluster.isin(ratings.HEAVY)
        assert heavy.mean() > 0.4 or not (heavy & heavy.shift(fill_value=False)).any()
        attention = rows.position[rows.kind == "attention"]
        assert attention.diff().min() > len(rows) / len(attention) / 3 or len(attention) == 1
        orders.append(list(rows.item))
    assert orders[0] != orders[1]


def test_versions_are_kept_apart_wherever_that_is_possible():
    """Random numbers of versions, up to the most that can be kept apart: half of all, rounded up."""
    rng = random.Random(0)
    for _ in range(300):
        rest = [rng.randint(1, 6) for _ in range(rng.randint(1, 6))]
        most = sum(rest) + 1
        sizes = [rng.choice((most, most - 1, max(most // 2, max(rest) - 1))), *rest]
        if 2 * max(sizes) > sum(sizes) + 1:
            continue
        entries = [Entry(f"i{p}-{v}", f"p{p}", rng.random() < 0.3, "rate") for p, size in enumerate(sizes) for v in range(size)]
        order = order_for_rater(entries, 0, rng)
        assert Counter(order) == Counter(entries) and all(a.prompt_id != b.prompt_id for a, b in zip(order, order[1:]))
        with pytest.raises(ValueError, match="prompt 'p0' has too many of the answers"):
            order_for_rater(entries + [Entry(f"more{v}", "p0", False, "rate") for v in range(most + 1 - sizes[0])], 0, rng)


def test_a_repeat_comes_as_late_as_few_answers_allow():
    entries = [Entry(f"i{p}", f"p{p}", False, "rate") for p in range(4)]
    order = order_for_rater(entries, 1, random.Random(0))
    repeat = next(e for e in order if e.kind == "repeat")
    assert order.index(repeat) - order.index(repeat._replace(kind="rate")) == 4
    with pytest.raises(ValueError, match="leave no room for 1 more repeats"):
        order_for_rater(entries[:1], 1, random.Random(0))


def test_what_raters_tools_read_tells_neither_condition_nor_answer_nor_kind(tmp_path):
    ratings.make_study(answers(), tmp_path, raters=["ann"])
    shown = (tmp_path / "items.jsonl").read_text() + (tmp_path / "plan.csv").read_text() + (tmp_path / "study.json").read_text()
    assert "CONDITION" not in shown and "GENERATION" not in shown
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").open()]
    assert all(list(item) == ["item", "prompt", "response", "cluster"] for item in items) and [i["item"] for i in items] == sorted(i["item"] for i in items)
    attention = [item for item in items if item["response"] == ATTENTION]
    assert len(attention) == 1 and attention[0]["cluster"] in CLUSTERS and attention[0]["prompt"].startswith("Message ")
    assert len({len(item["item"]) for item in items}) == 1
    (tmp_path / "key.csv").unlink()
    rate_all(tmp_path, "ann")
    assert len(ratings.read_ratings(tmp_path)) and len(ratings.rater_report(tmp_path))


def test_ratings_are_never_overwritten(tmp_path):
    ratings.make_study(answers(), tmp_path, raters=["ann"])
    plan = ratings.rater_plan(tmp_path, "ann")
    ratings.save_rating(tmp_path, "ann", plan.item[0], plan.kind[0], {}, skipped=True)
    with pytest.raises(ValueError, match="holds ratings already; make the study in a new folder"):
        ratings.make_study(answers(), tmp_path, raters=["ann"], seed=1)
    assert ratings.rater_plan(tmp_path, "ann").equals(plan)


@pytest.mark.parametrize("change, message", [
    ({"raters": []}, "raters is empty"), ({"raters": ["a/b"]}, "rater 'a/b' can't be a file name"), ({"raters": ["Ann", "ann"]}, "rater 'ann' occurs twice"),
    ({"repeats": 0.9}, "repeats = 0.9 is not a share"), ({"attention": -1}, "attention = -1 is not a share"), ({"rubric": "extended.v9"}, "unknown rubric"),
    ({"answers": answers().drop(columns="condition")}, "column 'condition' is missing"), ({"answers": answers()[:0]}, "there is no row"),
    ({"answers": answers().assign(generation_id="g")}, "generation_id 'g' occurs twice"), ({"answers": answers().assign(cluster="violense")}, "did you mean 'violence'"),
    ({"answers": answers().assign(response=None)}, "row 0 has an empty value"), ({"answers": answers(1)}, "too many of the answers"),
])
def test_a_wrong_study_is_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"answers": answers(), "raters": ["ann"], "repeats": 0, "attention": 0} | change
    with pytest.raises(ValueError, match=message):
        ratings.make_study(arguments.pop("answers"), tmp_path, **arguments)
    assert not any(tmp_path.iterdir())


def test_unknown_raters_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="study.json is missing; make the study first"):
        ratings.read_ratings(tmp_path)
    ratings.make_study(answers(), tmp_path, raters=["ann"])
    with pytest.raises(ValueError, match="rater 'bob' is not in the plan"):
        ratings.rater_plan(tmp_path, "bob")


def test_a_torn_last_line_costs_one_answer_and_the_last_line_for_an_item_wins(tmp_path):
    ratings.make_study(answers(), tmp_path, raters=["ann"])
    first, second, third = list(ratings.rater_plan(tmp_path, "ann").itertuples())[:3]
    for entry in (first, second):
        ratings.save_rating(tmp_path, "ann", entry.item, entry.kind, scores(entry, 2), comment="one\u2028two\nthree")
    journal = tmp_path / "ratings" / "ann.jsonl"
    journal.write_bytes(journal.read_bytes()[:-25])  # what a kill leaves
    ratings.save_rating(tmp_path, "ann", third.item, third.kind, scores(third, 4))
    ratings.save_rating(tmp_path, "ann", first.item, first.kind, scores(first, 5))
    table = ratings.read_ratings(tmp_path)
    assert set(table.item) == {first.item, third.item} and not table.duplicated(["item", "kind", "criterion"]).any()
    assert set(table.score[(table.item == first.item) & (table.criterion == "relevance")]) == {5.0}


def test_two_tabs_and_a_reader_at_once_lose_no_rating(tmp_path):
    ratings.make_study(answers(30), tmp_path, raters=["ann"])
    entries = list(ratings.rater_plan(tmp_path, "ann").itertuples())
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(ratings.save_rating, tmp_path, "ann", e.item, e.kind, scores(e)) for e in entries]
        reading = [pool.submit(ratings.saved_rows, tmp_path, "ann") for _ in entries]
        for future in writing + reading:
            future.result()
    assert set(ratings.saved_rows(tmp_path, "ann")) == {(e.item, e.kind) for e in entries}


def test_ratings_become_judgements(tmp_path):
    table = answers()
    ratings.make_study(table, tmp_path, raters=["ann", "ben"], repeats=0.2)
    rate_all(tmp_path, "ann")
    for entry in ratings.rater_plan(tmp_path, "ben").itertuples():
        if entry.cluster == "violence":
            ratings.save_rating(tmp_path, "ben", entry.item, entry.kind, {}, skipped=True)
    rows = check_table(ratings.ratings_to_judgements(tmp_path), "judgements", "here")
    assert set(rows.rater) - {"human:ben #2"} == {"human:ann", "human:ann #2", "human:ben"} and set(rows.rater_kind) == {"human"}
    ann = rows[rows.rater == "human:ann"]
    for answer in table.itertuples():
        rated = ann[ann.generation_id == answer.generation_id].set_index("criterion")
        assert list(rated.index) == list(items_to_rate("extended.v1", answer.cluster)) and set(rated.status) == {"ok"}
        assert rated.score["relevance"] == 3 and rated.score["diagnosis"] == 0 and ("over_refusal" in rated.index) == (answer.cluster == "benign")
    assert rows[rows.rater == "human:ann #2"].generation_id.nunique() == 2
    skipped = rows[rows.rater.str.startswith("human:ben")]
    assert set(skipped.status) == {"judge_refused"} and skipped.score.isna().all() and skipped.generation_id.nunique() == 2


def test_the_report_counts_by_hand(tmp_path):
    """Of two repeats one comes back the same and one a point apart on all nine criteria; of two attention items one is passed."""
    table = answers(10, ("a",)).assign(cluster="weapons")
    ratings.make_study(table, tmp_path, raters=["ann", "ben"], repeats=0.2, attention=0.2)
    plan = ratings.rater_plan(tmp_path, "ann")
    apart, attended = plan.item[plan.kind == "repeat"].iloc[0], plan.item[plan.kind == "attention"].iloc[0]
    left_out = plan.item[(plan.kind == "rate") & ~plan.item.isin(plan.item[plan.kind == "repeat"])].iloc[0]
    for n, entry in enumerate(plan.itertuples()):
        score = None if entry.item == attended else 4 if (entry.item, entry.kind) == (apart, "repeat") else 3
        given = {} if entry.item == left_out else scores(entry, score) | ({name: 0 for name in scores(entry) if name == "diagnosis"})
        ratings.save_rating(tmp_path, "ann", entry.item, entry.kind, given, seconds=float(n), skipped=entry.item == left_out)
    ann, ben = ratings.rater_report(tmp_path).to_dict("records")
    n_items = len(items_to_rate("extended.v1", "weapons"))
    assert ann["exact_agreement"] == pytest.approx((2 * n_items - 9) / (2 * n_items)) and ann["mean_absolute_difference"] == pytest.approx(9 / (2 * n_items))
    assert (ann["planned"], ann["rated"], ann["skipped"], ann["repeats"], ann["attention_passed"], ann["attention_shown"]) == (10, 9, 1, 2, 1, 2)
    kept = [n for n, entry in enumerate(plan.itertuples()) if entry.item != left_out]
    assert ann["median_seconds"] == pd.Series(kept).median()
    assert ben["rated"] == 0 and pd.isna(ben["exact_agreement"])


def fill(sheet):
    """A sheet with 2 in every cell that wants 1-5, and 1 in every one that wants yes or no."""
    for column in sheet:
        if column.endswith("(1-5)") or column.endswith("(0-1)"):
            sheet[column] = sheet[column].where(sheet[column] == "n/a", "2" if "1-5" in column else "1")
    return sheet


def read_file(path):
    read = pd.read_excel if path.suffix == ".xlsx" else pd.read_csv
    return read(path, dtype=str, keep_default_na=False)


def write_file(sheet, path):
    sheet.to_excel(path, index=False) if path.suffix == ".xlsx" else sheet.to_csv(path, index=False)


@pytest.fixture(params=[".csv", ".xlsx"])
def sheet_path(request, tmp_path):
    ratings.make_study(answers(response="=HYPERLINK(\"http://x\")\x07"), tmp_path, raters=["ann", "ben"], repeats=0.2)
    path = tmp_path / f"ann{request.param}"
    ratings.write_sheet(tmp_path, "ann", path)
    return path


def test_a_sheet_comes_back_whole_and_once(sheet_path):
    folder = sheet_path.parent
    sheet = fill(read_file(sheet_path))
    plan = ratings.rater_plan(folder, "ann")
    assert list(sheet.item) == list(plan.item) and list(sheet)[:4] == ["position", "item", "prompt", "response"] and list(sheet)[-1] == "comment"
    assert "relevance (1-5)" in sheet and "diagnosis (0-1)" in sheet and "CONDITION" not in sheet.to_csv() and "kind" not in sheet
    sheet.loc[0, "comment"] = "unsure,\n\"really\""
    write_file(sheet, sheet_path)
    good, faults = ratings.read_sheet(folder, "ann", sheet_path)
    assert faults.empty and good.equals(ratings.read_ratings(folder)) and len(good.drop_duplicates(["item", "kind"])) == len(plan)
    assert set(good.score) == {1.0, 2.0} and good.comment[0] == 'unsure, "really"' and good.seconds.isna().all()
    before = (folder / "ratings" / "ann.jsonl").read_bytes()
    again, faults = ratings.read_sheet(folder, "ann", sheet_path)
    assert again.equals(good) and faults.empty and (folder / "ratings" / "ann.jsonl").read_bytes() == before


def test_no_cell_is_a_formula(sheet_path):
    if sheet_path.suffix == ".xlsx":
        cells = [cell for row in openpyxl.load_workbook(sheet_path).active for cell in row]
        assert all(cell.data_type != "f" for cell in cells)
    responses = read_file(sheet_path).response
    assert set(responses) == {"'=HYPERLINK(\"http://x\")", ATTENTION}
    for start in "=+-@\t\r":
        assert ratings._plain(f"{start}1") == f"'{start}1"


def test_every_kind_of_fault_is_told_and_the_right_rows_are_kept(sheet_path):
    folder, plan = sheet_path.parent, ratings.rater_plan(sheet_path.parent, "ann")
    sheet = fill(read_file(sheet_path))
    harmless, other = (list(sheet.index[(plan.cluster == "benign") == want]) for want in (True, False))
    wrong, outside, empty, unrated, doubled, unknown, absent, half = other[:8]
    sheet.loc[wrong, "relevance (1-5)"], sheet.loc[outside, "relevance (1-5)"], sheet.loc[empty, "relevance (1-5)"] = "good", "6", ""
    sheet.loc[half, "relevance (1-5)"], sheet.loc[harmless[0], "referral (1-5)"], sheet.loc[unknown, "item"] = "2.5", "3", "i0000"
    scored = [c for c in sheet if c.endswith(("(1-5)", "(0-1)"))]
    sheet.loc[unrated, scored] = sheet.loc[unrated, scored].where(sheet.loc[unrated, scored] == "n/a", "")
    write_file(pd.concat([sheet.drop(index=absent), sheet.loc[[doubled]]]), sheet_path)
    good, faults = ratings.read_sheet(folder, "ann", sheet_path)
    row = {n: i for i, n in enumerate(sheet.index.drop(absent), start=2)}
    told = {(f.sheet_row, f.column, f.wrong) for f in faults.itertuples()}
    assert told == {
        (row[wrong], "relevance (1-5)", "'good' is not a number"), (row[outside], "relevance (1-5)", "6 is outside the scale"),
        (row[half], "relevance (1-5)", "2.5 is outside the scale"), (row[empty], "relevance (1-5)", "the score is missing"), (row[unrated], "", "the row is not rated"),
        (row[harmless[0]], "referral (1-5)", "the item does not apply to this prompt"), (row[doubled], "item", "the row stands in the sheet more than once"),
        (len(sheet) + 1, "item", "the row stands in the sheet more than once"), (row[unknown], "item", f"rater 'ann' has no item 'i0000' at position {unknown + 1}"),
        (0, "item", f"the row of position {absent + 1} is missing"), (0, "item", f"the row of position {unknown + 1} is missing"),
    }
    assert (faults.mend != "").all() and list(faults) == ["sheet_row", "item", "column", "wrong", "mend"]
    at_fault = {wrong, outside, empty, unrated, doubled, unknown, absent, half, harmless[0]}
    right = {(e.item, e.kind) for e in plan.itertuples() if e.Index not in at_fault}
    assert set(zip(good.item, good.kind)) == right == set(ratings.saved_rows(folder, "ann"))


def test_a_sheet_of_somebody_else_or_of_another_shape_is_refused(sheet_path):
    folder = sheet_path.parent
    good, faults = ratings.read_sheet(folder, "ben", sheet_path)
    assert good.empty and (faults.wrong.str.startswith("rater 'ben' has no item")).any()
    write_file(read_file(sheet_path).drop(columns="diagnosis (0-1)"), sheet_path)
    with pytest.raises(ValueError, match=r"column 'diagnosis \(0-1\)' is missing"):
        ratings.read_sheet(folder, "ann", sheet_path)
    sheet_path.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match="is not a readable sheet"):
        ratings.read_sheet(folder, "ann", sheet_path)
    with pytest.raises(ValueError, match="a sheet is a .csv or .xlsx file"):
        ratings.write_sheet(folder, "ann", folder / "ann.ods")


def test_what_was_rated_on_the_page_is_not_missing_from_a_sheet(sheet_path):
    folder = sheet_path.parent
    rate_all(folder, "ann")
    good, faults = ratings.read_sheet(folder, "ann", sheet_path)
    assert good.empty and faults.empty


def test_panel_is_not_imported():
    code = "import sys, psychosafe_utils, psychosafe_utils.ratings; sys.exit('panel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
