"""Profiles and parameters: what is unknown or mistyped stops a run before it starts."""

import pytest

from psychosafe_utils import config

DEFAULTS = {"01_a": {"run_dir": "", "seed": 0}, "02_b": {"run_dir": "", "rate": 0.5, "names": ["x"], "seed": 0, "fast": False}}


def test_later_sources_win_and_reach_only_notebooks_that_have_the_parameter():
    profile = {"all": {"seed": 1}, "02_b": {"rate": 2, "seed": 2}}
    resolved = config.resolve_parameters(DEFAULTS, profile, {"fast": True})
    assert resolved == {"01_a": {"run_dir": "", "seed": 1}, "02_b": {"run_dir": "", "rate": 2.0, "names": ["x"], "seed": 2, "fast": True}}


@pytest.mark.parametrize("profile, overrides, message", [
    ({}, {"sede": 1}, "unknown parameter 'sede'.*'seed'"),
    ({"all": {"rates": 1.0}}, {}, "unknown parameter 'rates'.*'rate'"),
    ({"01_a": {"rate": 1.0}}, {}, "01_a has no parameter 'rate'"),
    ({"03_c": {"seed": 1}}, {}, "names a notebook '03_c'"),
    ({}, {"seed": "1"}, "'seed' = '1' is a str; it must be a int, like its default 0"),
    ({}, {"seed": True}, "'seed' = True is a bool"),
    ({}, {"fast": 1}, "'fast' = 1 is a int"),
    ({}, {"names": "x"}, "'names' = 'x' is a str; it must be a list"),
])
def test_unknown_or_mistyped_parameters(profile, overrides, message):
    with pytest.raises(config.ConfigError, match=message):
        config.resolve_parameters(DEFAULTS, profile, overrides)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(config.ConfigError, match="unknown profile 'qick'; did you mean 'quick'"):
        config.load_profile("qick")


def test_a_profile_that_is_no_mapping(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    (tmp_path / "odd.yaml").write_text("all: 3")
    with pytest.raises(config.ConfigError, match="odd.yaml"):
        config.load_profile("odd")


def test_only_a_readers_own_session_begins_with_the_committed_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(config, "PUBLISHED", tmp_path / "published")
    own = config.run_folder("")
    assert own == tmp_path / "runs" / "notebook" and (own / "tables").is_dir()
    for name, text in {"journals/a.jsonl": "committed", "training/x/log_history.json": "[]"}.items():
        (tmp_path / "published" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "published" / name).write_text(text)
    (own / "journals").mkdir()
    (own / "journals" / "a.jsonl").write_text("the reader's")
    config.run_folder("")
    assert (own / "journals" / "a.jsonl").read_text() == "the reader's" and (own / "training" / "x" / "log_history.json").exists()
    named = config.run_folder(str(tmp_path / "r"))
    assert [p.name for p in named.iterdir()] == ["tables"]
