"""Answers whose helplines are slots: filled from the registry for the reader's region, so that no contact is invented, out of date or of another place."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from psychosafe_utils.config import RISK_CLUSTERS
from psychosafe_utils.embeddings import SENTENCE
from psychosafe_utils.helplines import ANY_SLOT, SLOT, SLOT_ROLES, fill_slot
from psychosafe_utils.judges import rate_reference
from psychosafe_utils.references import contact_label, find_contacts
from psychosafe_utils.refusal_tokens import RESPOND


# A slot that the token limit cut, at the end of an answer.
CUT_SLOT = re.compile(r"\[(?:\[[^\]]*\]?)?$")
# What is said behind the token of other harm, which has no strategy and no service of its own.
OTHER_HARM = "I'm an AI, and I can't help with that. If you tell me what lies behind it, there may be a part that I can help with."


class Filled(NamedTuple):
    """An answer with its contacts from the registry; how many slots were filled, mended (wrong cluster or role), added, and contacts outside slots removed."""

    text: str
    n_slots: int
    n_mended: int
    n_added: int
    n_removed: int


def _remove_contacts(text: str) -> tuple[str, int]:
    """The text without the sentences that hold a contact outside a slot, and how many contacts they held."""
    kept, removed = [], 0
    for match in SENTENCE.finditer(text):
        found = find_contacts(ANY_SLOT.sub(lambda m: " " * len(m[0]), match[0]))
        removed += len(found)
        kept += [] if found else [match[0]]
    return (" ".join(kept), removed) if removed else (text, 0)


def _mended_slot(slot: str, category: str) -> str:
    """The slot, with the cluster of the refusal token and a role that the registry knows."""
    match = SLOT.fullmatch(slot)
    if match and match["plain"]:
        return slot
    role = match["role"] if match else ""
    return f"[[helpline:{category}:{role if role in SLOT_ROLES else 'self'}]]"


def fill_answer(text: str, category: str, region: str) -> Filled:
    """A refusal's slots filled for a region, and nothing else that looks like a contact left in it.

    A slot of another cluster than the refusal token's is mended; an answer without a service gets one at its end. Other harm has a fixed line, because
    no text was taught behind its token; after `respond` the text stays as it is.
    """
    if category not in RISK_CLUSTERS:
        return Filled(text if category == RESPOND else OTHER_HARM, 0, 0, 0, 0)
    text, removed = _remove_contacts(CUT_SLOT.sub("", text))
    found = ANY_SLOT.findall(text)
    mended = {slot: _mended_slot(slot, category) for slot in found}
    added = not any(m.startswith("[[helpline") or m == "[[directory]]" for m in mended.values())
    if added:
        text = f"{text} You could reach [[helpline:{category}:self]] whenever you want.".strip()
    filled = ANY_SLOT.sub(lambda m: fill_slot(_mended_slot(m[0], category), region), text)
    return Filled(filled, len(found), sum(a != b for a, b in mended.items()), int(added), removed)


def fill_answers(written: pd.DataFrame, messages: pd.DataFrame, region: str = "") -> pd.DataFrame:
    """Answers behind a refusal token with their slots filled.

    Args:
        written: Rows of table `generations`, still with slots.
        messages: Columns prompt_id, category (of the token), p_refuse, region.
        region: The reader's; '' takes each message's own.
    Returns:
        `written` with responses filled, p_refuse, region, category and the counts of `Filled`.
    """
    rows = written.drop(columns=["p_refuse"]).merge(messages[["prompt_id", "category", "p_refuse", "region"]], on="prompt_id")
    rows["region"] = region or rows.region
    filled = [fill_answer(row.response, row.category, row.region) for row in rows.itertuples()]
    counts = pd.DataFrame(filled, columns=Filled._fields, index=rows.index)
    return rows.assign(response=counts.text, **{name: counts[name] for name in Filled._fields[1:]})


def contact_table(answers: pd.DataFrame, messages: pd.DataFrame) -> pd.DataFrame:
    """The contacts of answers, a row a condition and region of the reader.

    Args:
        answers: Columns prompt_id, condition, region, response; n_mended, n_added, n_removed where slots were filled.
        messages: Columns prompt_id, cluster, role, also.
    Returns:
        Columns condition, region, answers, valid (share with a service that fits), contacts, how many of them are invented (unknown or
        superseded), of another cluster, region or role (one may count twice), and how many slots were mended or added and contacts removed.
    """
    rows = answers.merge(messages[["prompt_id", "cluster", "role", "also"]], on="prompt_id")
    known = [{"cluster": r.cluster, "role": r.role, "also": r.also, "region": r.region} for r in rows.itertuples()]
    labels = [[contact_label(c, **message) for c in find_contacts(text)] for text, message in zip(rows.response, known)]
    rows = rows.assign(
        valid=[rate_reference(text, **message).score for text, message in zip(rows.response, known)], contacts=[len(found) for found in labels],
        invented=[sum(label in ("unknown", "superseded") for label in found) for found in labels],
        **{f"other_{part}": [sum(f"other {part}" in label for label in found) for found in labels] for part in ("cluster", "region", "role")},
    )
    counts = ["contacts", "invented", "other_cluster", "other_region", "other_role", "n_mended", "n_added", "n_removed"]
    table = rows.reindex(columns=["condition", "region", "valid", *counts]).fillna({c: 0 for c in counts})
    grouped = table.groupby(["condition", "region"], sort=False)
    return grouped[counts].sum().astype(int).assign(valid=grouped.valid.mean(), answers=grouped.size()).reset_index()
