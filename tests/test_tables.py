import errno
import hashlib
import json
import os

import pandas as pd
import pytest

from psychosafe_utils import tables
from psychosafe_utils.tables import TableError, check_table, content_hash, read_table, sha256_of, write_atomically, write_table

CURVES = pd.DataFrame({"step": [1, 2, 2], "split": ["train", "train", "val"], "loss": [3.0, 2.5, 2.75], "learning_rate": [1e-4, None, None]})
PROMPTS = pd.DataFrame({
    "prompt_id": ["a-1", "b-1"], "text": ["How do I repot a fern?", "Why do cats purr?"], "cluster": "benign", "role": "curious",
    "split": ["train", "test"], "scenario_id": ["a", "b"], "pair_id": "", "region": ["", "GB"], "register": ["", "plain"],
    "hard_case": "", "also": "", "kind": "", "source": "written", "licence": "CC-BY-4.0",
})
JUDGEMENTS = pd.DataFrame({
    "generation_id": ["g1", "g1"], "rater": "rule", "rater_kind": "rule", "criterion": ["refusal", "relevance"],
    "rubric_version": "published.v2", "score": [1.0, None], "status": ["ok", "failed"], "evidence": "", "raw": "",
})


def write_curves(path, frame=CURVES, **parameters):
    return write_table(frame, path, "curves", parameters=parameters)


def no_partial_in(folder):
    return not [p for p in folder.rglob("*") if "partial" in p.name]


@pytest.mark.parametrize(("name", "frame"), [("curves", CURVES), ("prompts", PROMPTS), ("judgements", JUDGEMENTS)])
@pytest.mark.parametrize("rows", [0, 1, None])
def test_a_written_table_is_read_back_as_it_was(tmp_path, name, frame, rows):
    path, frame = tmp_path / "tables" / f"01_{name}.parquet", frame[:rows]
    write_table(frame, path, name, parameters={})
    back = read_table(path, name)
    assert len(back) == len(frame)
    pd.testing.assert_frame_equal(back, frame.reset_index(drop=True), check_dtype=False)


def test_the_columns_are_put_in_order_and_others_left_out():
    shuffled = CURVES[["loss", "split", "step", "learning_rate"]].assign(note="x")
    assert list(check_table(shuffled, "curves", "f")) == ["step", "split", "loss", "learning_rate"]


def test_all_equal_rows_are_a_doubled_key():
    same = pd.concat([CURVES[:1]] * 3, ignore_index=True)
    with pytest.raises(TableError, match=r"f\.parquet: row 1: step \+ split '1, train' occurs twice; keep one"):
        check_table(same, "curves", "f.parquet")


def test_the_same_id_twice_is_named_with_its_row():
    doubled = PROMPTS.assign(prompt_id="a-1")
    with pytest.raises(TableError, match="f: row 1: prompt_id 'a-1' occurs twice; keep one of the two"):
        check_table(doubled, "prompts", "f")


def test_one_generation_may_be_judged_on_two_criteria_but_not_twice_on_one():
    assert len(check_table(JUDGEMENTS, "judgements", "f")) == 2
    with pytest.raises(TableError, match=r"row 1: generation_id \+ rater \+ criterion 'g1, rule, refusal'"):
        check_table(JUDGEMENTS.assign(criterion="refusal"), "judgements", "f")


@pytest.mark.parametrize("column", ["step", "split", "loss", "learning_rate"])
def test_a_missing_column_is_named_with_all_that_are_needed(column):
    with pytest.raises(TableError, match=rf"f: column '{column}' is missing; table 'curves' needs step, split, loss, learning_rate"):
        check_table(CURVES.drop(columns=column), "curves", "f")


@pytest.mark.parametrize(
    ("frame", "name", "column", "value", "shown"),
    [
        (PROMPTS, "prompts", "text", " ", "' '"), (PROMPTS, "prompts", "cluster", "gardening", "'gardening'"),
        (PROMPTS, "prompts", "role", "gardener", "'gardener'"), (PROMPTS, "prompts", "split", "dev", "'dev'"),
        (PROMPTS, "prompts", "region", "XX", "'XX'"), (PROMPTS, "prompts", "scenario_id", "", "''"),
        (PROMPTS, "prompts", "text", None, "nan"), (CURVES, "curves", "loss", None, ".*nan.*"),
        (JUDGEMENTS, "judgements", "status", "perhaps", "'perhaps'"), (JUDGEMENTS, "judgements", "rater_kind", "oracle", "'oracle'"),
    ],
)
def test_a_wrong_value_is_named_with_file_row_and_column(frame, name, column, value, shown):
    wrong = frame.copy()
    wrong.loc[1, column] = value
    with pytest.raises(TableError, match=rf"f\.parquet: row 1: column '{column}' has {shown}, which fails ") as error:
        check_table(wrong, name, "f.parquet")
    assert str(error.value).endswith("mend the row")


def test_a_column_of_another_type_is_named():
    with pytest.raises(TableError, match="f: column 'step' has 'float64'"):
        check_table(CURVES.assign(step=[1.0, 2.5, 3.0]), "curves", "f")


def test_a_table_that_is_wrong_is_not_written(tmp_path):
    with pytest.raises(TableError, match="curves.parquet"):
        write_curves(tmp_path / "curves.parquet", CURVES.assign(split="dev", step=[1, 2, 3]))
    assert not list(tmp_path.iterdir())


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the first example of FIPS 180-4
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_content_hash_depends_on_values_and_not_on_the_order_of_keys():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})
    assert content_hash("x") == hashlib.sha256(b'["x"]').hexdigest()[:16]
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_the_sidecar_says_what_made_the_table(tmp_path):
    source = tmp_path / "source.txt"
    source.write_bytes(b"abc")
    path = tmp_path / "03_curves.parquet"
    write_table(CURVES, path, "curves", parameters={"seed": 7}, inputs=(source,))
    sidecar = json.loads((tmp_path / "03_curves.parquet.json").read_text())
    assert (sidecar["table"], sidecar["rows"], sidecar["parameters"]) == ("curves", 3, {"seed": 7})
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["inputs"] == {"source.txt": hashlib.sha256(b"abc").hexdigest()}
    assert sidecar["versions"]["pandas"] == pd.__version__


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_curves(tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_missing_table_names_the_notebook_that_writes_it(tmp_path):
    with pytest.raises(TableError, match=r"04_effects\.parquet is missing; run the notebook that writes it first \(04_"):
        read_table(tmp_path / "04_effects.parquet", "effects")


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("kept", [0, 4, 0.5, -1])
def test_a_truncated_parquet_file_is_refused_with_and_without_its_sidecar(tmp_path, sidecar, kept):
    path = tmp_path / "03_curves.parquet"
    write_curves(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * kept) if isinstance(kept, float) else kept])
    if not sidecar:
        (tmp_path / "03_curves.parquet.json").unlink()
    with pytest.raises(TableError, match=r"03_curves\.parquet is .*; delete it and run its notebook again"):
        read_table(path, "curves")


def test_a_parquet_that_changed_after_its_sidecar_is_refused(tmp_path):
    path = tmp_path / "03_curves.parquet"
    write_curves(path)
    CURVES.assign(loss=0.0).to_parquet(path, index=False)
    with pytest.raises(TableError, match=r"03_curves\.parquet is broken or was changed after it was written; delete it"):
        read_table(path, "curves")


@pytest.mark.parametrize("text", ["", '{"rows": 3, "sha', "{}", "[]"])
def test_a_broken_sidecar_is_refused_with_the_name_of_the_file(tmp_path, text):
    path = tmp_path / "03_curves.parquet"
    write_curves(path)
    (tmp_path / "03_curves.parquet.json").write_text(text)
    with pytest.raises(TableError, match=r"03_curves\.parquet"):
        read_table(path, "curves")


def test_a_table_of_another_kind_is_refused(tmp_path):
    write_curves(tmp_path / "x.parquet")
    with pytest.raises(TableError, match=r"x\.parquet: column 'contrast' is missing; table 'effects' needs"):
        read_table(tmp_path / "x.parquet", "effects")


def fill_the_disk_in_to_parquet(monkeypatch):
    def write_half(self, path, **_):
        path.write_bytes(b"PAR1 half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", write_half)


def fill_the_disk_in_replace(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)


@pytest.mark.parametrize("fill_the_disk", [fill_the_disk_in_to_parquet, fill_the_disk_in_replace])
def test_a_full_disk_leaves_the_old_table_whole_and_no_half_of_a_new_one(tmp_path, monkeypatch, fill_the_disk):
    path = tmp_path / "03_curves.parquet"
    write_curves(path)
    with monkeypatch.context() as full:
        fill_the_disk(full)
        with pytest.raises(TableError, match=r"03_curves\.parquet: the disk is full; free some space and run the same command again"):
            write_curves(path, CURVES.assign(loss=0.0))
    assert read_table(path, "curves").loss.tolist() == [3.0, 2.5, 2.75]
    assert no_partial_in(tmp_path)


def test_a_full_disk_at_the_first_write_leaves_nothing(tmp_path, monkeypatch):
    fill_the_disk_in_to_parquet(monkeypatch)
    with pytest.raises(TableError, match="the disk is full"):
        write_curves(tmp_path / "03_curves.parquet")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_between_table_and_sidecar_is_noticed_on_reading(tmp_path, monkeypatch):
    path, replace = tmp_path / "03_curves.parquet", os.replace
    write_curves(path)

    def refuse_sidecars(source, target):
        if str(target).endswith(".json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(tables.os, "replace", refuse_sidecars)
    with pytest.raises(TableError, match=r"03_curves\.parquet\.json: the disk is full"):
        write_curves(path, CURVES.assign(loss=0.0))
    with pytest.raises(TableError, match="changed after it was written"):
        read_table(path, "curves")
    assert no_partial_in(tmp_path)


def test_another_error_of_the_file_system_is_passed_on_and_cleaned_up_after(tmp_path):
    def write(path):
        path.write_text("half")
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "x.json", write)
    assert not list(tmp_path.iterdir())


def test_a_half_that_a_killed_run_left_is_written_over(tmp_path):
    (tmp_path / ".03_curves.parquet.partial").write_bytes(b"half")
    write_curves(tmp_path / "03_curves.parquet")
    assert no_partial_in(tmp_path) and len(read_table(tmp_path / "03_curves.parquet", "curves")) == 3


def test_a_markdown_table_is_put_between_its_markers(tmp_path):
    card = tmp_path / "CARD.md"
    card.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    tables.put_markdown_table(pd.DataFrame({"set": ["x"], "F1": [0.5]}), card, "figures")
    assert card.read_text() == "before\n<!-- figures -->\n| set | F1 |\n| --- | --- |\n| x | 0.5 |\n<!-- /figures -->\nafter\n"
