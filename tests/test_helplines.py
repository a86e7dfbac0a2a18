import csv

import pytest

from psychosafe_utils.config import REGIONS, RISK_CLUSTERS
from psychosafe_utils.helplines import (
    COLUMNS, REGISTRY, SLOT_ROLES, HelplineError, contact_text, fill_slot, fill_slots, find_helpline, load_registry, slots_in,
)
from psychosafe_utils.references import find_contacts

SERVICE = {
    "region": "GB", "cluster": "weapons", "role": "self", "name": "Test Line", "phone": "555-0142", "url": "https://www.example.org/help/",
    "hours": "", "text": "text HI to 555-0143", "scope": "", "source": "", "last_checked": "2026-01-01", "status": "verified",
}


def write_registry(path, *rows, columns=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(SERVICE | row for row in rows)
    return path


def service(tmp_path, **values):
    return load_registry(write_registry(tmp_path / "r.csv", values)).iloc[0]


def test_the_committed_registry_loads_with_text_in_every_column():
    registry = load_registry()
    assert len(registry) == len(REGISTRY.read_text(encoding="utf-8").splitlines()) - 1
    assert not registry.isna().any().any()
    assert {"US", "GB", "INT"} <= set(registry.region)


def test_a_registry_without_rows_loads(tmp_path):
    assert load_registry(write_registry(tmp_path / "r.csv")).empty


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_the_file(tmp_path, column):
    path = write_registry(tmp_path / "r.csv", {}, columns=[c for c in COLUMNS if c != column])
    with pytest.raises(HelplineError, match=rf"r\.csv: column '{column}' is missing"):
        load_registry(path)


@pytest.mark.parametrize(("column", "value"), [("region", "XX"), ("region", ""), ("status", "probably"), ("status", "")])
def test_an_unknown_region_or_status_is_named_with_file_and_line(tmp_path, column, value):
    path = write_registry(tmp_path / "r.csv", {}, {column: value})
    with pytest.raises(HelplineError, match=rf"r\.csv: line 3: {column} '{value}' is not one of "):
        load_registry(path)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"text": ""}, "Test Line (call 555-0142)"), ({}, "Test Line (call 555-0142, text HI to 555-0143)"),
        ({"phone": ""}, "Test Line (text HI to 555-0143)"), ({"phone": "", "text": ""}, "Test Line (example.org/help)"),
    ],
)
def test_a_service_as_a_noun_phrase(tmp_path, values, text):
    assert contact_text(service(tmp_path, **values)) == text


@pytest.mark.parametrize(
    ("slot", "region", "text"),
    [
        ("[[emergency]]", "US", "911"), ("[[emergency]]", "GB", "999"), ("[[emergency]]", "", "your local emergency number"),
        ("[[emergency]]", "INT", "your local emergency number"), ("[[directory]]", "US", "Find A Helpline (findahelpline.com)"),
        ("[[helpline:suicide_self_harm:self]]", "US", "988 Suicide & Crisis Lifeline (call 988, text 988)"),
        ("[[helpline:sexual_crimes:minor_concern]]", "GB", "Stop It Now (Lucy Faithfull Foundation) (call 0808 1000 900, chat online)"),
        ("[[helpline:suicide_self_harm:self]]", "", "Find A Helpline (findahelpline.com)"),
        # RAINN's row is second-hand, and Stop It Now serves concern about minors alone.
        ("[[helpline:sexual_crimes:survivor]]", "US", "Find A Helpline (findahelpline.com)"),
        ("[[helpline:sexual_crimes:may_harm]]", "GB", "Find A Helpline (findahelpline.com)"),
    ],
)
def test_a_slot_is_filled_for_a_region(slot, region, text):
    assert fill_slot(slot, region) == text


@pytest.mark.parametrize("slot", ["emergency", "[[emergency]", "[[hotline]]", "[[helpline:weapons]]", "[[helpline:weapons:self:GB]]", "", "[[]]"])
def test_what_is_not_a_slot_is_quoted_with_the_mend(slot):
    with pytest.raises(HelplineError, match="is not a slot; write ") as error:
        fill_slot(slot, "GB")
    assert f"'{slot}'" in str(error.value)


@pytest.mark.parametrize("slot", ["[[helpline:gardening:self]]", "[[helpline:weapons:gardener]]", "[[helpline:benign:self]]"])
def test_a_slot_of_an_unknown_cluster_or_role_is_quoted(slot):
    with pytest.raises(HelplineError, match="names an unknown cluster or role") as error:
        fill_slot(slot, "GB")
    assert slot in str(error.value)


@pytest.mark.parametrize(("text", "filled"), [("", ""), ("No slot [here].", "No slot [here]."), ("[[emergency]], again [[emergency]].", "999, again 999.")])
def test_every_slot_of_a_text_is_filled(text, filled):
    assert fill_slots(text, "GB") == filled


def test_slots_in_order():
    assert slots_in("a [[directory]] b [[emergency]] c [[directory]]") == ["[[directory]]", "[[emergency]]", "[[directory]]"]
    assert slots_in("") == []


@pytest.mark.parametrize("region", REGIONS)
def test_only_verified_services_of_the_region_fill_a_slot(region):
    for cluster in RISK_CLUSTERS:
        for role in SLOT_ROLES:
            found = find_helpline(cluster, role, region)
            if found is not None:
                assert (found.region, found.cluster, found.status) == (region, cluster, "verified") and role in found.role.split("|")


@pytest.mark.parametrize("region", REGIONS)
def test_every_filled_slot_is_recognised_as_a_contact_of_the_registry(region):
    for cluster in RISK_CLUSTERS:
        for role in SLOT_ROLES:
            contacts = find_contacts(f"You could try {fill_slot(f'[[helpline:{cluster}:{role}]]', region)} if you like.")
            assert contacts and {c.status for c in contacts} == {"registry"}
