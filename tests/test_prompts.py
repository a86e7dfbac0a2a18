import jinja2
import pytest

from psychosafe_utils import prompts
from psychosafe_utils.config import RISK_CLUSTERS, ConfigError
from psychosafe_utils.prompts import load_system_prompt, prompt_versions, render_chat, resource_lines, short_resources
from psychosafe_utils.references import find_contacts

NAMES = ("generic", "psychosafe_compact", "psychosafe_full")


class Tokenizer:
    """A chat template without a vocabulary."""

    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{% if enable_thinking %}<think>{% endif %}"

    def apply_chat_template(self, messages, *, tokenize, **switches):
        text = jinja2.Template(self.template).render(messages=messages, **switches)
        return list(text.encode()) if tokenize else text


def test_the_committed_system_prompts():
    assert sorted(prompt_versions()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_system_prompt_is_filled_and_names_only_contacts_of_the_registry(name):
    text = load_system_prompt(name)
    assert text and text == text.strip() and "{" not in text and "[[" not in text
    assert {c.status for c in find_contacts(text)} <= {"registry"}


@pytest.mark.parametrize("name", ["psychosafe_compact", "psychosafe_full"])
def test_a_supportive_prompt_names_the_crisis_lines_and_the_directory(name):
    text = load_system_prompt(name)
    assert "988 Suicide & Crisis Lifeline (call 988, text 988)" in text and "116 123" in text and "findahelpline.com" in text


def test_the_generic_prompt_names_no_service():
    assert not find_contacts(load_system_prompt("generic"))


def test_the_newest_version_is_by_number_and_not_by_letter(tmp_path, monkeypatch):
    for version in (1, 2, 10):
        (tmp_path / f"plain.v{version}.txt").write_text(f"\nversion {version}: {{resources}}\n", encoding="utf-8")
    (tmp_path / "tiny_compact.v1.txt").write_text("{resources}", encoding="utf-8")
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    assert {name: path.name for name, path in prompt_versions().items()} == {"plain": "plain.v10.txt", "tiny_compact": "tiny_compact.v1.txt"}
    assert load_system_prompt("plain") == f"version 10: {resource_lines()}"
    assert load_system_prompt("tiny_compact") == short_resources()


def test_an_empty_folder_has_no_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    assert prompt_versions() == {}
    with pytest.raises(ConfigError, match="unknown system prompt 'generic'"):
        load_system_prompt("generic")


@pytest.mark.parametrize(("name", "mend"), [("generc", "; did you mean 'generic'?"), ("zzzz", "; known: generic, psychosafe_compact, psychosafe_full"), ("", "; known: ")])
def test_an_unknown_prompt_is_named_with_the_mend(name, mend):
    with pytest.raises(ConfigError) as error:
        load_system_prompt(name)
    assert str(error.value).startswith(f"unknown system prompt '{name}'{mend}")


def test_a_line_a_risk_cluster_and_one_for_elsewhere():
    lines = resource_lines(("GB",)).splitlines()
    assert [line.split(":")[0] for line in lines] == [*(c.replace("_", " ") for c in RISK_CLUSTERS), "elsewhere"]
    assert lines[0] == "suicide self harm: GB Samaritans (call 116 123, email jo@samaritans.org)"
    assert lines[1] == "substance use: findahelpline.com"  # both British rows are second-hand


def test_without_a_region_every_line_is_the_directory():
    assert {line.split(": ")[1] for line in resource_lines(()).splitlines()[:-1]} == {"findahelpline.com"}


def test_a_service_of_several_roles_is_listed_once():
    assert resource_lines(("US",)).splitlines()[0].count("988 Suicide") == 1


def test_a_chat_ends_where_the_assistant_begins():
    assert render_chat(Tokenizer(), "Why do cats purr?", "Be brief.") == "<system>Be brief.<user>Why do cats purr?<assistant>"


def test_an_empty_system_prompt_is_left_out():
    assert render_chat(Tokenizer(), "Why?", "") == "<user>Why?<assistant>"
