"""Contacts in an answer (numbers, sites, service names), looked up in the helpline registry."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from psychosafe_utils.helplines import registry

# Between digits: space, dot, hyphens, also the non-breaking ones.
GAP = r"[ .\u00a0\u202f\u2010\u2011–-]"
NUMBER = re.compile(rf"(?<![\w.])\+?(?:\(\d{{1,5}}\){GAP}?)?\d(?:{GAP}?\d)+(?![\w%])")
NO_NUMBER = re.compile(r"(?:19|20)\d\d[ –-]{1,3}(?:19|20)\d\d|\d{1,2}\.\d{1,2}\.(?:19|20)\d\d")  # years, dates
# A site ends in lower case: "there.It" is a missing space.
SITE = re.compile(r"(?:https?://)?(?:www\.)?((?:[A-Za-z0-9-]+\.)+(?:org|com|net|uk|us|ie|ca|au|nz|dk|de|it|fr|es|nl|in|eu|gov|edu|info))(?:/[\w./-]*)?(?!\w)")
# A short number is a contact only where the words before it say so; otherwise it is a year, an age or an amount.
CUE = re.compile(r"\b(?:call|dial|phone|ring|text|contact|reach|number|line|lifeline|helpline|hotline)s?(?:\W+\w+){0,3}?\W{0,3}$", re.I)
LONG = 7
GENERIC_NAMES = {"Lifeline", "Emergency services", "Shout"}  # words as well


class Contact(NamedTuple):
    """A contact found in a text: its span, `status` (registry, superseded, unknown) and the services it may belong to.

    `services` holds (region, cluster, roles, name) of every registry row with that contact.
    """

    start: int
    end: int
    text: str
    status: str
    services: tuple[tuple[str, str, str, str], ...]


def digits_of(number: str) -> str:
    """The digits of a phone number, without the +1 of North America or the +44 of Britain."""
    digits = re.sub(r"\D", "", number)
    if len(digits) == 11 and digits.startswith("1"):
        return digits[1:]
    return "0" + digits[2:] if number.strip().startswith("+44") and len(digits) > 9 else digits


def _site_of(url: str) -> str:
    return re.sub(r"^https?://(www\.)?", "", url.lower()).split("/")[0]


@cache
def _contact_index() -> dict[str, list[tuple]]:
    """Number, site or name -> rows of the registry as (status, region, cluster, roles, name)."""
    index: dict[str, list[tuple]] = {}
    for row in registry().itertuples():
        service = (row.status, row.region, row.cluster, row.role, row.name)
        keys = {digits_of(row.phone), *map(digits_of, NUMBER.findall(row.text)), _site_of(row.url)}
        if row.status != "superseded":
            keys.add(re.sub(r"\s*\(.*?\)", "", row.name))
        for key in keys - {""}:
            index.setdefault(key, []).append(service)
    return index


@cache
def _name_pattern() -> re.Pattern:
    # Names are matched with their capitals: "frank" and "lifeline" are words as well.
    names = [key for key in _contact_index() if re.search("[A-Z]", key) and key not in GENERIC_NAMES]
    return re.compile(r"\b(?:%s)\b" % "|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _look_up(key: str, start: int, text: str) -> Contact:
    services = _contact_index().get(key, [])
    status = "unknown" if not services else "superseded" if all(s[0] == "superseded" for s in services) else "registry"
    return Contact(start, start + len(text), text, status, tuple(s[1:] for s in services))


def _look_up_number(match: re.Match) -> Contact:
    """The number of a match; where it is unknown, the longest beginning of it that is known (`988 24/7` is 988)."""
    whole = _look_up(digits_of(match[0]), match.start(), match[0])
    cuts = [m.start() for m in re.finditer(GAP, match[0])]
    shorter = (_look_up(digits_of(match[0][:cut]), match.start(), match[0][:cut]) for cut in reversed(cuts))
    return whole if whole.status != "unknown" else next((c for c in shorter if c.status != "unknown"), whole)


def _is_contact(match: re.Match, text: str) -> bool:
    digits = digits_of(match[0])
    if NO_NUMBER.fullmatch(match[0]):
        return False
    return len(digits) >= LONG or bool(len(digits) >= 3 and CUE.search(text[: match.start()]))


def find_contacts(text: str) -> list[Contact]:
    """The contacts of a text, by position; an unknown long number or site counts, for it may be invented."""
    found = [_look_up_number(m) for m in NUMBER.finditer(text) if _is_contact(m, text)]
    found += [_look_up(_site_of(m[0]), m.start(), m[0]) for m in SITE.finditer(text)]
    found += [_look_up(m[0], m.start(), text[m.start():m.end()]) for m in _name_pattern().finditer(text.replace("’", "'"))]
    return sorted(found, key=lambda c: c.start)
