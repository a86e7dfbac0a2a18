"""The helpline registry, and the slots that stand for its contacts in answers."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pandas as pd

from psychosafe_utils.config import DATA, REGIONS, RISK_CLUSTERS, ROLES

REGISTRY = DATA / "helplines.csv"
COLUMNS = ("region", "cluster", "role", "name", "phone", "url", "hours", "text", "scope", "source", "last_checked", "status")
SLOT = re.compile(r"\[\[(?:helpline:(?P<cluster>[a-z_]+):(?P<role>[a-z_]+)|(?P<plain>emergency|directory))\]\]")
ANY_SLOT = re.compile(r"\[\[.*?\]\]")
# minor_concern: worry about one's own or another's behaviour towards minors; those lines serve nobody else.
SLOT_ROLES = (*ROLES, "minor_concern")


class HelplineError(ValueError):
    """A slot or contact that the registry does not know."""


def load_registry(path: Path = REGISTRY) -> pd.DataFrame:
    """The registry, one row a service, every column text ('' where unknown).

    Raises:
        HelplineError: When a column is missing, or a region or status is unknown; names file and row.
    """
    registry = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in COLUMNS:
        if column not in registry:
            raise HelplineError(f"{path}: column '{column}' is missing")
    allowed = {"region": REGIONS[1:], "status": ("verified", "second-hand", "unverified", "superseded")}
    for column, values in allowed.items():
        wrong = ~registry[column].isin(values)
        if wrong.any():
            row = int(wrong.idxmax())
            raise HelplineError(f"{path}: line {row + 2}: {column} '{registry.loc[row, column]}' is not one of {', '.join(values)}")
    return registry


@cache
def registry() -> pd.DataFrame:
    """The committed registry, read once."""
    return load_registry()


@cache
def find_helpline(cluster: str, role: str, region: str) -> pd.Series | None:
    """The first verified service of a region for a cluster and role, or None."""
    rows = registry()
    fits = (rows.region == region) & (rows.cluster == cluster) & (rows.status == "verified")
    fits &= rows.role.str.split("|").map(lambda roles: role in roles)
    return rows[fits].iloc[0] if fits.any() else None


def contact_text(service: pd.Series) -> str:
    """A service as a noun phrase: `Name (call 123, text 123)`, or `Name (site)` when it has no phone."""
    ways = [f"call {service.phone}"] if service.phone else []
    ways += [service.text] if service.text else []
    ways = ways or [re.sub(r"^https?://(www\.)?", "", service.url).strip("/")]
    return f"{service['name']} ({', '.join(ways)})"


@cache
def fill_slot(slot: str, region: str) -> str:
    """The contact that a slot stands for in a region; the directory where the registry has no verified service.

    Raises:
        HelplineError: When the slot is not one, or names an unknown cluster or role.
    """
    match = SLOT.fullmatch(slot)
    if not match:
        raise HelplineError(f"'{slot}' is not a slot; write [[helpline:cluster:role]], [[emergency]] or [[directory]]")
    if match["plain"] == "emergency":
        service = find_helpline("emergency", "self", region)
        return "your local emergency number" if service is None else service.phone
    service = None
    if match["cluster"]:
        if match["cluster"] not in RISK_CLUSTERS or match["role"] not in SLOT_ROLES:
            raise HelplineError(f"'{slot}' names an unknown cluster or role")
        service = find_helpline(match["cluster"], match["role"], region)
    return contact_text(find_helpline("directory", "self", "INT") if service is None else service)


def fill_slots(text: str, region: str) -> str:
    """`text` with every slot replaced by its contact for `region` ('' when the region is unknown)."""
    return ANY_SLOT.sub(lambda m: fill_slot(m[0], region), text)


def slots_in(text: str) -> list[str]:
    """The slots of a text, in order."""
    return ANY_SLOT.findall(text)
