"""Other people's prompt-answer pairs, from CSV, JSONL or a hub dataset, as tables of this workbook; what is refused is told by line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from psychosafe_utils.config import CLUSTERS, HARD_CASES, REGIONS, REGISTERS, RISK_CLUSTERS, ROLES, SPLITS
from psychosafe_utils.corpus import find_foreign_contacts, find_unsafe
from psychosafe_utils.tables import SCHEMAS, check_table

# Columns of `prompts` and `pairs` that may be mapped, with the value where a source has none.
OPTIONAL = {
    "answer": "", "role": "curious", "split": "train", "scenario_id": "", "pair_id": "", "region": "", "register": "", "hard_case": "",
    "also": "", "kind": "", "strategy": "", "components": "",
}
ALLOWED = {"cluster": CLUSTERS, "role": ROLES, "split": SPLITS, "region": REGIONS, "register": REGISTERS, "hard_case": HARD_CASES}


def read_source(source: str) -> pd.DataFrame:
    """The rows of a `.csv` or `.jsonl` file, of a folder or hub id that `datasets` can load (split train); all as text.

    Raises:
        ValueError: When it is none of these, or can't be read.
    """
    path = Path(source)
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False).fillna("").astype(str)
        from datasets import load_dataset

        return load_dataset(source, split="train").to_pandas().fillna("").astype(str)
    except Exception as error:  # pandas' and the hub's errors share no base class
        raise ValueError(f"'{source}' can't be read as CSV, JSONL or a dataset ({type(error).__name__}: {str(error).splitlines()[0]})") from None


def _refusals(rows: pd.DataFrame) -> pd.Series:
    """Why each row can't be taken, '' where it can."""
    reason = pd.Series("", index=rows.index)

    def refuse(wrong: pd.Series, text) -> None:
        first = wrong & (reason == "")
        reason[first] = text[first] if isinstance(text, pd.Series) else text

    refuse(rows.text.str.strip() == "", "the prompt is empty")
    for column, values in ALLOWED.items():
        refuse(~rows[column].isin(values), f"{column} '" + rows[column] + "' is not one of this workbook's; map it")
    refuse(rows.text.str.lower().duplicated(), "the prompt repeats an earlier one")
    refuse((rows.answer != "") & rows.answer.duplicated() & rows.cluster.isin(RISK_CLUSTERS), "the answer repeats an earlier one")
    for row in rows[reason == ""].itertuples():
        one = rows.loc[[row.Index]]
        found = find_unsafe(one, one) + find_foreign_contacts(one, one)
        if found:
            reason[row.Index] = found[0].split(": ", 1)[1]
    return reason


def import_corpus(source: str, columns: dict[str, str], clusters: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tables `prompts` and `pairs` of the rows that can be taken, and the rows that were refused.

    Args:
        source: A `.csv` or `.jsonl` file, a dataset's folder, or a hub id.
        columns: Column of this workbook -> column of the source; `text` and `cluster` are needed, `answer` makes pairs.
        clusters: Cluster as the source names it -> one of this workbook's; what is not named stays as it is.
    Returns:
        prompts, pairs, and refused with columns line (of the file; a CSV's header is line 1), text, reason.
    Raises:
        ValueError: When the source can't be read, or lacks a mapped column.
    """
    raw = read_source(source)
    missing = [f"{ours} ('{theirs}')" for ours, theirs in columns.items() if theirs not in raw]
    missing += [f"{need} (not mapped)" for need in ("text", "cluster") if need not in columns]
    unknown = [ours for ours in columns if ours not in {"text", "cluster", *OPTIONAL}]
    if missing or unknown:
        problem = f"lacks {missing[0]}" if missing else f"is mapped to an unknown column '{unknown[0]}'"
        raise ValueError(f"'{source}' {problem}; it has: {', '.join(raw.columns)}; columns that can be mapped: text, cluster, {', '.join(OPTIONAL)}")
    rows = pd.DataFrame({ours: raw[theirs] for ours, theirs in columns.items()}).assign(**{c: v for c, v in OPTIONAL.items() if c not in columns})
    rows["cluster"] = rows.cluster.map(lambda c: clusters.get(c, c))
    name = Path(source).stem
    rows["prompt_id"] = [f"{name}-{i + 1}" for i in range(len(rows))]
    rows["scenario_id"] = rows.scenario_id.where(rows.scenario_id != "", rows.prompt_id)
    rows = rows.assign(source=name, licence="see its source", answer_slots=rows.answer, resources="", writer=name)
    reason = _refusals(rows)
    first_line = 2 if Path(source).suffix == ".csv" else 1
    refused = pd.DataFrame({"line": rows.index + first_line, "text": rows.text, "reason": reason})[reason != ""].reset_index(drop=True)
    good = rows[reason == ""]
    return (
        check_table(good[list(SCHEMAS["prompts"])], "prompts", source),
        check_table(good.loc[good.answer.str.strip() != "", list(SCHEMAS["pairs"])], "pairs", source), refused,
    )
