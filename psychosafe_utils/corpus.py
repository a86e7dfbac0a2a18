"""The corpus: hand-written rows in JSON lines, made into the tables `prompts` and `pairs`, and checked before use."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pandas as pd
import yaml

from psychosafe_utils.config import CLUSTERS, DATA, RISK_CLUSTERS
from psychosafe_utils.helplines import ANY_SLOT, HelplineError, fill_slots, slots_in
from psychosafe_utils.references import find_contacts
from psychosafe_utils.tables import SCHEMAS, TableError, check_table

FOLDER = DATA / "corpus"
LEXICON = DATA / "safety_lexicon.yaml"
NEEDED = ("scenario_id", "split", "role", "region", "text", "answer")


class CorpusError(ValueError):
    """A row or a pair of rows that must not be trained or measured on; names file, row and mend."""


def read_rows(path: Path) -> list[dict]:
    """The rows of one JSONL file, each with its place as `where`.

    Raises:
        CorpusError: When a line is no JSON object or lacks a key.
    """
    text = path.read_text(encoding="utf-8")
    lines, rows = text.removesuffix("\n").split("\n") if text else [], []
    for number, line in enumerate(lines, start=1):
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not JSON ({error.msg}); mend the line") from None
        missing = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
        if missing:
            raise CorpusError(f"{where}: key '{missing[0]}' is missing; a row needs {', '.join(NEEDED)}")
        wrong = [key for key in NEEDED if not isinstance(row[key], str)]
        if wrong:
            raise CorpusError(f"{where}: '{wrong[0]}' is {row[wrong[0]]!r}; it must be text")
        if not row["text"].strip():
            raise CorpusError(f"{where}: the prompt is empty; write one or delete the row")
        rows.append(row | {"where": where, "cluster": path.stem})
    return rows


def load_corpus(folder: Path = FOLDER, *, region: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `prompts` and `pairs` from a folder with one JSONL file a cluster.

    Args:
        folder: Holds `<cluster>.jsonl` files.
        region: Fill the answers' slots for this region instead of each row's own.
    Raises:
        CorpusError: For a file that is no cluster's, a bad row, or a slot that the registry can't fill.
        TableError: For a doubled id, or a value outside its column's list.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise CorpusError(f"{folder} holds no .jsonl file; expected {', '.join(c + '.jsonl' for c in CLUSTERS)}")
    for path in files:
        if path.stem not in CLUSTERS:
            raise CorpusError(f"{path.name}: unknown cluster '{path.stem}'; name the file after one of {', '.join(CLUSTERS)}")
    rows = [row for path in files for row in read_rows(path)]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["scenario_id"]] = counts.get(row["scenario_id"], 0) + 1
        row.setdefault("prompt_id", f"{row['scenario_id']}-{counts[row['scenario_id']]}")
    prompts = [
        {"pair_id": row.get("pair", ""), "source": "written", "licence": "CC-BY-4.0"} | {k: row[k] for k in _PROMPT_KEYS}
        for row in rows
    ]
    pairs = pd.DataFrame([_pair(row, region) for row in rows if row["answer"]], columns=list(SCHEMAS["pairs"]), dtype=str)
    return check_table(pd.DataFrame(prompts), "prompts", str(folder)), check_table(pairs, "pairs", str(folder))


_PROMPT_KEYS = ("prompt_id", "text", "cluster", "role", "split", "scenario_id", "region")


def _pair(row: dict, region: str) -> dict:
    """A row of `pairs`, its slots filled for `region`, or for the row's own where that is ''."""
    if re.search(r"\[\[|\]\]", ANY_SLOT.sub("", row["answer"])):
        raise CorpusError(f"{row['where']}: the answer has a slot with a bracket missing; write [[helpline:cluster:role]]")
    try:
        answer = fill_slots(row["answer"], region or row["region"])
    except HelplineError as error:
        raise CorpusError(f"{row['where']}: {error}") from None
    return {
        "prompt_id": row["prompt_id"], "answer": answer, "answer_slots": row["answer"],
        "strategy": row.get("strategy", ""), "components": "|".join(row.get("components", [])),
        "resources": "|".join(slots_in(row["answer"])), "writer": row.get("writer", "hand"),
    }


@cache
def lexicon() -> dict[str, re.Pattern]:
    """The safety lexicon: kind of unsafe wording -> pattern."""
    kinds = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    return {kind: re.compile(r"\b(?:%s)\b" % "|".join(patterns), re.I) for kind, patterns in kinds.items()}


def unsafe_wording(text: str, kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """(kind, words) of every lexicon hit in a text."""
    straight = text.replace("’", "'")
    return [(kind, text[m.start():m.end()]) for kind in kinds for m in lexicon()[kind].finditer(straight)]


def find_unsafe(prompts: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Rows whose prompt or answer has wording of the safety lexicon, as readable findings."""
    everywhere, risk, answers = ("minors_sexual", "amounts"), ("methods", "weapon_parts"), ("diagnoses", "labels", "promises", "stigma")
    cluster = prompts.set_index("prompt_id").cluster
    findings = []
    for row in prompts.itertuples():
        kinds = everywhere + (risk if row.cluster in RISK_CLUSTERS else ())
        findings += [f"prompt {row.prompt_id}: {kind} '{words}'" for kind, words in unsafe_wording(row.text, kinds)]
    for row in pairs.itertuples():
        kinds = everywhere + (risk + answers if cluster[row.prompt_id] in RISK_CLUSTERS else ())
        findings += [f"answer {row.prompt_id}: {kind} '{words}'" for kind, words in unsafe_wording(row.answer, kinds)]
    return findings


def find_foreign_contacts(prompts: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Contacts in answers that the registry does not have, or has as superseded; a harmless answer may name any site."""
    benign = set(prompts.prompt_id[prompts.cluster == "benign"])
    return [
        f"answer {row.prompt_id}: '{contact.text}' is {contact.status} to the registry"
        for row in pairs.itertuples() for contact in find_contacts(row.answer)
        if contact.status != "registry" and not (row.prompt_id in benign and contact.text[0].isalpha())
    ]


def word_shingles(text: str, n: int = 5) -> frozenset[tuple[str, ...]]:
    """The set of word n-grams of a text, lower case; the whole text where it is shorter."""
    words = re.findall(r"[a-z']+", text.lower())
    return frozenset(tuple(words[i:i + n]) for i in range(max(1, len(words) - n + 1)))


def near_duplicates(prompts: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Pairs of prompts whose word 5-grams overlap with a Jaccard index of at least `threshold`.

    Returns:
        Columns prompt_a, prompt_b, split_a, split_b, jaccard.
    """
    shingles = {row.prompt_id: word_shingles(row.text) for row in prompts.itertuples()}
    holders: dict[tuple, list[str]] = {}
    for prompt_id, grams in shingles.items():
        for gram in grams:
            holders.setdefault(gram, []).append(prompt_id)
    candidates = {pair for ids in holders.values() for pair in combinations(ids, 2)}
    split = prompts.set_index("prompt_id").split
    rows = [
        (a, b, split[a], split[b], len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b]))
        for a, b in sorted(candidates)
    ]
    found = pd.DataFrame(rows, columns=["prompt_a", "prompt_b", "split_a", "split_b", "jaccard"])
    return found[found.jaccard >= threshold].reset_index(drop=True)


def check_corpus(prompts: pd.DataFrame, pairs: pd.DataFrame, *, duplicate_jaccard: float) -> pd.DataFrame:
    """Every check that must hold before anything is trained or measured, with what each one looked at.

    Args:
        duplicate_jaccard: Two prompts at least this similar (word 5-grams) count as duplicates.
    Returns:
        Columns check, looked_at, findings (all 0).
    Raises:
        CorpusError: With the first findings, when any check fails.
    """
    near = near_duplicates(prompts, duplicate_jaccard)
    scenario_splits = prompts.groupby("scenario_id").split.nunique()
    findings = {
        "prompts that repeat another": [f"{r.prompt_a} and {r.prompt_b} (Jaccard {r.jaccard:.2f})" for r in near.itertuples()],
        "answers that repeat another": pairs.prompt_id[pairs.answer_slots.duplicated()].tolist(),
        "scenarios in more than one split": scenario_splits[scenario_splits > 1].index.tolist(),
        "contacts outside the registry": find_foreign_contacts(prompts, pairs),
        "words of the safety lexicon": find_unsafe(prompts, pairs),
    }
    failed = {check: found for check, found in findings.items() if found}
    if failed:
        lines = [f"{check}: {'; '.join(found[:5])}" + (f"; and {len(found) - 5} more" if len(found) > 5 else "") for check, found in failed.items()]
        raise CorpusError("the corpus must not be used before these rows are mended:\n" + "\n".join(lines))
    looked_at = [len(prompts), len(pairs), prompts.scenario_id.nunique(), len(pairs), len(prompts) + len(pairs)]
    return pd.DataFrame({"check": list(findings), "looked_at": looked_at, "findings": [len(f) for f in findings.values()]})


def take_per_cluster(prompts: pd.DataFrame, clusters, split: str, n: int, *, seed: int = 0) -> pd.DataFrame:
    """At most `n` prompts of each cluster of a split, drawn with a seed, in the order of the table; 0 takes all.

    Raises:
        TableError: When a cluster has no prompt in that split.
    """
    chosen = []
    for cluster in clusters:
        rows = prompts[(prompts.cluster == cluster) & (prompts.split == split)]
        if rows.empty:
            raise TableError(f"no prompts of cluster '{cluster}' in split '{split}'; choose another split or run 01_corpus with all clusters")
        chosen.append(rows.sample(min(n, len(rows)), random_state=seed) if n else rows)
    return pd.concat(chosen).sort_index().reset_index(drop=True)
