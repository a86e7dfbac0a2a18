"""Running the notebooks in order: what is unchanged is not run again, what was killed resumes; and publishing a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from traitlets.config import Config

from psychosafe_utils.config import (
    DATA, NOTEBOOKS, PUBLISHED, ROOT, ConfigError, load_profile, notebook_paths, resolve_parameters,
)
from psychosafe_utils.journals import read_rows
from psychosafe_utils.report import mean_table, write_report
from psychosafe_utils.tables import content_hash, package_versions, put_markdown_table, read_table, sha256_of, write_atomically


def parameter_defaults(path: Path) -> dict:
    """Name -> default of a notebook's tagged parameters cell, whose values must be Python literals."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"{path.name} must have one cell tagged 'parameters', not {len(cells)}")
    scope: dict = {}
    exec(cells[0].source, {"__builtins__": {}}, scope)  # our own notebook's literals
    return scope


def _files_hash(folder: Path, pattern: str) -> str:
    return content_hash({str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob(pattern)) if p.is_file() and "__pycache__" not in p.parts and "benchmarks" not in p.parts})


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells that a person wrote."""
    return [c for c in notebook.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]


def source_hash(path: Path) -> str:
    """Hash of a notebook's code; outputs, prose and parameter values are left out."""
    return content_hash([c.source for c in _code_cells(nbformat.read(path, as_version=4)) if "parameters" not in c.metadata.get("tags", [])])


def notebook_reads(path: Path) -> list[str]:
    """Names of the tables that a notebook reads, from its metadata, as `<number>_<table>`."""
    return nbformat.read(path, as_version=4).metadata.get("psychosafe", {}).get("reads", [])


def input_key(path: Path, parameters: dict, run_dir: Path) -> str:
    """Hash of all that a notebook's results depend on: its code and parameters, the module, the data, the tables it reads."""
    tables = {name: sha256_of(f) for name in notebook_reads(path) if (f := run_dir / "tables" / f"{name}.parquet").exists()}
    own = {name: value for name, value in parameters.items() if name != "run_dir"}
    module = _files_hash(ROOT / "psychosafe_utils", "*")
    return content_hash(source_hash(path), own, module, _files_hash(DATA, "*"), tables, package_versions())


def _load_run(run_dir: Path) -> dict:
    path = run_dir / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"notebooks": {}}


def _save_run(run_dir: Path, run: dict) -> None:
    write_atomically(run_dir / "run.json", lambda p: p.write_text(json.dumps(run, indent=1), encoding="utf-8"))


def _outputs_exist(path: Path, run_dir: Path) -> bool:
    writes = nbformat.read(path, as_version=4).metadata.get("psychosafe", {}).get("writes", [])
    return (run_dir / "notebooks" / path.name).exists() and all((run_dir / "tables" / f"{w}.parquet").exists() for w in writes)


class NotebookError(RuntimeError):
    """A notebook that stopped, with the error of its cell in one line."""


def execute_notebook(path: Path, parameters: dict, run_dir: Path) -> None:
    """Run one notebook from its source into the run's folder, its printed lines shown as they come.

    Raises:
        NotebookError: When a cell fails; the executed copy up to that cell is kept.
    """
    target = run_dir / "notebooks" / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path), str(target), parameters=parameters, cwd=str(NOTEBOOKS), kernel_name="python3", progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stdout, config=Config(KernelManager={"transport": "ipc"}),
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{path.stem} stopped in cell {error.exec_count}: {error.ename}: {error.evalue} (traceback: {target})") from None


def select_notebooks(start: int, only: int) -> list[Path]:
    """The notebooks to run: all, those from number `start` on, or number `only` alone (0: not asked for)."""
    paths = [p for p in notebook_paths() if (not only or int(p.name[:2]) == only) and int(p.name[:2]) >= start]
    if not paths:
        raise ConfigError(f"there is no notebook {only or start:02d}; there are {', '.join(p.name[:2] for p in notebook_paths())}")
    return paths


def run_notebooks(profile: str, *, run_id: str = "", runs_dir: Path | None = None, start: int = 0, only: int = 0, overrides: dict | None = None) -> Path:
    """Run notebooks in order with a profile's parameters, and write the report.

    Args:
        profile: Name of a file in profiles/.
        run_id: Folder of the run; the profile's name when ''. The same id resumes.
        start, only: Notebook numbers; 0 runs all.
        overrides: Parameter -> value, for every notebook that has it.
    Returns:
        The run's folder.
    Raises:
        ConfigError: For anything unknown or mistyped, before the first notebook starts.
    """
    defaults = {p.stem: parameter_defaults(p) for p in notebook_paths()}
    parameters = resolve_parameters(defaults, load_profile(profile), overrides or {})
    paths = select_notebooks(start, only)
    run_dir = (Path(runs_dir or ROOT / "runs") / (run_id or profile)).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for i, path in enumerate(paths, start=1):
        run, given = _load_run(run_dir), parameters[path.stem] | {"run_dir": str(run_dir)}
        key = input_key(path, given, run_dir)
        if run["notebooks"].get(path.stem, {}).get("key") == key and _outputs_exist(path, run_dir):
            print(f"[{i}/{len(paths)}] {path.stem}: unchanged, not run again", flush=True)
            continue
        print(f"[{i}/{len(paths)}] {path.stem}: running ...", flush=True)
        started = time.perf_counter()
        execute_notebook(path, given, run_dir)
        seconds = time.perf_counter() - started
        run["notebooks"][path.stem] = {"key": key, "seconds": round(seconds, 1), "parameters": given | {"run_dir": run_dir.name}}
        _save_run(run_dir, run)
        print(f"[{i}/{len(paths)}] {path.stem}: done in {seconds:.0f} s", flush=True)
    print(f"{len(paths)} notebooks in {time.perf_counter() - began:.0f} s", flush=True)
    return run_dir


def show_result(run_dir: Path) -> None:
    """Write the report and print the comparison table and the report's path."""
    report = write_report(run_dir)
    print(mean_table(read_table(run_dir / "tables" / "04_effects.parquet", "effects")).to_string(index=False))
    print(f"report: {os.path.relpath(report)}")


def _with_outputs(source: Path, executed: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of its executed copy, as git keeps it: without progress lines, run metadata and machine paths.

    Raises:
        ConfigError: When its code was changed after it was run.
    """
    if source_hash(source) != source_hash(executed):
        raise ConfigError(f"{source.stem} was changed after it was run; run it again, then publish")
    notebook = nbformat.read(source, as_version=4)
    text = executed.read_text(encoding="utf-8").replace(str(ROOT), ".").replace(str(Path.home()), "~")
    for number, (cell, run) in enumerate(zip(_code_cells(notebook), _code_cells(nbformat.reads(text, as_version=4))), start=1):
        cell.execution_count = number
        cell.outputs = [o for o in run.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            output.pop("execution_count", None) if output.output_type != "execute_result" else output.update(execution_count=number)
    return notebook


def publish_run(run_dir: Path) -> list[Path]:
    """Copy a run's executed notebooks, figures, answers and adapter to where the repository keeps them.

    Raises:
        ConfigError: When a notebook was not run with its default parameters, failed, was changed since, or still holds a machine path; or
            when answers were not made in float32, the type that every machine can make them again in.
    """
    if (run_dir / "journals").exists():
        from psychosafe_utils.models import default_dtype  # the runner itself needs no torch

        if str(default_dtype()) != "torch.float32":
            raise ConfigError("answers are published from float32, which every CPU has; run and publish with PSYCHOSAFE_DTYPE=float32")
    written = []
    for name, step in sorted(_load_run(run_dir)["notebooks"].items()):
        source = NOTEBOOKS / f"{name}.ipynb"
        changed = {k for k, v in parameter_defaults(source).items() if k != "run_dir" and step["parameters"][k] != v}
        if changed:
            raise ConfigError(f"{name} was run with other values than its defaults ({', '.join(sorted(changed))}); publish a run of profile quick")
        text = nbformat.writes(_with_outputs(source, run_dir / "notebooks" / source.name)) + "\n"
        if found := re.search(r"(/home/|/Users/|/root/|/tmp/)[^\"\s\\\\]*", text):
            raise ConfigError(f"{name} still holds the machine path '{found[0]}'; print it relative to the project")
        source.write_text(text, encoding="utf-8")
        written.append(source)
    (ROOT / "figures").mkdir(exist_ok=True)
    for figure in sorted((run_dir / "figures").iterdir()):
        written.append(Path(shutil.copy(figure, ROOT / "figures" / figure.name)))
    written += publish_answers(run_dir)
    effects = run_dir / "tables" / "04_effects.parquet"
    if effects.exists():
        put_markdown_table(mean_table(read_table(effects, "effects")), ROOT / "README.md", "result")
        written.append(ROOT / "README.md")
    return written


def publish_answers(run_dir: Path) -> list[Path]:
    """Copy a run's journals of answers, and the adapter that made the tuned ones, so that its notebooks open without a wait.

    Only answers to the corpus's own prompts are copied: what a model says to a public benchmark's stays out of the repository.
    """
    sources, journals = [], sorted((run_dir / "journals").glob("*.jsonl"))
    own = set(read_table(run_dir / "tables" / "01_prompts.parquet", "prompts").prompt_id) if journals else set()
    for journal in journals:
        # A mutated prompt is named after its own: <prompt_id>~<mutation>.
        if {str(row.get("prompt_id")).split("~")[0] for row in read_rows(journal)} <= own:
            sources.append(journal)
    tuned = run_dir / "tables" / "03_generations.parquet"
    if tuned.exists():
        from psychosafe_utils.finetune import find_adapter

        folder = find_adapter(run_dir, read_table(tuned, "generations"))
        sources += [folder / name for name in ("adapter_config.json", "adapter_model.safetensors", "log_history.json")]
    shutil.rmtree(PUBLISHED, ignore_errors=True)
    targets = [PUBLISHED / source.relative_to(run_dir) for source in sources]
    for source, target in zip(sources, targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return targets
