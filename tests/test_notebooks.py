"""The notebooks: their anatomy, the whole chain on the real model, and runs that are killed."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import nbformat
import pandas as pd
import psutil
import pytest

from psychosafe_utils import config, corpus, runs
from psychosafe_utils.config import ROOT
from psychosafe_utils.journals import read_rows

PATHS = {path.stem: path for path in config.notebook_paths()}
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}


def cells_of(stem, kind="code"):
    return [c for c in nbformat.read(PATHS[stem], as_version=4).cells if c.cell_type == kind]


# --- anatomy ---

@pytest.mark.parametrize("stem", PATHS)
def test_anatomy(stem):
    prose, code = cells_of(stem, "markdown"), cells_of(stem)
    first, last = prose[0].source, prose[-1].source
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert "**Question.**" in first and "Content note" in first and "| reads |" in first and "| time, memory |" in first
    assert f"{repository.removeprefix('https://')}/blob/main/notebooks/{stem}.ipynb" in first.replace("colab.research.google.com/github", "github.com")
    assert "google.colab" in code[0].source and repository in code[0].source
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1 and parameters[0].source.startswith("run_dir")
    assert sum("save_figure" in c.source for c in code) == 1
    assert "**Limits.**" in last and any(c.source.startswith("## Takeaways") for c in prose)
    assert not re.search(r"^\s*(def|class) ", "\n".join(c.source for c in code), re.M)
    assert max(len(c.source.splitlines()) for c in code) <= 26


@pytest.mark.parametrize("stem", PATHS)
def test_takeaways_hold_no_number_typed_by_hand(stem):
    """Outside of format specifications, indices and the lines' own code, the text that is printed has no digit."""
    source = cells_of(stem)[-1].source
    texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    formats = {v.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FormattedValue) and n.format_spec for v in n.format_spec.values if isinstance(v, ast.Constant)}
    printed = [t for t in texts if t not in formats and t not in ("excludes 0", "4-bit")]
    allowed = re.compile(r"F1|word 5-grams|4-bit base|(?:ex|in)cludes 0| of 1 ")
    assert not [t for t in printed if re.search(r"\d", allowed.sub("", t))]


@pytest.mark.parametrize("stem", PATHS)
def test_compared_cells_were_executed(stem):
    code = cells_of(stem)
    compared = [c for c in code if not NOT_COMPARED & set(c.metadata.get("tags", []))]
    assert all(c.execution_count for c in code)
    assert sum(bool(c.outputs) for c in compared) >= 2
    errors = [o for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not errors


@pytest.mark.parametrize("stem", PATHS)
def test_committed_notebooks_name_no_machine(stem):
    text = PATHS[stem].read_text()
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|hf_[A-Za-z0-9]{20}|api_key", text)
    assert "injected-parameters" not in text and "papermill" not in nbformat.reads(text, as_version=4).metadata


def test_every_profile_fits_the_notebooks():
    defaults = {stem: runs.parameter_defaults(path) for stem, path in PATHS.items()}
    for profile in ("smoke", "quick", "full", "paper"):
        config.resolve_parameters(defaults, config.load_profile(profile), {})


# --- the chain on the real model, undisturbed and killed ---

def command(runs_dir, run_id, *more):
    return [sys.executable, "-m", "psychosafe_utils", "run", "--profile", "smoke", "--runs-dir", str(runs_dir), "--run-id", run_id, *more]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished smoke run: folder with its runs, and what the command printed."""
    runs_dir = tmp_path_factory.mktemp("runs")
    done = subprocess.run(command(runs_dir, "whole"), cwd=ROOT, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return runs_dir, done.stdout


def table_frames(run_dir):
    return {path.name: pd.read_parquet(path) for path in sorted((run_dir / "tables").glob("*.parquet"))}


def test_the_chain_runs_and_ends_with_table_and_report(undisturbed):
    runs_dir, printed = undisturbed
    assert all(f"{stem}: done" in printed for stem in PATHS)
    assert re.search(r"\n *generic +\d\.\d\d \[", printed) and "report: " in printed.splitlines()[-1]
    report = (runs_dir / "whole" / "report.html").read_text()
    assert "Content note" in report and "data:image/png;base64," in report and str(ROOT) not in report
    assert "training steps: 6/6" in printed and re.search(r"generic: 10/10, [\d.]+ a second", printed)


def test_a_second_start_runs_nothing_again(undisturbed):
    runs_dir, _ = undisturbed
    started = time.perf_counter()
    done = subprocess.run(command(runs_dir, "whole"), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert all(f"{stem}: unchanged, not run again" in done.stdout for stem in PATHS) and "running" not in done.stdout
    assert time.perf_counter() - started < 120


def kill_when(process, condition, timeout=1200):
    """SIGKILL the runner and its kernel as soon as `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.05)
    tree = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in tree:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()


def test_killed_runs_resume_to_the_tables_of_an_undisturbed_one(undisturbed):
    runs_dir, _ = undisturbed
    run_dir = runs_dir / "killed"

    def journal_lines():
        return sum(len(p.read_text().splitlines()) for p in run_dir.glob("journals/*.jsonl"))

    moments = {
        "02": lambda: 2 <= journal_lines() < 20,
        "03": lambda: any(run_dir.glob("training/*/checkpoint-2/trainer_state.json")),
        "04": lambda: (run_dir / "tables" / "04_generations.parquet").exists(),
    }
    for number, moment in moments.items():
        with open(runs_dir / f"killed-{number}.log", "w") as log:
            kill_when(subprocess.Popen(command(runs_dir, "killed"), cwd=ROOT, stdout=log, stderr=log), moment)
        if number == "02":
            assert 2 <= journal_lines() < 20
    # Up to 04 alone: the notebooks behind it were not killed, and would be run once more.
    done = [subprocess.run(command(runs_dir, "killed", "--only", n), cwd=ROOT, capture_output=True, text=True, timeout=1200) for n in "1234"]
    assert all(run.returncode == 0 for run in done), "".join(run.stdout[-2000:] + run.stderr[-2000:] for run in done)
    assert "02_prompting: unchanged" in done[1].stdout and "03_finetune_qlora: unchanged" in done[2].stdout and "04_judging: done" in done[3].stdout
    whole, killed = table_frames(runs_dir / "whole"), table_frames(run_dir)
    assert list(killed) == [name for name in whole if name[:2] <= "04"] and len(whole) == 20
    for name in killed:
        pd.testing.assert_frame_equal(whole[name], killed[name], obj=name)


def test_sidecars_say_what_made_a_table(undisturbed):
    sidecars = list((undisturbed[0] / "whole" / "tables").glob("*.parquet.json"))
    assert len(sidecars) == 20
    for path in sidecars:
        text = path.read_text()
        assert '"versions"' in text and '"sha256"' in text and str(ROOT) not in text and str(undisturbed[0]) not in text


def test_the_committed_answers_are_there_for_every_condition_and_safe_to_keep():
    """What nbval takes in place of a model: no machine path, no word of the safety lexicon that does harm, no public benchmark's prompt."""
    journals = sorted((config.PUBLISHED / "journals").glob("*.jsonl"))
    names = [path.stem.rsplit("-", 1)[0] for path in journals]
    for stem in ("02_prompting", "03_finetune_qlora", "05_generalization"):
        assert set(runs.parameter_defaults(PATHS[stem])["conditions"]) <= set(names)
    for path in config.PUBLISHED.rglob("*.json*"):
        assert not re.search(r"/(?:home|root|Users|tmp|work)/", path.read_text(encoding="utf-8")), path
    for row in (row for path in journals for row in read_rows(path)):
        assert not row["prompt_id"].startswith("xstest")
        assert not corpus.unsafe_wording(row["response"], ("minors_sexual", "amounts", "methods", "weapon_parts")), row


def test_the_readme_shows_the_committed_run():
    """The result table stands there as publishing wrote it, from the executed notebook 04."""
    shown = (ROOT / "README.md").read_text().split("<!-- result -->\n")[1].split("\n<!-- /result -->")[0]
    printed = "".join(o.text for c in cells_of("04_judging") for o in c.outputs if o.output_type == "stream")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]
    assert len(rows) >= 3
    for row in rows:
        assert re.search(r"\s+".join(map(re.escape, row)), printed), row
