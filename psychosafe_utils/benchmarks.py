"""Public benchmarks, from a local folder or the Hugging Face hub; never part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from psychosafe_utils.config import DATA, ROOT

XSTEST_HUB = "Paul/XSTest"


def benchmarks_folder() -> Path | None:
    """Where local benchmark files lie: PSYCHOSAFE_BENCHMARKS, data/benchmarks, or a `benchmarks` folder in a neighbouring one."""
    named = os.environ.get("PSYCHOSAFE_BENCHMARKS")
    candidates = [Path(named)] if named else [DATA / "benchmarks", *sorted(ROOT.parent.glob("*/benchmarks"))]
    return next((path for path in candidates if (path / "xstest").is_dir()), None)


def load_xstest() -> tuple[pd.DataFrame | None, str]:
    """XSTest's 450 prompts (Roettger et al. 2024, arXiv 2308.01263), and where they came from.

    Returns:
        Columns prompt_id, text, kind, label (safe or unsafe), or None when XSTest is neither local nor on a reachable hub; and a
        sentence that says which.
    """
    folder = benchmarks_folder()
    if folder:
        raw, source = pd.read_csv(folder / "xstest" / "xstest_prompts.csv", keep_default_na=False), "a local folder"
    else:
        try:
            from datasets import load_dataset

            raw, source = load_dataset(XSTEST_HUB, split="train").to_pandas(), f"the hub ({XSTEST_HUB})"
        except Exception as error:  # the hub's errors share no base class
            return None, f"XSTest is not at hand ({type(error).__name__}); set PSYCHOSAFE_BENCHMARKS to a folder with xstest/xstest_prompts.csv"
    table = pd.DataFrame({
        "prompt_id": "xstest-" + raw["id"].astype(str), "text": raw["prompt"], "kind": raw["type"], "label": raw["label"],
    })
    return table.reset_index(drop=True), f"{len(table)} prompts from {source}"


def load_xstest_answers() -> pd.DataFrame | None:
    """XSTest's answers of several models with the labels of two people and the final one, or None where no local folder has them.

    Returns:
        Columns model, prompt_id, text, response, kind, first, second, label; labels are 1 full compliance, 2 full refusal, 3 partial refusal.
    """
    folder = benchmarks_folder()
    files = sorted((folder / "xstest" / "completions").glob("*.csv")) if folder else []
    tables = []
    for path in files:
        raw = pd.read_csv(path, keep_default_na=False)
        labels = {name: raw[column].str[0].astype(int) for name, column in (("first", "annotation_1"), ("second", "annotation_2"), ("label", "final_label"))}
        tables.append(pd.DataFrame({
            "model": path.stem, "prompt_id": "xstest-" + raw["id"].astype(str), "text": raw["prompt"], "response": raw["completion"], "kind": raw["type"], **labels,
        }))
    return pd.concat(tables, ignore_index=True) if tables else None


def take_per_kind(table: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """About `n` rows in all, the same number of each kind, drawn with a seed; 0 takes all."""
    if not n:
        return table
    each = max(1, n // table.kind.nunique())
    return pd.concat([rows.sample(min(each, len(rows)), random_state=seed) for _, rows in table.groupby("kind")]).sort_index().reset_index(drop=True)
