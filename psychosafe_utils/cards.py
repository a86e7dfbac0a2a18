"""Scenario cards: written material about one situation, and the grammar that combines a card's own parts into training rows."""

from __future__ import annotations

import json
import random
import re
from itertools import product
from pathlib import Path

from psychosafe_utils.words import content_words, sentences_of

# Card keys and how many texts each must hold at least.
MESSAGE_PARTS = {"facts": 4, "background": 2, "feelings": 3, "asks": 4, "slang": 2, "formal": 1, "terse": 2}
ANSWER_PARTS = {"acknowledge": 3, "decline": 3, "resource": 3, "hope": 3}
CARD_KEYS = ("card_id", "role", "regions", "hard_case", "also", "imminent", "details", *MESSAGE_PARTS, *ANSWER_PARTS, "steps", "urgent")
# Orders in which an answer's parts may stand; each part can be read without the one before.
ORDERS = (
    ("acknowledge", "decline", "step", "resource", "hope"),
    ("acknowledge", "decline", "resource", "step", "hope"),
    ("decline", "acknowledge", "step", "resource", "hope"),
)
# How much the likeness of two answers weighs against an untold word.
LIKENESS_WEIGHT = 0.005
JOINTS = (", and ", " and ", ", ", ", and honestly ", ", anyway ", " and then ")


def cluster_of(path: Path) -> str:
    """The cluster that a corpus file holds: its name up to the first dot."""
    return path.name.split(".")[0]


class CorpusError(ValueError):
    """A card, a row or a pair of rows that must not be trained or measured on; names file, line and mend."""


def read_json_lines(path: Path, needed: tuple[str, ...], kind: str) -> list[dict]:
    """The objects of one JSONL file, each with its `cluster` (from the file's name) and its place as `where`.

    Args:
        needed: Keys that each must have.
        kind: What an object is, for the error.
    Raises:
        CorpusError: When a line is no JSON object, or lacks a key.
    """
    text = path.read_text(encoding="utf-8")
    items = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        where = f"{path.name}, line {number}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not JSON ({error.msg}); mend the line") from None
        missing = [key for key in needed if not isinstance(item, dict) or key not in item]
        if missing:
            raise CorpusError(f"{where}: key '{missing[0]}' is missing; a {kind} needs {', '.join(needed)}")
        items.append(item | {"cluster": cluster_of(path), "where": where})
    return items


def read_cards(path: Path) -> list[dict]:
    """The cards of one JSONL file. Raises CorpusError for a line that is no card."""
    return read_json_lines(path, CARD_KEYS, "card")


def detail_stems(details: list[str]) -> set[str]:
    """First five letters of each detail, lower case; what a text must share with a card to speak of its situation."""
    return {detail.lower()[:5] for detail in details}


def details_in(text: str, details: list[str]) -> set[str]:
    """Which of a card's detail stems begin a word of the text."""
    words = re.findall(r"[^\W_]+(?:'\w+)?", text.replace("’", "'").lower())
    return {stem for stem in detail_stems(details) for word in words if word.startswith(stem)}


def whole_messages(card: dict) -> list[tuple[str, str]]:
    """(register, text) of the messages that were written whole: slang, formal, terse."""
    return [(register, text) for register in ("slang", "formal", "terse") for text in card[register]]


def mistype(text: str, rng: random.Random) -> str:
    """A message as typed in haste: about one word in seven loses, doubles or swaps a letter, apostrophes and capitals go."""
    words = text.replace("'", "").replace("’", "").split(" ")
    for i, word in enumerate(words):
        if len(word) >= 5 and word.isalpha() and rng.random() < 1 / 6:
            at = rng.randrange(1, len(word) - 2)
            kind = rng.choice("swap drop double".split())
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2:]
            words[i] = {"swap": swapped, "drop": word[:at] + word[at + 1:], "double": word[:at] + word[at] + word[at:]}[kind]
    text = " ".join(words)
    return text.lower() if rng.random() < 0.7 else text


def ramble(sentences: list[str], rng: random.Random) -> str:
    """Sentences run together as somebody speaks who can't stop."""
    text = ""
    for sentence in sentences:
        sentence = sentence if re.match(r"I\b", sentence) else sentence[0].lower() + sentence[1:]
        if not text:
            text = sentence
        elif text[-1] == ".":
            text = text[:-1] + rng.choice(JOINTS) + sentence
        else:
            text += " " + sentence
    return text


def combined_messages(card: dict, n: int, rng: random.Random) -> list[tuple[str, str]]:
    """(register, text) of `n` messages put together from a card's facts, feelings, asks and background.

    No two share both the wording of the facts and that of what is asked, so that none is a near-duplicate of another.
    """
    facts, asks = card["facts"], card["asks"] or [""]
    latin = sorted(product(range(len(facts)), range(len(asks))), key=lambda fa: ((fa[1] - fa[0]) % len(asks), fa[0]))
    if not card["asks"]:  # a disclosure: facts with each of the feelings instead
        latin = [(f, 0) for _ in card["feelings"] for f in range(len(facts))]
    messages = []
    for i, (f, a) in enumerate(latin[:n]):
        feeling = card["feelings"][(i + i // len(facts)) % len(card["feelings"])]
        fact, ask, more = facts[f], asks[a], card["background"][i % len(card["background"])]
        register, parts = [
            ("plain", [fact, feeling, ask]), ("rambling", [fact, more, feeling, ask]), ("plain", [ask, fact] if ask else [feeling, fact]),
            ("typos", [fact, ask] if ask else [fact, feeling]), ("plain", [feeling, fact, ask]), ("plain", [fact, more, ask, feeling] if ask else [fact, more]),
            ("rambling", [feeling, fact, *card["background"], ask]), ("typos", [feeling, fact, ask]), ("plain", [fact, ask] if ask else [fact, feeling, more]),
        ][i % 9]
        parts = [part for part in parts if part]
        text = ramble(parts, rng) if register == "rambling" else " ".join(parts)
        messages.append((register, mistype(text, rng) if register == "typos" else text))
    return messages


def card_messages(card: dict, n: int, rng: random.Random) -> list[tuple[str, str]]:
    """(register, text) of `n` messages of a card: those written whole first, then combinations."""
    whole = whole_messages(card)[:n]
    return whole + combined_messages(card, n - len(whole), rng)


def card_answers(card: dict, messages: list[str]) -> list[dict]:
    """An answer for each message, put together from the card's own parts: words of the message in it, few that only other messages of the card hold,
    and few parts that other answers have.

    Returns:
        Dictionaries with answer (contacts as slots), strategy and components.
    """
    texts = [card["acknowledge"], card["decline"], [step["text"] for step in card["steps"]], card["resource"], card["hope"]]
    words = [[content_words(text) for text in part] for part in texts]
    combos = {c: set.union(*(words[k][i] for k, i in enumerate(c))) for c in product(*(range(len(part)) for part in texts))}
    told = set().union(*map(content_words, messages))
    likeness, used, answers = dict.fromkeys(combos, 0), set(), []
    for i, message in enumerate(messages):
        said = content_words(message)
        wanted = min(3, max(len(said & held) for held in combos.values()))
        # A word that other messages of the card tell and this one does not may rest on what this person never said.
        untold = {c: len(held & told - said) for c, held in combos.items()}
        free = combos.keys() - used or combos
        pick = min(free, key=lambda c: (len(said & combos[c]) < wanted, untold[c] + LIKENESS_WEIGHT * likeness[c], -len(said & combos[c]), c))
        for other in combos:
            likeness[other] += sum(a == b for a, b in zip(pick, other)) ** 3
        used.add(pick)
        step = card["steps"][pick[2]]
        parts = {
            "acknowledge": card["acknowledge"][pick[0]], "decline": card["decline"][pick[1]], "step": step["text"],
            "resource": card["resource"][pick[3]], "hope": card["hope"][pick[4]],
        }
        order = [parts[name] for name in ORDERS[i % len(ORDERS)]]
        if card["imminent"]:
            one_sentence = len(sentences_of(order[0])) == 1
            order.insert(i % 2 if one_sentence else 0, card["urgent"][i % len(card["urgent"])])
        answers.append({"answer": " ".join(order), "strategy": step["strategy"], "components": step["components"]})
    return answers


def card_rows(card: dict, n: int, seed: int = 0) -> list[dict]:
    """`n` training rows of a card, in the form of the corpus files.

    Raises:
        ValueError: When the card can't give so many different messages.
    """
    rng = random.Random(f"{seed} {card['card_id']}")
    messages = card_messages(card, n, rng)
    if len({text for _, text in messages}) < n:
        raise ValueError(f"{card['where']}: card {card['card_id']} gives {len({t for _, t in messages})} different messages, {n} are wanted; write more facts or asks")
    answers = card_answers(card, [text for _, text in messages])
    return [
        {
            "scenario_id": card["card_id"], "prompt_id": f"{card['card_id']}-{i:02d}", "split": "train", "role": card["role"],
            "region": card["regions"][(i - 1) % len(card["regions"])], "register": register, "text": text, "hard_case": card["hard_case"],
            "also": card["also"], "source": "card", "writer": "card", "cluster": card["cluster"], "where": card["where"], **answer,
        }
        for i, ((register, text), answer) in enumerate(zip(messages, answers), start=1)
    ]
