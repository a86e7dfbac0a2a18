"""The workbook's tables: parquet files whose schema is checked on write and on read, each with a JSON sidecar."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from psychosafe_utils.config import CLUSTERS, HARD_CASES, REGIONS, REGISTERS, RISK_CLUSTERS, ROLES, SPLITS

STATUSES = ("ok", "not_applicable", "parse_error", "off_scale", "judge_refused", "failed")
VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "pandas", "scipy")


class TableError(ValueError):
    """A table that is broken, missing or not of its schema; names file, row, column and the mend."""


def _text(*checks, nullable: bool = False) -> pa.Column:
    return pa.Column(str, checks=list(checks), nullable=nullable)


_filled = pa.Check(lambda s: s.str.strip().str.len() > 0, error="is empty")
_number = {"dtype": float, "nullable": True}

SCHEMAS = {
    "prompts": {
        "prompt_id": _text(_filled), "text": _text(_filled), "cluster": _text(pa.Check.isin(CLUSTERS)),
        "role": _text(pa.Check.isin(ROLES)), "split": _text(pa.Check.isin(SPLITS)), "scenario_id": _text(_filled),
        "pair_id": _text(), "region": _text(pa.Check.isin(REGIONS)), "register": _text(pa.Check.isin(REGISTERS)),
        "hard_case": _text(pa.Check.isin(HARD_CASES)), "also": _text(), "kind": _text(), "source": _text(_filled), "licence": _text(_filled),
    },
    "pairs": {
        "prompt_id": _text(_filled), "answer": _text(_filled), "answer_slots": _text(_filled), "strategy": _text(),
        "components": _text(), "resources": _text(), "writer": _text(_filled),
    },
    "generations": {
        "generation_id": _text(_filled), "prompt_id": _text(_filled), "model": _text(_filled), "revision": _text(),
        "adapter": _text(), "condition": _text(_filled), "seed": pa.Column(int), "response": _text(),
        "finish_reason": _text(pa.Check.isin(("stop", "length", "written"))), "n_tokens": pa.Column(int),
        "p_refuse": pa.Column(**_number),
    },
    "judgements": {
        "generation_id": _text(_filled), "rater": _text(_filled),
        "rater_kind": _text(pa.Check.isin(("rule", "llm", "local", "guard", "human", "panel"))), "criterion": _text(_filled),
        "rubric_version": _text(_filled), "score": pa.Column(**_number), "status": _text(pa.Check.isin(STATUSES)),
        "evidence": _text(), "raw": _text(),
    },
    "effects": {
        "contrast": _text(_filled), "metric": _text(_filled), "cluster": _text(_filled),
        "estimate": pa.Column(**_number), "low": pa.Column(**_number), "high": pa.Column(**_number), "test": _text(),
        "p": pa.Column(**_number), "p_holm": pa.Column(**_number), "effect_size": pa.Column(**_number),
        "n_prompts": pa.Column(int), "n_unscored": pa.Column(int),
    },
    "outcomes": {
        "task": _text(_filled), "item": _text(_filled), "question": _text(), "correct": pa.Column(float), "n_choices": pa.Column(int), "condition": _text(_filled),
    },
    "scores": {
        "prompt_id": _text(_filled), "set": _text(_filled), "label": _text(pa.Check.isin(("safe", "unsafe"))), "cluster": _text(),
        **{category: pa.Column(float, pa.Check.in_range(0, 1)) for category in ("respond", *RISK_CLUSTERS, "out_of_scope", "mass")},
    },
    "probes": {
        "model": _text(_filled), "condition": _text(_filled), "layer": pa.Column(int), "index": _text(_filled), "value": pa.Column(**_number),
        "low": pa.Column(**_number), "high": pa.Column(**_number),
    },
    "curves": {
        "step": pa.Column(int), "split": _text(pa.Check.isin(("train", "val"))), "loss": pa.Column(float),
        "learning_rate": pa.Column(**_number),
    },
}
KEYS = {
    "prompts": ["prompt_id"], "pairs": ["prompt_id"], "generations": ["generation_id"],
    "judgements": ["generation_id", "rater", "criterion"], "effects": ["contrast", "metric", "cluster"],
    "curves": ["step", "split"], "outcomes": ["item", "condition"], "scores": ["prompt_id"], "probes": ["model", "condition", "layer", "index"],
}


def check_table(frame: pd.DataFrame, name: str, where: str) -> pd.DataFrame:
    """`frame` with the columns of table `name`, in order, every value checked.

    Raises:
        TableError: For the first missing column, doubled key or wrong value, with its row.
    """
    missing = [c for c in SCHEMAS[name] if c not in frame]
    if missing:
        raise TableError(f"{where}: column '{missing[0]}' is missing; table '{name}' needs {', '.join(SCHEMAS[name])}")
    frame = frame[list(SCHEMAS[name])].reset_index(drop=True)
    doubled = frame.duplicated(KEYS[name])
    if doubled.any():
        row = int(doubled.idxmax())
        key = ", ".join(str(frame.loc[row, k]) for k in KEYS[name])
        raise TableError(f"{where}: row {row}: {' + '.join(KEYS[name])} '{key}' occurs twice; keep one of the two")
    try:
        return pa.DataFrameSchema(SCHEMAS[name], strict=True).validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        case = error.failure_cases.iloc[0]
        row = "" if pd.isna(case["index"]) else f"row {int(case['index'])}: "
        raise TableError(
            f"{where}: {row}column '{case['column']}' has {case['failure_case']!r}, which fails {case['check']}; mend the row"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*parts) -> str:
    """First 16 hex digits of the SHA-256 of the parts' JSON; the name of a piece of work."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on; 'missing' where one is not installed."""

    def of(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "missing"

    return {package: of(package) for package in VERSIONED}


def refuse_full_disk(error: OSError, path: Path) -> None:
    """Raise a TableError that says what to do when `error` means that the disk is full; return otherwise."""
    if error.errno == errno.ENOSPC:
        raise TableError(f"{path}: the disk is full; free some space and run the same command again, it resumes") from None


def write_atomically(path: Path, write) -> None:
    """Call `write(temporary path)`, then put the file in place, so that a reader never sees half of one.

    Raises:
        TableError: When the disk is full; what stood at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        refuse_full_disk(error, path)
        raise


def write_table(frame: pd.DataFrame, path: Path, name: str, *, parameters: dict, inputs: tuple[Path, ...] = ()) -> pd.DataFrame:
    """Check `frame` as table `name`, write it as parquet with a sidecar `<path>.json`, and return it.

    Args:
        frame: Rows in the columns of `SCHEMAS[name]`.
        path: Ends in `.parquet`.
        parameters: What made the table; kept in the sidecar.
        inputs: Files that the table was made from; their hashes are kept.
    Raises:
        TableError: When the table is not of its schema, or the disk is full.
    """
    frame = check_table(frame, name, str(path))
    write_atomically(path, lambda p: frame.to_parquet(p, index=False))
    sidecar = {
        "table": name, "rows": len(frame), "sha256": sha256_of(path), "parameters": parameters,
        "inputs": {Path(p).name: sha256_of(p) for p in inputs}, "versions": package_versions(),
    }
    text = json.dumps(sidecar, indent=1, sort_keys=True)
    write_atomically(path.with_name(path.name + ".json"), lambda p: p.write_text(text, encoding="utf-8"))
    return frame


def put_markdown_table(frame: pd.DataFrame, path: Path, marker: str) -> None:
    """Write `frame` as a Markdown table between a text's `<!-- marker -->` and `<!-- /marker -->`, so that no number in it is typed by hand."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = re.sub(rf"(?s)(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", rf"\g<1>{markdown}\n\g<2>", path.read_text(encoding="utf-8"))
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def _recorded_hash(sidecar: Path) -> str:
    """The hash that a sidecar holds; '' where it holds none."""
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):
        return ""


def read_table(path: Path, name: str) -> pd.DataFrame:
    """The rows of a table, checked against its schema and its sidecar's hash.

    Raises:
        TableError: When the file is missing, broken, changed since it was written, or not of its schema.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path} is missing; run the notebook that writes it first ({path.name[:2]}_...)")
    sidecar = path.with_name(path.name + ".json")
    if sidecar.exists() and _recorded_hash(sidecar) != sha256_of(path):
        raise TableError(f"{path} is broken or was changed after it was written; delete it and run its notebook again")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is not a readable parquet file ({error}); delete it and run its notebook again") from None
    return check_table(frame, name, str(path))
