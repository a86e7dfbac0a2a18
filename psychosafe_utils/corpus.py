"""The corpus: scenario cards and written rows, made into the tables `prompts` and `pairs`, and checked before use."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path

import pandas as pd
import yaml

from psychosafe_utils.cards import CorpusError, card_rows, cluster_of, read_cards, read_json_lines
from psychosafe_utils.config import CLUSTERS, DATA, RISK_CLUSTERS
from psychosafe_utils.helplines import ANY_SLOT, HelplineError, fill_slots, slots_in
from psychosafe_utils.references import find_contacts
from psychosafe_utils.tables import SCHEMAS, TableError, check_table, read_table, write_table

FOLDER = DATA / "corpus"
CONTRAST = DATA / "contrast" / "requests.jsonl"
PLAIN_REQUESTS = CONTRAST.with_name("plain_requests.jsonl")
LEXICON = DATA / "safety_lexicon.yaml"
NEEDED = ("scenario_id", "split", "role", "region", "text", "answer")
TRAIN_PAIRS = 7019
# More rows than this a card would repeat themselves.
ROWS_A_CARD = 15


def read_rows(path: Path) -> list[dict]:
    """The rows of one JSONL file. Raises CorpusError for a line that is no row, or a row without a prompt."""
    rows = read_json_lines(path, NEEDED, "row")
    for row in rows:
        wrong = [key for key in NEEDED if not isinstance(row[key], str)]
        if wrong:
            raise CorpusError(f"{row['where']}: '{wrong[0]}' is {row[wrong[0]]!r}; it must be text")
        if not row["text"].strip():
            raise CorpusError(f"{row['where']}: the prompt is empty; write one or delete the row")
    return rows


def _cluster_files(folder: Path) -> list[Path]:
    """The JSONL files of a folder, `<cluster>.jsonl` or `<cluster>.<part>.jsonl`. Raises CorpusError for one that is not named so."""
    files = sorted(folder.glob("*.jsonl"))
    for path in files:
        if cluster_of(path) not in CLUSTERS:
            raise CorpusError(f"{path.name}: unknown cluster '{cluster_of(path)}'; name the file after one of {', '.join(CLUSTERS)}")
    return files


def rows_from_cards(folder: Path, written: list[dict], *, train_pairs: int, seed: int) -> list[dict]:
    """Training rows from scenario cards, so that each risk cluster gets its share of `train_pairs`, written rows counted.

    Where the cards are too few for that, each gives `ROWS_A_CARD` rows.
    """
    cards = [card for path in _cluster_files(folder) for card in read_cards(path)]
    rows = []
    for place, cluster in enumerate(RISK_CLUSTERS):
        of_cluster = [card for card in cards if card["cluster"] == cluster]
        share = train_pairs // len(RISK_CLUSTERS) + (place < train_pairs % len(RISK_CLUSTERS))
        wanted = max(0, share - sum(row["cluster"] == cluster and row["split"] == "train" for row in written))
        for i, card in enumerate(of_cluster):
            n = wanted // len(of_cluster) + (i < wanted % len(of_cluster))
            rows += card_rows(card, min(n, ROWS_A_CARD), seed)
    return rows


def build_corpus(folder: Path = FOLDER, *, region: str = "", train_pairs: int = TRAIN_PAIRS, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `prompts` and `pairs` from scenario cards (`cards/`) and rows written one by one (`written/`).

    Args:
        folder: Holds `cards/<cluster>.jsonl` and `written/<cluster>.jsonl`.
        region: Fill the answers' slots for this region instead of each row's own.
        train_pairs: Training rows in the five risk clusters together.
        seed: Of the grammar that combines a card's parts.
    Raises:
        CorpusError: For a file that is no cluster's, a bad row, or a slot that the registry can't fill.
        TableError: For a doubled id, or a value outside its column's list.
    """
    files = _cluster_files(Path(folder) / "written")
    written = [row for path in files for row in read_rows(path)]
    rows = written + rows_from_cards(Path(folder) / "cards", written, train_pairs=train_pairs, seed=seed)
    if not rows:
        raise CorpusError(f"{folder} holds neither cards/<cluster>.jsonl nor written/<cluster>.jsonl with a row; clusters: {', '.join(CLUSTERS)}")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["scenario_id"]] = counts.get(row["scenario_id"], 0) + 1
        row.setdefault("prompt_id", f"{row['scenario_id']}-{counts[row['scenario_id']]}")
    rows.sort(key=lambda row: (CLUSTERS.index(row["cluster"]), row["scenario_id"], row["prompt_id"]))
    prompts = pd.DataFrame([_prompt(row) for row in rows])
    pairs = pd.DataFrame([_pair(row, region) for row in rows if row["answer"]], columns=list(SCHEMAS["pairs"]), dtype=str)
    return check_table(prompts, "prompts", str(folder)), check_table(pairs, "pairs", str(folder))


def _prompt(row: dict) -> dict:
    """A row of `prompts`."""
    named = {key: row[key] for key in ("prompt_id", "text", "cluster", "role", "split", "scenario_id", "region")}
    return named | {
        "pair_id": row.get("pair", ""), "register": row.get("register", ""), "hard_case": row.get("hard_case", ""),
        "also": "|".join(row.get("also", [])), "kind": row.get("kind", ""), "source": row.get("source", "written"), "licence": "CC-BY-4.0",
    }


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


def save_corpus(prompts: pd.DataFrame, pairs: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Write `prompts.parquet` and `pairs.parquet` with their sidecars into the corpus folder."""
    sources = tuple(sorted(Path(folder).glob("*/*.jsonl")))
    for frame, name in ((prompts, "prompts"), (pairs, "pairs")):
        write_table(frame, Path(folder) / f"{name}.parquet", name, parameters={}, inputs=sources)


def load_corpus(folder: Path = FOLDER) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The committed tables `prompts` and `pairs`. Raises TableError when one is missing or was changed."""
    if not (Path(folder) / "prompts.parquet").exists():
        raise TableError(f"{folder} holds no prompts.parquet; build it with: python -m psychosafe_utils corpus")
    return tuple(read_table(Path(folder) / f"{name}.parquet", name) for name in ("prompts", "pairs"))


@cache
def lexicon() -> dict[str, re.Pattern]:
    """The safety lexicon: kind of unsafe wording -> pattern."""
    kinds = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    return {kind: re.compile(r"\b(?:%s)\b" % "|".join(patterns), re.I) for kind, patterns in kinds.items()}


@lru_cache(maxsize=50_000)
def unsafe_wording(text: str, kinds: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(kind, words) of every lexicon hit in a text."""
    straight = text.replace("’", "'")
    return tuple((kind, text[m.start():m.end()]) for kind in kinds for m in lexicon()[kind].finditer(straight))


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
        duplicate_jaccard: Prompts of different splits that are at least this similar (word 5-grams) count as leaked.
    Returns:
        Columns check, looked_at, findings (all 0).
    Raises:
        CorpusError: With the first findings, when any check fails.
    """
    near = near_duplicates(prompts, duplicate_jaccard)
    near = near[near.split_a != near.split_b]
    situation = prompts.pair_id.where(prompts.pair_id != "", prompts.scenario_id)
    splits = prompts.groupby(situation).split.nunique()
    findings = {
        "prompts that repeat another": prompts.prompt_id[prompts.text.str.lower().duplicated()].tolist(),
        "prompts much like one of another split": [f"{r.prompt_a} and {r.prompt_b} (Jaccard {r.jaccard:.2f})" for r in near.itertuples()],
        "answers that repeat another": pairs.prompt_id[pairs.answer.duplicated()].tolist(),
        "scenarios or look-alike pairs in more than one split": splits[splits > 1].index.tolist(),
        "contacts outside the registry": find_foreign_contacts(prompts, pairs),
        "words of the safety lexicon": find_unsafe(prompts, pairs),
    }
    failed = {check: found for check, found in findings.items() if found}
    if failed:
        lines = [f"{check}: {'; '.join(found[:5])}" + (f"; and {len(found) - 5} more" if len(found) > 5 else "") for check, found in failed.items()]
        raise CorpusError("the corpus must not be used before these rows are mended:\n" + "\n".join(lines))
    looked_at = [len(prompts), len(prompts), len(pairs), len(splits), len(pairs), len(prompts) + len(pairs)]
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


def load_contrast() -> pd.DataFrame:
    """One-line requests in pairs, one to decline and one to answer (data/contrast): prompt_id, text, cluster, kind, split, pair_id; no answers."""
    return pd.read_json(CONTRAST, lines=True, dtype=False)


def load_plain_requests() -> pd.DataFrame:
    """More pairs of the same columns, short and plain, all for training; the guard alone learned from them: adapters trained before they were written did not."""
    return pd.read_json(PLAIN_REQUESTS, lines=True, dtype=False)


def take_pairs(contrast: pd.DataFrame, split: str, n: int, *, seed: int = 0) -> pd.DataFrame:
    """At most `n` whole contrast pairs of a split, drawn with a seed, in the order of the table; 0 takes all."""
    rows = contrast[contrast.split == split]
    pairs = pd.Series(sorted(set(rows.pair_id)))
    return rows[rows.pair_id.isin(pairs.sample(min(n, len(pairs)), random_state=seed) if n else pairs)].reset_index(drop=True)
