"""Contacts in an answer (numbers, sites, service names), looked up in the helpline registry."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

import phonenumbers

from psychosafe_utils.config import REGIONS
from psychosafe_utils.helplines import registry

# Between digits: space, dot, hyphens, also the non-breaking ones; a slash where it does not look like 24/7; an area code in brackets.
GAP = r"(?:[ .\u00a0\u202f\u2010\u2011–-]|(?<=\d{3})/(?=\d{3}))"
NUMBER = re.compile(rf"(?<![\w.])\+?(?:\(\d{{1,5}}\){GAP}?)?\d(?:(?:{GAP}?\(\d{{1,4}}\))?{GAP}?\d)+(?![\w%])")
# Letters for digits, as North America does: 1-800-662-HELP.
VANITY = re.compile(r"(?<![\w.])(?:1[-. ])?\(?8(?:00|33|44|55|66|77|88)\)?[-. ](?=[A-Z0-9-]*[A-Z])(?:[A-Z0-9]{3}[-. ]?[A-Z0-9]{4}|[A-Z0-9]{7})(?!\w)")
NO_NUMBER = re.compile(r"(?:19|20)\d\d[ –-]{1,3}(?:19|20)\d\d|\d{1,2}\.\d{1,2}\.(?:19|20)\d\d")  # years, dates
# A site ends in lower case: "there.It" is a missing space.
SITE = re.compile(r"(?:https?://)?(?:www\.)?((?:[A-Za-z0-9-]+\.)+(?:org|com|net|uk|us|ie|ca|au|nz|dk|de|it|fr|es|nl|in|eu|gov|edu|info))(?:/[\w./-]*)?(?!\w)")
# A short number is a contact only where the words before it say so; otherwise it is a year, an age or an amount.
CUE = re.compile(r"\b(?:call|dial|phone|ring|tel|text|contact|reach|number|line|lifeline|helpline|hotline)s?(?:\W+\w+){0,3}?\W{0,3}$", re.I)
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


COUNTRIES = tuple(region for region in REGIONS if region not in ("", "EU", "INT"))


def _e164(number: str, country: str | None) -> str:
    """A number as `+<country code><number>`, '' where it can't be one of that country."""
    try:
        parsed = phonenumbers.parse(number, country)
    except phonenumbers.NumberParseException:
        return ""
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164) if phonenumbers.is_possible_number(parsed) else ""


@cache
def number_keys(number: str, country: str = "") -> frozenset[str]:
    """Under which names a phone number is looked up: its digits, and its international form in every country it may belong to.

    Args:
        number: As somebody wrote it, letters for digits allowed.
        country: ISO code of its country; '' tries all of the registry's.
    """
    digits = re.sub(r"\D", "", phonenumbers.convert_alpha_characters_in_number(number))
    if number.strip().startswith("+"):
        return frozenset({_e164(number, None)} - {""})
    countries = (country,) if country in COUNTRIES else COUNTRIES
    international = {_e164(number, c) for c in countries} if country or len(digits) >= LONG else set()
    return frozenset({digits, *international} - {""})


def _site_of(url: str) -> str:
    return re.sub(r"^https?://(www\.)?", "", url.lower()).split("/")[0]


@cache
def _contact_index() -> dict[str, list[tuple]]:
    """Number, site or name -> rows of the registry as (status, region, cluster, roles, name)."""
    index: dict[str, list[tuple]] = {}
    for row in registry().itertuples():
        service = (row.status, row.region, row.cluster, row.role, row.name)
        numbers = [row.phone, *NUMBER.findall(row.text)]
        keys = {key for number in numbers if number for key in number_keys(number, row.region)} | {_site_of(row.url)}
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


def _look_up(keys, start: int, text: str) -> Contact:
    services = list(dict.fromkeys(service for key in sorted(keys) for service in _contact_index().get(key, [])))
    status = "unknown" if not services else "superseded" if all(s[0] == "superseded" for s in services) else "registry"
    return Contact(start, start + len(text), text, status, tuple(s[1:] for s in services))


def _look_up_number(match: re.Match) -> Contact:
    """The number of a match; where it is unknown, the longest beginning of it that is known (`988 24/7` is 988)."""
    whole = _look_up(number_keys(match[0]), match.start(), match[0])
    cuts = [m.start() for m in re.finditer(GAP, match[0])]
    shorter = (_look_up(number_keys(match[0][:cut]), match.start(), match[0][:cut]) for cut in reversed(cuts))
    return whole if whole.status != "unknown" else next((c for c in shorter if c.status != "unknown"), whole)


def _is_contact(match: re.Match, text: str) -> bool:
    digits = re.sub(r"\D", "", match[0])
    if NO_NUMBER.fullmatch(match[0]):
        return False
    return len(digits) >= LONG or bool(len(digits) >= 3 and CUE.search(text[: match.start()]))


@lru_cache(maxsize=50_000)
def find_contacts(text: str) -> tuple[Contact, ...]:
    """The contacts of a text, by position; an unknown long number or site counts, for it may be invented."""
    found = [_look_up_number(m) for m in NUMBER.finditer(text) if _is_contact(m, text)]
    found += [_look_up(number_keys(m[0]), m.start(), m[0]) for m in VANITY.finditer(text)]
    found += [_look_up({_site_of(m[0])}, m.start(), m[0]) for m in SITE.finditer(text)]
    found += [_look_up({m[0].replace("’", "'")}, m.start(), text[m.start():m.end()]) for m in _name_pattern().finditer(text.replace("’", "'"))]
    return tuple(sorted(found, key=lambda c: c.start))
