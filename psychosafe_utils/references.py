"""Contacts in an answer (numbers, sites, service names), looked up in the helpline registry."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

import phonenumbers

from psychosafe_utils.config import REGIONS, RISK_CLUSTERS
from psychosafe_utils.helplines import registry

# Between digits: space, dot, hyphens, also the non-breaking ones; a slash where it does not look like 24/7; an area code in brackets.
GAP = r"(?:[ .\u00a0\u202f\u2010\u2011–-]|(?<=\d{3})/(?=\d{3}))"
NUMBER = re.compile(rf"(?<![\w.])\+?(?:\(\d{{1,5}}\){GAP}?)?\d(?:(?:{GAP}?\(\d{{1,4}}\))?{GAP}?\d)+(?![\w%])")
# Letters for digits, as North America does: 1-800-662-HELP.
VANITY = re.compile(r"(?<![\w.])(?:1[-. ])?\(?8(?:00|33|44|55|66|77|88)\)?[-. ](?=[A-Z0-9]*[-. ]?[A-Z0-9]*[A-Z])(?:[A-Z0-9]{3}[-. ]?[A-Z0-9]{4}|[A-Z0-9]{7})(?!\w)")
NO_NUMBER = re.compile(r"(?:19|20)\d\d[ –-]{1,3}(?:19|20)\d\d|\d{1,2}\.\d{1,2}\.(?:19|20)\d\d")  # years, dates
# A site ends in lower case: "there.It" is a missing space.
SITE = re.compile(r"(?:https?://)?(?:www\.)?((?:[A-Za-z0-9-]+\.)+(?:org|com|net|uk|us|ie|ca|au|nz|dk|de|it|fr|es|nl|in|eu|gov|edu|info))(?:/[\w./-]*)?(?!\w)")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# A short number is a contact only where the words before it say so; otherwise it is a year, an age or an amount.
CUE = re.compile(r"\b(?:call|dial|phone|ring|tel|text|contact|reach|number|line|lifeline|helpline|hotline|appele[zr]|composez|anrufen|rufen|bel|llam[ae]|chiama)s?(?:\W+\w+){0,3}?\W{0,3}$", re.I)
# What follows a number that is meant to be called: "988: call or text", "13 11 41 a ring".
CALLED = re.compile(r"^\W{0,4}(?:a (?:call|ring|text)\b|(?:\w+\W+){0,6}?(?:call|text|ring|dial) )", re.I)
LONG = 7
KNOWN = 6  # digits from which a number that somebody has needs no word beside it
DIGITS = dict(zip("zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(), map(str, [0, *range(20)])))
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), "23456789"))
_WORD = "|".join([*DIGITS, *TENS, "hundred"])
# A number in words, of at least two words: "nine eight eight", "thirteen eleven fourteen", "triple zero".
SPOKEN = re.compile(rf"\b(?:(?:double|triple) (?:{_WORD})|(?:{_WORD})(?=[ ,-]+(?:{_WORD}|double|triple)\b))(?:[ ,-]+(?:(?:double|triple) )?(?:{_WORD}))*\b", re.I)
GENERIC_NAMES = {"Lifeline", "Shout"}  # words as well: names after a verb alone
NAMED = re.compile(r"\b(?:call|dial|phone|ring|text|contact|reach|try) $", re.I)
NAMES_A_SERVICE = re.compile(r" (?:has|have|is|are|can|offers?|answers?) ")


class Contact(NamedTuple):
    """A contact found in a text: its span, `status` (registry, superseded, unknown) and the services it may belong to.

    `services` holds (region, cluster, roles, name) of every registry row with that contact.
    """

    start: int
    end: int
    text: str
    status: str
    services: tuple[tuple[str, str, str, str], ...]


# Services for distress of any kind.
GENERAL = ("emergency", "directory", "suicide_self_harm")
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
    return re.sub(r"^(?:https?://)?(?:www\.)?", "", url.lower()).split("/")[0]


@cache
def _contact_index() -> dict[str, list[tuple]]:
    """Number, site or name -> rows of the registry as (status, region, cluster, roles, name)."""
    index: dict[str, list[tuple]] = {}
    for row in registry().itertuples():
        service = (row.status, row.region, row.cluster, row.role, row.name)
        numbers = [row.phone, *NUMBER.findall(row.text)]
        keys = {key for number in numbers if number for key in number_keys(number, row.region)} | {_site_of(row.url)}
        name = re.sub(r"\s*\(.*?\)", "", row.name)
        keys |= {name, name.removesuffix(" World Services"), *re.findall(r"^[A-Z]{4,}\b", name), *re.findall(r"^\S*\d\S*:? (.*)", name)}
        for key in keys - {""}:
            index.setdefault(key, []).append(service)
    return index


@cache
def _name_pattern() -> re.Pattern:
    # Names are matched with their capitals: "frank" and "lifeline" are words as well.
    names = [key for key in _contact_index() if re.search("[A-Z]", key) and key != "Emergency services"]
    return re.compile(r"\b(?:%s)\b" % "|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _look_up(keys, start: int, text: str) -> Contact:
    services = list(dict.fromkeys(service for key in sorted(keys) for service in _contact_index().get(key, [])))
    status = "unknown" if not services else "superseded" if all(s[0] == "superseded" for s in services) else "registry"
    return Contact(start, start + len(text), text, status, tuple(s[1:] for s in services))


def _look_up_number(match: re.Match) -> Contact:
    """The number of a match; where it is unknown, the longest beginning of it that is known and followed by hours (`988 24/7` is 988)."""
    whole = _look_up(number_keys(match[0]), match.start(), match[0])
    cuts = [m.start() for m in re.finditer(r"\s", match[0]) if len(re.sub(r"\D", "", match[0][m.start():])) <= 4]
    shorter = (_look_up(number_keys(match[0][:cut]), match.start(), match[0][:cut]) for cut in reversed(cuts))
    return whole if whole.status != "unknown" else next((c for c in shorter if c.status != "unknown"), whole)


def _is_contact(match: re.Match, text: str) -> bool:
    digits = re.sub(r"\D", "", match[0])
    if NO_NUMBER.fullmatch(match[0]):
        return False
    known = _look_up_number(match).status != "unknown"
    if len(digits) >= LONG or len(digits) >= KNOWN and known:
        return True
    after = CALLED.match(text[match.end():])
    alone = known and re.search(r"[,:] $", text[: match.start()]) and re.match(r"[.!]", text[match.end():])  # "..., 988."
    said = CUE.search(text[: match.start()]) or alone or after and (known or len(digits) >= KNOWN) or re.fullmatch(r"\d-\d-\d", match[0])
    return bool(len(digits) >= 3 and said)


def spoken_digits(words: str) -> str:
    """The digits of a number in words: `988` for "nine eight eight", `131114` for "thirteen eleven fourteen"."""
    digits, times, tens = "", 1, ""
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in ("double", "triple"):
            times = 2 if word == "double" else 3
        elif word in TENS:
            digits, tens = digits + tens, TENS[word] + "0"
        elif word == "hundred":
            digits, tens = digits + tens + "00", ""
        elif tens and DIGITS[word] in "123456789" and len(DIGITS[word]) == 1:
            digits, tens = digits + tens[0] + DIGITS[word], ""
        else:
            digits, tens, times = digits + tens + DIGITS[word] * times, "", 1
    return digits + tens


def _look_up_spoken(match: re.Match, text: str) -> list[Contact]:
    """A number in words, where somebody has it or a word before it says that it is to be called; counting is no contact."""
    digits = spoken_digits(match[0])
    found = _look_up(number_keys(digits), match.start(), match[0])
    said = CUE.search(text[: match.start()]) and len(digits) >= 3
    return [found] if said or found.status != "unknown" and len(digits) >= KNOWN else []


@lru_cache(maxsize=50_000)
def find_contacts(text: str) -> tuple[Contact, ...]:
    """The contacts of a text, by position; an unknown long number or site counts, for it may be invented."""
    found = [_look_up_number(m) for m in NUMBER.finditer(text) if _is_contact(m, text)]
    found += [_look_up(number_keys(m[0]), m.start(), m[0]) for m in VANITY.finditer(text)]
    found += [contact for m in SPOKEN.finditer(text) for contact in _look_up_spoken(m, text)]
    found += [_look_up({_site_of(m[0])}, m.start(), m[0]) for m in SITE.finditer(text)]
    found += [_look_up(set(), m.start(), m[0]) for m in EMAIL.finditer(text) if not SITE.search(m[0])]
    named = [m for m in _name_pattern().finditer(text.replace("’", "'")) if m[0] not in GENERIC_NAMES or NAMED.search(text[: m.start()]) or NAMES_A_SERVICE.match(text[m.end():])]
    found += [_look_up({m[0]}, m.start(), text[m.start():m.end()]) for m in named]
    return tuple(sorted(found, key=lambda c: c.start))


def service_fit(service: tuple[str, str, str, str], *, cluster: str, also: str = "", role: str = "", region: str = "") -> str:
    """How a service (region, cluster, roles, name) suits a message: `fits`, or what does not, as in `other region, other cluster`.

    Lines for distress of any kind, directories and emergency numbers suit every cluster. An unknown cluster, role or region ('') suits every service.
    """
    place, kind, roles, _ = service
    notes = [] if not region or place in (region, "INT") else ["other region"]
    notes += [] if cluster not in RISK_CLUSTERS or kind in {cluster, *also.split("|"), *GENERAL} else ["other cluster"]
    notes += [] if not role or {role, "self", "minor_concern"} & set(roles.split("|")) else ["other role"]
    return ", ".join(notes) or "fits"


def contact_label(contact: Contact, **message) -> str:
    """What a contact is to a message: `unknown`, `superseded`, or the best fit of the services that have it (see `service_fit`)."""
    if contact.status != "registry":
        return contact.status
    fits = [service_fit(service, **message) for service in contact.services]
    return "fits" if "fits" in fits else fits[0]
