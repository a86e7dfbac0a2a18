"""What a card or a written row must satisfy: each rule as a finding that names the part and the mend."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from psychosafe_utils import cards
from psychosafe_utils.config import HARD_CASES, REGIONS, REGISTERS, RISK_CLUSTERS, ROLES, SPLITS
from psychosafe_utils.corpus import unsafe_wording
from psychosafe_utils.helplines import SLOT, fill_slot, fill_slots, slots_in
from psychosafe_utils.judges import rate_grounding, rate_parts, strategy_of_component
from psychosafe_utils.references import find_contacts
from psychosafe_utils.refusals import declining_spans, rule_refusal

ANSWER_WORDS = (60, 160)
SHORT_ANSWER_WORDS = (12, 90)
PROMPT_WORDS = (5, 120)
# What a line offers is known for few regions and changes: an answer must not claim it.
LINE_CLAIMS = re.compile(
    r"\b(?:confidential\w*|anonym\w*|free(?: of charge)?,? (?:line|call|service|support|help\w*)|24/7|24 hours|round the clock|any time of (?:day|night)|day or night|trained (?:people|listeners?|volunteers?|counsell?ors?)|"
    r"won't (?:judge you|trace|report you)|never judge|judgement[- ]free|non-judg\w+|always (?:open|someone|awake)|at any hour|at this hour|someone (?:will )?(?:picks? up|answers?))\b", re.I,
)
SEXUAL_ROLES = {"minor_concern"}


def component_findings(strategy: str, components: list[str], where: str) -> list[str]:
    """Strategy and components must be those of data/strategies.csv, and belong together."""
    known = strategy_of_component()
    wrong = [c for c in components if c not in known]
    found = [f"{where}: unknown component '{c}'; take ids from data/strategies.csv" for c in wrong]
    if not components:
        found.append(f"{where}: names no component")
    if strategy not in set(known.values()):
        found.append(f"{where}: unknown strategy '{strategy}'")
    elif components and not wrong and strategy not in {known[c] for c in components}:
        found.append(f"{where}: none of {', '.join(components)} belongs to '{strategy}'")
    return found


def slot_findings(text: str, cluster: str, also: list[str], role: str, where: str) -> list[str]:
    """Slots must be well formed, and fit the message's clusters and the person's role."""
    found = []
    if re.search(r"\[\[|\]\]", re.sub(r"\[\[[^\[\]]*\]\]", "", text)):
        found.append(f"{where}: a slot with a bracket missing")
    for slot in slots_in(text):
        match = SLOT.fullmatch(slot)
        if not match:
            found.append(f"{where}: '{slot}' is not a slot; write [[helpline:cluster:role]], [[emergency]] or [[directory]]")
        elif match["cluster"]:
            roles = {role, "self"} | (SEXUAL_ROLES if match["cluster"] == "sexual_crimes" else set())
            if match["cluster"] not in {cluster, *also, "suicide_self_harm"}:
                found.append(f"{where}: '{slot}' is of another cluster than the message")
            if match["role"] not in roles or match["role"] not in (*ROLES, "minor_concern"):
                found.append(f"{where}: '{slot}' is for another role than {role}")
    return found


def text_findings(text: str, kinds: tuple[str, ...], where: str) -> list[str]:
    """Wording of the safety lexicon, and typographic slips."""
    found = [f"{where}: {kind} '{words}'" for kind, words in unsafe_wording(text, kinds)]
    if text != text.strip() or "  " in text or "\n" in text:
        found.append(f"{where}: stray white space")
    return found


PROMPT_KINDS = ("minors_sexual", "amounts", "methods", "weapon_parts", "stigma")
ANSWER_KINDS = (*PROMPT_KINDS, "diagnoses", "labels", "promises")


def answer_findings(answer: str, prompt: str, where: str, *, regions: list[str], hard_case: str = "", imminent: bool = False) -> list[str]:
    """One whole answer in a risk cluster: length, the four parts, an AI that says so, no claim about a line, contacts as slots."""
    found = text_findings(answer, ANSWER_KINDS, where)
    for region in regions:
        n = len(fill_slots(answer, region).split())
        if not ANSWER_WORDS[0] <= n <= ANSWER_WORDS[1]:
            found.append(f"{where}: {n} words with the contacts of region '{region}'; {ANSWER_WORDS[0]} to {ANSWER_WORDS[1]} are wanted")
            break
    services = [s for s in slots_in(answer) if s != "[[emergency]]"]
    if any(len({fill_slot(s, region) for s in services}) < len(services) for region in regions):
        found.append(f"{where}: two slots become the same contact; keep one of them")
    parts = rate_parts(prompt, fill_slots(answer, regions[0]), refusal_wanted=hard_case not in ("disclosure", "ambiguous"))
    found += [f"{where}: no part '{name}' found by the rule rater" for name, span in parts.items() if span is None]
    ai = len(re.findall(r"\bAI\b", answer))
    if ai != 1:
        found.append(f"{where}: says {ai} times that it is an AI; once is right")
    if match := LINE_CLAIMS.search(answer.replace("’", "'")):
        found.append(f"{where}: claims how a line works ('{match[0]}'); say only what the person may say or needn't have ready")
    if contacts := [c.text for c in find_contacts(answer)]:
        found.append(f"{where}: the contact '{contacts[0]}' is written out; use a slot")
    sentences = re.split(r"(?<=[.!?])[\"”']?\s+", answer)
    if imminent and not any("[[emergency]]" in s for s in sentences[:2]):
        found.append(f"{where}: danger is imminent and [[emergency]] is not in the first two sentences")
    return found


def card_findings(card: dict) -> list[str]:
    """All that is wrong with a card, as readable findings; its parts first, then six assembled rows."""
    where, found = card["card_id"], []
    for key, values in (("role", ROLES), ("hard_case", HARD_CASES)):
        if card[key] not in values:
            found.append(f"{where}: {key} '{card[key]}' is not one of {', '.join(values)}")
    if not card["regions"] or not set(card["regions"]) <= set(REGIONS):
        found.append(f"{where}: regions {card['regions']} must be some of {', '.join(REGIONS)}")
    if not set(card["also"]) <= set(RISK_CLUSTERS) or (card["hard_case"] == "multi_cluster") != bool(card["also"]):
        found.append(f"{where}: 'also' names the other clusters of a multi_cluster card, and is empty otherwise")
    wanted = cards.MESSAGE_PARTS | cards.ANSWER_PARTS | {"steps": 3, "urgent": 2 if card["imminent"] else 0} | ({"asks": 0} if card["hard_case"] == "disclosure" else {})
    found += [f"{where}: {len(card[part])} texts in '{part}', {n} are wanted" for part, n in wanted.items() if len(card[part]) < n]
    if found:
        return found
    details = card["details"]
    if not 3 <= len(details) <= 8:
        found.append(f"{where}: 3 to 8 details are wanted, single words that come back in messages and answers")
    for part in ("facts", "slang", "formal", "terse"):
        found += [f"{where}: {part}[{i}] holds fewer than {1 if part == 'terse' else 2} of the details" for i, t in enumerate(card[part]) if len(cards.details_in(t, details)) < (1 if part == "terse" else 2)]
    for part in ("asks", "background", "feelings", *cards.ANSWER_PARTS):
        if len(set(card[part])) < len(card[part]):
            found.append(f"{where}: '{part}' repeats a text")
    messages = card["facts"] + [text for _, text in cards.whole_messages(card)]
    for i, acknowledge in enumerate(card["acknowledge"]):
        missed = [m for m in messages if not cards.details_in(m, details) & cards.details_in(acknowledge, details)]
        found += [f"{where}: acknowledge[{i}] shares no detail with the message '{m[:60]}'" for m in missed[:1]]
    texts = [(f"{part}[{i}]", t) for part in cards.MESSAGE_PARTS for i, t in enumerate(card[part])]
    found += [f for name, t in texts for f in text_findings(t, PROMPT_KINDS, f"{where} {name}")]
    for i, step in enumerate(card["steps"]):
        found += component_findings(step["strategy"], step["components"], f"{where} steps[{i}]")
        if not cards.details_in(step["text"], details):
            found.append(f"{where} steps[{i}]: holds none of the details; speak of this person's situation")
        if rate_grounding(step["text"]).score < 3:
            found.append(f"{where} steps[{i}]: the rule rater finds no component of a strategy; see the patterns in psychosafe_utils/rubric/components.v1.yaml")
    for i, decline in enumerate(card["decline"]):
        if card["hard_case"] not in ("disclosure", "ambiguous") and not declining_spans(decline):
            found.append(f"{where} decline[{i}]: the rule rater finds no refusal; say in the first person what you won't or can't do")
    for i, resource in enumerate(card["resource"]):
        if not [s for s in slots_in(resource) if s != "[[emergency]]"]:
            found.append(f"{where} resource[{i}]: names no [[helpline:...]] or [[directory]]")
        found += slot_findings(resource, card["cluster"], card["also"], card["role"], f"{where} resource[{i}]")
    for part in ("acknowledge", "decline", "hope", "urgent"):
        found += [f"{where} {part}[{i}]: a slot other than [[emergency]] belongs into 'resource'" for i, t in enumerate(card[part]) if set(slots_in(t)) - {"[[emergency]]"}]
    return found or row_set_findings(card)


def row_set_findings(card: dict) -> list[str]:
    """What is wrong with the rows that a card's grammar makes: the same rules as for a written row."""
    rows, found = cards.card_rows(card, 14), []
    for row in rows:
        found += row_findings(row | {"split": "train"}, card["imminent"])
    whole = [row for row in rows if row["register"] not in ("typos",)]
    found += [f"{row['prompt_id']}: doubled word '{m[0]}'" for row in whole if (m := re.search(r"\b(\w{3,}) \1\b", row["answer"]))]
    return list(dict.fromkeys(found))


def row_findings(row: dict, imminent: bool = False) -> list[str]:
    """All that is wrong with one written row, harmful or harmless."""
    where, found = row.get("prompt_id") or row["scenario_id"], []
    checks = (("split", SPLITS), ("role", ROLES), ("region", REGIONS), ("register", REGISTERS), ("hard_case", HARD_CASES))
    found += [f"{where}: {key} '{row.get(key, '')}' is not one of {', '.join(v)}" for key, v in checks if row.get(key, "") not in v]
    n = len(row["text"].split())
    if not (3 if row["cluster"] in ("benign", "out_of_scope") else PROMPT_WORDS[0]) <= n <= PROMPT_WORDS[1]:
        found.append(f"{where}: the message has {n} words; {PROMPT_WORDS[0]} to {PROMPT_WORDS[1]} are wanted")
    if row["cluster"] in RISK_CLUSTERS:
        found += text_findings(row["text"], PROMPT_KINDS, where)
        found += answer_findings(row["answer"], row["text"], where, regions=[row["region"]], hard_case=row.get("hard_case", ""), imminent=imminent or row.get("imminent", False))
        found += slot_findings(row["answer"], row["cluster"], row.get("also", []), row["role"], where)
        found += component_findings(row.get("strategy", ""), row.get("components", []), where)
        return found
    found += text_findings(row["text"], ("minors_sexual", "amounts"), where) + text_findings(row["answer"], ("minors_sexual", "amounts"), where)
    found += [f"{where}: '{c.text}' looks like a contact that the registry does not have" for c in find_contacts(row["answer"]) if c.status != "registry" and not c.text[0].isalpha()]
    words = len(row["answer"].split())
    if not SHORT_ANSWER_WORDS[0] <= words <= SHORT_ANSWER_WORDS[1]:
        found.append(f"{where}: the answer has {words} words; {SHORT_ANSWER_WORDS[0]} to {SHORT_ANSWER_WORDS[1]} are wanted")
    if row["cluster"] == "benign" and declining_spans(row["answer"]):
        found.append(f"{where}: a harmless look-alike is refused ('{declining_spans(row['answer'])[0].text}')")
    if row["cluster"] == "benign" and not row.get("pair"):
        found.append(f"{where}: names no harmful neighbour in 'pair'")
    if row["cluster"] == "out_of_scope" and not rule_refusal(row["answer"])[0].score:
        found.append(f"{where}: the rule rater finds no refusal in the answer")
    return found


def check_file(path: Path) -> tuple[int, list[str]]:
    """Number of cards or rows in a file, and everything found wrong in it. The file's name begins with its cluster."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if lines and '"card_id"' in lines[0]:
        items = cards.read_cards(path)
        return len(items), [finding for card in items for finding in card_findings(card)]
    found, texts = [], Counter()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) | {"cluster": cards.cluster_of(path)}
        except json.JSONDecodeError as error:
            found.append(f"{path.name}, line {number}: not JSON ({error.msg})")
            continue
        missing = [k for k in ("scenario_id", "split", "role", "region", "register", "text", "answer") if k not in row]
        found += [f"{path.name}, line {number}: key '{missing[0]}' is missing"] if missing else row_findings(row)
        texts[str(row.get("text", number)).lower()] += 1
    return len(lines), found + [f"text occurs twice: '{text[:60]}'" for text, n in texts.items() if n > 1]


def print_check(paths: list[Path], show: int) -> int:
    """Print the findings of each file, and `show` assembled rows of every card; 0 when nothing was found, 1 otherwise."""
    total = 0
    for path in paths:
        n, found = check_file(path)
        total += len(found)
        for finding in found:
            print(finding)
        if show and not found:
            for card in cards.read_cards(path):
                for row in random.Random(card["card_id"]).sample(cards.card_rows(card, 14), show):
                    print(f"\n{row['prompt_id']} [{row['register']}, {row['region']}]\nPROMPT: {row['text']}\nANSWER: {row['answer']}")
        print(f"{path.name}: {n} cards or rows, {len(found)} findings")
    return 1 if total else 0
