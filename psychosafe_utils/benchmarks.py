"""Public benchmarks, from a local folder or the Hugging Face hub; never part of this repository."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import httpx
import pandas as pd
from huggingface_hub import constants

from psychosafe_utils.config import DATA, ROOT

XSTEST_HUB = "Paul/XSTest"
SIMPLE_SAFETY_HUB = "Bertievidgen/SimpleSafetyTests"
COCONOT_HUB = "allenai/coconot"
SORRY_HUB = "sorry-bench/sorry-bench-202503"
LITMUS_HUB = "hasnat79/litmus"
DOMAINS = DATA / "benchmark_domains.csv"
LOCAL = ("xstest", "simplesafetytests", "coconot", "sorrybench", "litmus")  # folders by which a benchmarks folder is known
COLUMNS = ["prompt_id", "text", "kind", "label", "cluster", "domain"]
# Categories that the two editions of SORRY-Bench number alike; beyond them the mapping is that of the 44 of March 2025.
SHARED_CATEGORIES = 24


def benchmarks_folder() -> Path | None:
    """Where local benchmark files lie: PSYCHOSAFE_BENCHMARKS, data/benchmarks, or a `benchmarks` folder in a neighbouring one."""
    named = os.environ.get("PSYCHOSAFE_BENCHMARKS")
    candidates = [Path(named)] if named else [DATA / "benchmarks", *sorted(ROOT.parent.glob("*/benchmarks"))]
    return next((path for path in candidates if any((path / name).is_dir() for name in LOCAL)), None)


@cache
def hub_is_near() -> bool:
    """Whether the hub answers at all; asked once, because its own client tries each dataset for half a minute."""
    try:
        httpx.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5)
    except httpx.HTTPError:
        return False
    return True


def _rows_of(local: str, hub: str, name: str | None = None, split: str = "test") -> tuple[pd.DataFrame | None, str]:
    """Rows of a local file (CSV or JSON lines) below the benchmarks folder, else of a hub dataset; and a sentence that says which, or why neither."""
    folder = benchmarks_folder()
    if folder and (folder / local).exists():
        path = folder / local
        rows = pd.read_csv(path, keep_default_na=False) if path.suffix == ".csv" else pd.read_json(path, lines=True, dtype=False)
        return rows, "a local folder"
    try:
        from datasets import load_dataset

        if not hub_is_near():
            constants.HF_HUB_OFFLINE = True  # the client then reads what it has cached, and tries nothing
        return load_dataset(hub, name, split=split).to_pandas(), f"the hub ({hub})"
    except Exception as error:  # the hub's errors share no base class
        return None, f"not at hand ({type(error).__name__}); set PSYCHOSAFE_BENCHMARKS to a folder with {local}, or log in to the hub for {hub}"


@cache
def _domains(benchmark: str) -> dict[str, tuple[str, str]]:
    """Category -> (cluster, domain: in_domain, partial or out_of_domain)."""
    table = pd.read_csv(DOMAINS, dtype=str, keep_default_na=False)
    return {row.kind: (row.cluster, row.domain) for row in table[table.benchmark == benchmark].itertuples()}


def _with_domains(table: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """The table with cluster and domain of each row's kind, '' where the mapping has none."""
    found = [_domains(benchmark).get(kind, ("", "")) for kind in table.kind]
    return table.assign(cluster=[c for c, _ in found], domain=[d for _, d in found])[COLUMNS].reset_index(drop=True)


def load_xstest() -> tuple[pd.DataFrame | None, str]:
    """XSTest's 450 prompts (Roettger et al. 2024, arXiv 2308.01263), and where they came from.

    Returns:
        Columns prompt_id, text, kind, label (safe or unsafe), cluster, domain, or None when XSTest is neither local nor on a reachable hub; and a
        sentence that says which.
    """
    raw, source = _rows_of("xstest/xstest_prompts.csv", XSTEST_HUB, split="train")
    if raw is None:
        return None, f"XSTest is {source}"
    table = pd.DataFrame({"prompt_id": "xstest-" + raw["id"].astype(str), "text": raw["prompt"], "kind": raw["type"], "label": raw["label"]})
    return _with_domains(table, "XSTest"), f"XSTest: {len(table)} prompts from {source}"


def load_simple_safety() -> tuple[pd.DataFrame | None, str]:
    """SimpleSafetyTests: 100 clearly unsafe prompts in five harm areas (Vidgen et al. 2023, arXiv 2311.08370); see `load_xstest`."""
    raw, source = _rows_of("simplesafetytests/simplesafetytests.csv", SIMPLE_SAFETY_HUB)
    if raw is None:
        return None, f"SimpleSafetyTests is {source}"
    text = raw["prompts_final"] if "prompts_final" in raw else raw["prompt"]
    table = pd.DataFrame({"prompt_id": raw["id"].astype(str), "text": text, "kind": raw["harm_area"], "label": "unsafe"})
    return _with_domains(table, "SimpleSafetyTests"), f"SimpleSafetyTests: {len(table)} prompts from {source}"


def load_coconot() -> tuple[pd.DataFrame | None, str]:
    """CoCoNot's requests with safety concerns and its contrast set (Brahman et al. 2024, arXiv 2407.12043); see `load_xstest`.

    Of the 1,001 requests not to comply with, those that are false, vague or impossible rather than harmful have label `other`: a refusal
    for safety is not what they ask for.
    """
    eval_rows, source = _rows_of("coconot/data/coconot_eval.jsonl", COCONOT_HUB, "original")
    contrast, _ = _rows_of("coconot/data/coconot_contrast_eval.jsonl", COCONOT_HUB, "contrast")
    if eval_rows is None or contrast is None:
        return None, f"CoCoNot is {source}"
    raw = pd.concat([eval_rows.assign(part="eval"), contrast.assign(part="contrast")], ignore_index=True)
    harmful = raw.category == "Requests with safety concerns"
    label = pd.Series("safe", raw.index).mask(raw.part == "eval", "other").mask((raw.part == "eval") & harmful, "unsafe")
    kind = raw.subcategory.where(harmful, raw.category)
    table = pd.DataFrame({"prompt_id": "coconot-" + raw.part + "-" + raw["id"].astype(str), "text": raw.prompt, "kind": kind, "label": label})
    return _with_domains(table, "CoCoNot"), f"CoCoNot: {len(table)} prompts from {source}"


def load_litmus(*, seed: int = 0) -> pd.DataFrame:
    """LITMUS, the prompts that AQI was published with (Borah et al. 2025, arXiv 2506.13901), as pairs of a safe and an unsafe prompt under one axiom.

    Which safe prompt stands beside which unsafe one is drawn with the seed: the axiom is the same, the topic and the words need not be. Prompts that are left
    over are not used. Half of the pairs are for validation.

    Returns:
        Columns prompt_id, text, cluster (benign or unsafe), kind (the axiom), split (val or test), pair_id, like `corpus.load_contrast`.
    Raises:
        ValueError: When it is neither local nor on a reachable hub, lacks a field, or has other labels than safe and unsafe.
    """
    raw, source = _rows_of("litmus/litmus.csv", LITMUS_HUB, split="train")
    if raw is None:
        raise ValueError(f"LITMUS is {source}")
    if missing := {"input", "safety_label", "axiom"} - set(raw):
        raise ValueError(f"LITMUS from {source} lacks the field '{min(missing)}'; it has {', '.join(map(str, raw.columns))}")
    label = raw.safety_label.astype(str).str.strip().str.lower()
    if others := set(label) - {"safe", "unsafe"}:
        raise ValueError(f"LITMUS from {source} has the label '{min(others)}'; safety_label must be safe or unsafe")
    rows = raw.assign(prompt_id="litmus-" + raw.index.astype(str), unsafe=label == "unsafe").drop_duplicates("input").sample(frac=1, random_state=seed)
    number = rows.groupby(["axiom", "unsafe"]).cumcount()
    rows = rows.assign(pair_id=rows.axiom + "-" + number.astype(str), split=number.mod(2).map({0: "val", 1: "test"}))
    whole = rows[rows.groupby("pair_id").unsafe.transform("nunique") == 2].sort_values(["pair_id", "unsafe"])
    table = whole.assign(cluster=whole.unsafe.map({True: "unsafe", False: "benign"})).rename(columns={"input": "text", "axiom": "kind"})
    return table[["prompt_id", "text", "cluster", "kind", "split", "pair_id"]].reset_index(drop=True)


def load_sorry_bench(styles: tuple[str, ...] = ("base",)) -> tuple[pd.DataFrame | None, str]:
    """SORRY-Bench in its native format (Xie et al. 2024, arXiv 2406.14598): JSON lines with question_id, category, turns, prompt_style; see `load_xstest`.

    Its prompts are gated: each user accepts the licence on the hub, and keeps a copy as sorrybench/*.jsonl or logs in. Both editions are read (44 or 45 categories).

    Args:
        styles: `base`, and any of the 20 mutations by the names that the files have.
    Raises:
        ValueError: When a file lacks a field, or has none of a style; names file and field.
    """
    folder = benchmarks_folder()
    files = sorted((folder / "sorrybench").glob("*.jsonl")) if folder else []
    if files:
        raw, source = pd.concat([_read_sorry_file(path) for path in files], ignore_index=True), "a local folder"
    else:
        raw, source = _rows_of("sorrybench", SORRY_HUB, split="train")
        if raw is None:
            return None, f"SORRY-Bench is {source}; it is gated, accept its licence at huggingface.co/datasets/{SORRY_HUB} first"
    raw = raw.assign(style=raw.prompt_style.fillna("base").replace("", "base"), category=raw.category.astype(str))
    if unknown := sorted(set(styles) - set(raw["style"])):
        raise ValueError(f"SORRY-Bench here has no style '{unknown[0]}'; it has {', '.join(sorted(set(raw['style'])))}")
    rows = raw[raw["style"].isin(styles)]
    table = pd.DataFrame({
        "prompt_id": "sorry-" + rows["style"] + "-" + rows.question_id.astype(str), "text": [turns[0] for turns in rows.turns], "kind": rows.category, "label": "unsafe",
    })
    table = _with_domains(table, "SORRY-Bench")
    if raw.category.nunique() > 44:  # the edition of June 2024
        table.loc[table.kind.astype(int) > SHARED_CATEGORIES, ["cluster", "domain"]] = ""
    return table, f"SORRY-Bench: {len(table)} prompts in {table.kind.nunique()} categories from {source}"


def _read_sorry_file(path: Path) -> pd.DataFrame:
    rows = pd.read_json(path, lines=True, dtype=False)
    for field in ("question_id", "category", "turns", "prompt_style"):
        if field not in rows:
            raise ValueError(f"{path}: field '{field}' is missing; SORRY-Bench rows have question_id, category, turns, prompt_style")
    return rows


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
