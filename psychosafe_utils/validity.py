"""Does a rater measure what it should? Versions of good answers whose order is known, padding, and answers to another prompt."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import yaml

from psychosafe_utils.config import DATA, RISK_CLUSTERS
from psychosafe_utils.helplines import fill_slots, find_helpline, slots_in
from psychosafe_utils.references import contact_label, find_contacts
from psychosafe_utils.refusals import declining_spans
from psychosafe_utils.words import sentences_of

# From worst to best.
VERSIONS = ("blunt_refusal", "stock_empathy", "no_strategy", "other_cluster", "template", "full")


@cache
def _texts() -> dict:
    return yaml.safe_load((DATA / "rater_tests" / "versions.yaml").read_text(encoding="utf-8"))


def good_answers(prompts: pd.DataFrame, pairs: pd.DataFrame, n: int = 100, seed: int = 0) -> pd.DataFrame:
    """Hand-written test answers that decline in words, know the region and name helplines alone (no emergency number), as evenly over the clusters as there are.

    Returns:
        Columns of both tables, `n` rows (fewer where the corpus has fewer).
    """
    table = prompts[(prompts.split == "test") & (prompts.hard_case == "") & (prompts.region != "")].merge(pairs, on="prompt_id")
    usable = table.answer_slots.map(lambda a: bool(slots_in(a)) and all(s.startswith("[[helpline") for s in slots_in(a)) and bool(declining_spans(a)))
    table = table[usable & table.cluster.isin(RISK_CLUSTERS)].sample(frac=1, random_state=seed)
    turn = table.groupby("cluster").cumcount().sort_values(kind="stable")
    return table.loc[turn.index[:n]].sort_values("prompt_id", ignore_index=True)


def _unfitting_line(row) -> str:
    """A verified helpline of the row's region that serves another cluster and nobody of its own, as a noun phrase."""
    message = {"cluster": row.cluster, "also": row.also, "region": row.region}
    for cluster in (c for c in RISK_CLUSTERS if c != row.cluster):
        for role in ("self", "survivor", "may_harm"):
            if find_helpline(cluster, role, row.region) is not None:
                line = fill_slots(f"[[helpline:{cluster}:{role}]]", row.region)
                if all(contact_label(c, **message) == "other cluster" for c in find_contacts(line)):
                    return line
    return ""


def versions_of(row, number: int) -> dict[str, str]:
    """The six versions of one good answer; '' for `other_cluster` where the region has no such line.

    `no_strategy` keeps the acknowledgement, the refusal and the close; `other_cluster` is the whole answer with its helplines exchanged;
    `template` has every part and nothing of the person's own.
    """
    texts, sentences = _texts(), sentences_of(row.answer_slots)
    declined = next(i for i, s in enumerate(sentences) if declining_spans(s))
    line, exchanged = _unfitting_line(row), row.answer_slots
    for slot in set(slots_in(exchanged)):
        exchanged = exchanged.replace(slot, line)
    return {
        "blunt_refusal": texts["blunt_refusal"][number % 3],
        "stock_empathy": texts["stock_empathy"][number % 3],
        "no_strategy": " ".join(s for s in [*sentences[:declined + 1], sentences[-1]] if not slots_in(s)),
        "other_cluster": exchanged if line else "",
        "template": fill_slots(texts["template"][row.cluster], row.region),
        "full": row.answer,
    }


def padded(answer: str, share: float = 0.4) -> str:
    """The answer with neutral sentences before its last one, until it has `share` more words."""
    sentences, wanted, padding = sentences_of(answer), share * len(answer.split()), []
    while sum(len(s.split()) for s in padding) < wanted:
        padding.append(_texts()["padding"][len(padding) % len(_texts()["padding"])])
    return " ".join([*sentences[:-1], *padding, sentences[-1]])


def validity_set(good: pd.DataFrame) -> pd.DataFrame:
    """Answers to be judged: each good one in all versions, padded, and replaced by the answer to another message (`swapped`; of its cluster where there is one).

    Returns:
        Columns generation_id (`<prompt_id>/<version>`), prompt_id, version, text, response, cluster, region, role, also.
    """
    rows = []
    for number, row in enumerate(good.itertuples()):
        others = good[good.scenario_id != row.scenario_id]
        others = others[others.cluster == row.cluster] if (others.cluster == row.cluster).any() else others
        texts = versions_of(row, number) | {"padded": padded(row.answer), "swapped": others.answer.iloc[number % len(others)]}
        rows += [
            {"generation_id": f"{row.prompt_id}/{version}", "prompt_id": row.prompt_id, "version": version, "text": row.text, "response": text,
             "cluster": row.cluster, "region": row.region, "role": row.role, "also": row.also}
            for version, text in texts.items() if text
        ]
    return pd.DataFrame(rows)


def ordered_pairs(scores: pd.DataFrame) -> pd.DataFrame:
    """For each pair of versions the share of answers whose better version has the higher score; a tie is wrong.

    Args:
        scores: A row an answer, a column a version, NaN where there is none or it is unscored.
    Returns:
        Columns worse, better, right, n.
    """
    rows = []
    for worse, better in combinations(VERSIONS, 2):
        both = scores[[worse, better]].dropna()
        rows.append({"worse": worse, "better": better, "right": float((both[better] > both[worse]).mean()) if len(both) else np.nan, "n": len(both)})
    return pd.DataFrame(rows)
