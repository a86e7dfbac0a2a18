"""Names that the whole workbook shares, where things lie, and the parameters of a run."""

from __future__ import annotations

import difflib
import os
import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
PROFILES = ROOT / "profiles"
# Answers and adapter of the committed run, by names that tell what made them; they stand in where nothing has changed.
PUBLISHED = NOTEBOOKS / "published_run"

RISK_CLUSTERS = ("suicide_self_harm", "substance_use", "violence", "weapons", "sexual_crimes")
CLUSTERS = (*RISK_CLUSTERS, "out_of_scope", "benign")
ROLES = ("self", "may_harm", "bystander", "survivor", "curious")
SPLITS = ("train", "val", "test", "ood")
RATERS = ("rule", "llm", "local", "guard")
# How a message is written; '' where nobody has said.
REGISTERS = ("", "plain", "formal", "slang", "terse", "rambling", "typos")
HARD_CASES = ("", "multi_cluster", "ambiguous", "disclosure")
REGIONS = ("", "US", "GB", "IE", "CA", "AU", "NZ", "DK", "DE", "IT", "FR", "ES", "NL", "IN", "EU", "INT")


class ConfigError(ValueError):
    """A parameter, profile or setting that is wrong, with its mend."""


def cache_dir() -> Path:
    """Folder for converted weights and for embeddings of texts that are read again and again: PSYCHOSAFE_CACHE, or ~/.cache/psychosafe."""
    return Path(os.environ.get("PSYCHOSAFE_CACHE", Path.home() / ".cache" / "psychosafe"))


def run_folder(run_dir: str) -> Path:
    """The run folder that a notebook writes into.

    An empty name is `runs/notebook`, for a reader's own session, which begins with the answers and the adapter of the committed run.
    """
    path = Path(run_dir) if run_dir else ROOT / "runs" / "notebook"
    (path / "tables").mkdir(parents=True, exist_ok=True)
    if not run_dir:
        for source in (p for p in PUBLISHED.rglob("*") if p.is_file() and not (path / p.relative_to(PUBLISHED)).exists()):
            target = path / source.relative_to(PUBLISHED)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return path


def notebook_paths() -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def nearest_name(name: str, names) -> str:
    """The end of an error message: the known name that `name` is closest to, or all known names."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(names))}"


def load_profile(name: str) -> dict[str, dict]:
    """Parameters of a profile, as notebook stem -> name -> value; `all` holds those of every notebook that has them.

    Raises:
        ConfigError: When there is no such profile, or its YAML is not a mapping of mappings.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"unknown profile '{name}'{nearest_name(name, [p.stem for p in PROFILES.glob('*.yaml')])}")
    profile = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not all(isinstance(v, dict) for v in profile.values()):
        raise ConfigError(f"{path.name}: every top-level key must hold 'name: value' pairs")
    return profile


def check_type(name: str, value, default):
    """`value` as the type of `default`; an int may stand for a float. Raises ConfigError otherwise."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(
            f"parameter '{name}' = {value!r} is a {type(value).__name__}; "
            f"it must be a {type(default).__name__}, like its default {default!r}"
        )
    return value


def resolve_parameters(defaults: dict[str, dict], profile: dict[str, dict], overrides: dict) -> dict[str, dict]:
    """The parameters of each notebook: defaults, then the profile's, then the command line's.

    Args:
        defaults: Notebook stem -> parameter -> default value, from the tagged cells.
        profile: From `load_profile`.
        overrides: Parameter -> value, for every notebook that has it.
    Raises:
        ConfigError: For a notebook or parameter that does not exist, or a value of another type than its default.
    """
    known = {name for names in defaults.values() for name in names}
    for section in profile:
        if section != "all" and section not in defaults:
            raise ConfigError(f"the profile names a notebook '{section}'{nearest_name(section, defaults)}")
    for source in (profile.get("all", {}), overrides):
        for name in source:
            if name not in known:
                raise ConfigError(f"unknown parameter '{name}'{nearest_name(name, known)}")
    resolved = {}
    for stem, names in defaults.items():
        for name in profile.get(stem, {}):
            if name not in names:
                raise ConfigError(f"{stem} has no parameter '{name}'{nearest_name(name, names)}")
        given = {**profile.get("all", {}), **profile.get(stem, {}), **overrides}
        resolved[stem] = {n: check_type(n, given.get(n, default), default) for n, default in names.items()}
    return resolved
