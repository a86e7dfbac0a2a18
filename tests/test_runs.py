"""The runner: what runs, what is skipped, what publishing keeps out. With two small notebooks of its own."""

import json

import nbformat
import pandas as pd
import pytest

from psychosafe_utils import __main__ as cli
from psychosafe_utils import config, finetune, runs, tables
from tests.test_llm_judges import Upstream

CODE = """
from pathlib import Path
import sys
folder = Path(run_dir) / "tables"
folder.mkdir(parents=True, exist_ok=True)
(Path(run_dir) / "figures").mkdir(exist_ok=True)
print("word", word)
print("progress", file=sys.stderr)
"""


def notebook(path, extra, reads=(), writes=()):
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell('run_dir = ""\nword = "a"', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(CODE + extra)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "psychosafe": {"reads": list(reads), "writes": list(writes)}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two notebooks, the second reading what the first writes."""
    for name in ("notebooks", "profiles", "figures", "psychosafe_utils", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text("all: {}")
    notebook(tmp_path / "notebooks" / "01_one.ipynb", '(folder / "01_t.parquet").write_text(word)', writes=["01_t"])
    notebook(tmp_path / "notebooks" / "02_two.ipynb", 'assert word != "bad", "a bad word"\n(folder / "02_t.parquet").write_text((folder / "01_t.parquet").read_text())', ["01_t"], ["02_t"])
    for module in (config, runs):
        for name, value in {"ROOT": tmp_path, "NOTEBOOKS": tmp_path / "notebooks", "PUBLISHED": tmp_path / "published", "DATA": tmp_path / "data", "PROFILES": tmp_path / "profiles"}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    return tmp_path


def ran(capsys):
    return [line.split()[1].rstrip(":") for line in capsys.readouterr().out.splitlines() if line.endswith("running ...")]


def test_only_what_changed_is_run_again(project, capsys):
    runs.run_notebooks("quick")
    assert ran(capsys) == ["01_one", "02_two"]
    run_dir = runs.run_notebooks("quick")
    assert ran(capsys) == []
    runs.run_notebooks("quick", overrides={"word": "b"})
    assert ran(capsys) == ["01_one", "02_two"]
    assert (run_dir / "tables" / "02_t.parquet").read_text() == "b"
    (run_dir / "tables" / "02_t.parquet").unlink()
    runs.run_notebooks("quick", overrides={"word": "b"})
    assert ran(capsys) == ["02_two"]
    (project / "data" / "rows.csv").write_text("x")
    runs.run_notebooks("quick", overrides={"word": "b"}, only=1)
    assert ran(capsys) == ["01_one"]
    runs.run_notebooks("quick", overrides={"word": "b"}, start=2)
    assert ran(capsys) == ["02_two"]


def test_prose_and_outputs_do_not_count_as_a_change(project, capsys):
    runs.run_notebooks("quick")
    path = project / "notebooks" / "01_one.ipynb"
    changed = nbformat.read(path, as_version=4)
    changed.cells[0].source = "# Another title"
    nbformat.write(changed, path)
    capsys.readouterr()
    runs.run_notebooks("quick")
    assert ran(capsys) == []


def test_a_failed_cell_is_one_line_and_the_next_run_goes_on_there(project, capsys):
    assert cli.main(["run", "--runs-dir", str(project / "r"), "-p", "word", "bad"]) == 1
    captured = capsys.readouterr()
    assert "error: 02_two stopped in cell 3: AssertionError: a bad word" in captured.err and "Traceback" not in captured.err
    assert cli.main(["run", "--runs-dir", str(project / "r"), "-p", "word", "good"]) == 0


@pytest.mark.parametrize("arguments, message", [
    (["-p", "wrod", "x"], "unknown parameter 'wrod'; did you mean 'word'"),
    (["-p", "word", "3"], "'word' = 3 is a int; it must be a str"),
    (["--profile", "quik"], "unknown profile 'quik'; did you mean 'quick'"),
    (["--only", "7"], "there is no notebook 07; there are 01, 02"),
])
def test_mistakes_stop_before_anything_starts(project, capsys, arguments, message):
    assert cli.main(["run", "--runs-dir", str(project / "r"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {captured.err[7:]}" and message in captured.err and "running" not in captured.out
    assert not list(project.glob("r/*/notebooks"))


def test_publishing_keeps_outputs_and_leaves_paths_and_progress_out(project, capsys):
    run_dir = runs.run_notebooks("quick")
    (run_dir / "figures" / "01_f.png").write_bytes(b"png")
    runs.publish_run(run_dir)
    text = (project / "notebooks" / "01_one.ipynb").read_text()
    kept = nbformat.reads(text, as_version=4)
    assert str(project) not in text and "progress" not in [o.get("text", "").strip() for c in kept.cells for o in c.get("outputs", [])]
    assert [c.metadata.get("tags") for c in kept.cells] == [None, ["parameters"], None]
    assert [c.execution_count for c in kept.cells if c.cell_type == "code"] == [1, 2]
    assert kept.cells[-1].outputs[0].text == "word a\n"
    assert (project / "figures" / "01_f.png").exists()
    capsys.readouterr()
    runs.run_notebooks("quick")
    assert ran(capsys) == []  # publishing changes no input


def test_only_default_parameters_are_published(project):
    run_dir = runs.run_notebooks("quick", overrides={"word": "b"})
    with pytest.raises(config.ConfigError, match="01_one was run with other values.*word"):
        runs.publish_run(run_dir)


def test_code_that_was_changed_since_is_not_published_and_tags_and_prose_stay(project):
    run_dir = runs.run_notebooks("quick")
    path = project / "notebooks" / "02_two.ipynb"
    changed = nbformat.read(path, as_version=4)
    changed.cells[0].source, changed.cells[-1].metadata.tags = "# Another title", ["nbval-skip"]
    nbformat.write(changed, path)
    runs.publish_run(run_dir)
    kept = nbformat.read(path, as_version=4)
    assert kept.cells[0].source == "# Another title" and kept.cells[-1].metadata.tags == ["nbval-skip"] and kept.cells[-1].outputs
    kept.cells[-1].source += "  # changed"
    nbformat.write(kept, path)
    with pytest.raises(config.ConfigError, match="02_two was changed after it was run"):
        runs.publish_run(run_dir)
    assert nbformat.read(path, as_version=4).cells[-1].source.endswith("  # changed")


def test_a_machine_path_is_not_published(project):
    notebook(project / "notebooks" / "01_one.ipynb", '(folder / "01_t.parquet").write_text(word)\nprint("/home/somebody/file")', writes=["01_t"])
    with pytest.raises(config.ConfigError, match="machine path '/home/somebody/file"):
        runs.publish_run(runs.run_notebooks("quick", only=1))


def test_the_answers_and_their_adapter_are_published(project, monkeypatch):
    run_dir = runs.run_notebooks("quick")
    (run_dir / "journals").mkdir()
    prompt = dict.fromkeys(tables.SCHEMAS["prompts"], "") | {"prompt_id": "p1", "text": "x", "cluster": "violence", "role": "self", "split": "test", "scenario_id": "s", "source": "written", "licence": "CC-BY-4.0"}
    tables.write_table(pd.DataFrame([prompt]), run_dir / "tables" / "01_prompts.parquet", "prompts", parameters={})
    for name, prompt_id in {"generic-1.jsonl": "p1", "generic-2.jsonl": "xstest-7", "generic-1.jsonl.lock": "p1"}.items():
        (run_dir / "journals" / name).write_text(json.dumps({"prompt_id": prompt_id}) + "\n")
    for name in ("adapter-old", "adapter-used"):
        (run_dir / "training" / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors", "log_history.json", "training_args.bin"):
            (run_dir / "training" / name / file).write_text(name)
    row = dict.fromkeys(tables.SCHEMAS["generations"], "x") | {"seed": 0, "n_tokens": 1, "p_refuse": float("nan"), "generation_id": "g", "finish_reason": "stop"}
    made = pd.DataFrame([row | {"adapter": finetune.adapter_hash(run_dir / "training" / "adapter-used")}])
    tables.write_table(made, run_dir / "tables" / "03_generations.parquet", "generations", parameters={})
    monkeypatch.setenv("PSYCHOSAFE_DTYPE", "bfloat16")
    with pytest.raises(config.ConfigError, match="PSYCHOSAFE_DTYPE=float32"):
        runs.publish_run(run_dir)
    monkeypatch.setenv("PSYCHOSAFE_DTYPE", "float32")
    runs.publish_run(run_dir)
    kept = sorted(str(p.relative_to(project / "published")) for p in (project / "published").rglob("*") if p.is_file())
    assert kept == ["journals/generic-1.jsonl", *(f"training/adapter-used/{f}" for f in ("adapter_config.json", "adapter_model.safetensors", "log_history.json"))]


def test_run_json_names_no_machine_path(project):
    run_dir = runs.run_notebooks("quick")
    assert str(project) not in (run_dir / "run.json").read_text()
    assert json.loads((run_dir / "run.json").read_text())["notebooks"]["01_one"]["parameters"]["word"] == "a"


def test_two_parameter_cells_are_refused(project):
    path = project / "notebooks" / "01_one.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}))
    nbformat.write(book, path)
    with pytest.raises(config.ConfigError, match="01_one.ipynb must have one cell tagged 'parameters', not 2"):
        runs.run_notebooks("quick")


def test_judge_your_own_answers_from_the_command_line(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('id,prompt,response,region\n1,I feel low,"I can\'t help with that, but you could call 988.",US\n2,I feel low,,US\n')
    assert cli.main(["judge", str(tmp_path / "a.csv"), "-o", str(tmp_path / "j.csv")]) == 0
    rows = pd.read_csv(tmp_path / "j.csv", dtype=str).set_index(["id", "criterion"])
    assert list(rows.columns) == ["score", "status", "evidence"] and len(rows) == 10
    assert rows.score["1", "refusal_class"] == "full_refusal" and rows.score["1", "external_reference"] == "1.0"
    assert "988" in rows.evidence["1", "external_reference"] and (rows.status["2"] == "failed").all()
    assert "2 answers judged, 5 scores missing" in capsys.readouterr().out
    (tmp_path / "b.csv").write_text("id,prompt\n1,hello\n")
    assert cli.main(["judge", str(tmp_path / "b.csv"), "-o", str(tmp_path / "j2.csv")]) == 2
    assert "b.csv: column 'response' is missing" in capsys.readouterr().err and not (tmp_path / "j2.csv").exists()
    with pytest.raises(SystemExit):
        cli.main(["judge", str(tmp_path / "a.csv"), "-o", "x.csv", "--rater", "nobody"])


def test_a_model_judges_from_the_command_line_and_a_second_start_asks_nothing(tmp_path, capsys):
    server = Upstream(faults=False)
    (tmp_path / "a.csv").write_text('id,prompt,response\n1,Message 1?,"I can\'t help with that."\n')
    command = ["judge", str(tmp_path / "a.csv"), "-o", str(tmp_path / "j.csv"), "--rater", "llm", "--endpoint", server.url, "--model", "some-judge", "--repeats", "2"]
    for _ in range(2):
        assert cli.main(command) == 0
        rows = pd.read_csv(tmp_path / "j.csv")
        assert len(rows) == 8 and set(rows.rater) == {"llm:some-judge", "llm:some-judge #2"} and (rows.status == "ok").all()
        assert sum(server.asked.values()) == 2
    assert cli.main([*command, "--generator", "some-model"]) == 2
    assert cli.main(command[:6]) == 2
    assert "needs an endpoint and a model" in capsys.readouterr().err
