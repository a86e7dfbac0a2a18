"""Words, stems and sentences of a text."""

from __future__ import annotations

import re

STOPWORDS = frozenset(
    "about above after again all also always and any anyone anything are around away back because been before being but call can can't "
    "come could did didn't does doesn't doing don't done down each else even ever every everyone everything feel feeling feels for from "
    "get gets getting give going gonna gone good got had has have having help her here hers him his how i'm i've i'd i'll if in into is "
    "isn't it it's its just keep know let like little look made make makes making many maybe me mean might more most much must my myself "
    "need needs never new next no nobody not nothing now of off ok okay on once one only or other our out over own people person please "
    "pls put quite real really right said same say saying see she should show so some someone something soon still such sure take tell "
    "than that that's the their them then there these they they're thing things think this those though through time to today too told "
    "tonight try two under until up us use very want wants was wasn't way we well went were what what's when where which while who why "
    "will with without won't would wouldn't yes yet you you're your yourself".split()
)


def content_stems(text: str) -> list[str]:
    """First six letters of the words that carry a text's content, repeats kept, so that inflected forms meet."""
    words = re.findall(r"[a-z][a-z']{2,}", text.replace("’", "'").lower())
    return [w[:6] for w in words if w not in STOPWORDS and len(w) > 3]


def content_words(text: str) -> set[str]:
    """The different content stems of a text."""
    return set(content_stems(text))


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, split after . ! or ? and closing quotes."""
    return [s for s in re.split(r"(?<=[.!?])[\"”']?\s+", text.strip()) if s]
