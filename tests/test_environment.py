"""One list of packages: requirements, conda, constraints and what is installed say the same."""

import re
from importlib.metadata import distributions, version

import yaml
from packaging.specifiers import SpecifierSet

from psychosafe_utils import colab
from psychosafe_utils.config import ROOT


def pins(path):
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s]+)", (ROOT / path).read_text(), re.M))


def test_conda_and_pip_name_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip_part = next(d["pip"] for d in conda if isinstance(d, dict))
    assert dict(p.split("==") for p in pip_part) == pins("requirements.txt")
    assert "python=3.11" in conda


def test_constraints_agree_with_requirements_and_with_what_is_installed():
    constraints = {k.lower().replace("_", "-"): v for k, v in pins("constraints.txt").items()}
    for name, wanted in pins("requirements.txt").items():
        assert constraints[name.lower().replace("_", "-")] == wanted
        assert version(name).split("+")[0] == wanted


def test_no_package_needs_a_later_python_than_the_project():
    """One that did made pip search in vain for minutes on an earlier 3.11."""
    wanted = {d.metadata["Name"]: d.metadata["Requires-Python"] or "" for d in distributions()}
    assert [name for name, pythons in wanted.items() if not SpecifierSet(pythons).contains("3.11.0")] == []


def test_every_requirement_says_why_it_is_there():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    assert lines and all(re.search(r"#\s+\w+", line) for line in lines)


def test_colab_installs_only_what_is_missing(tmp_path):
    assert colab.missing_requirements(ROOT / "requirements.txt") == []
    assert colab.missing_requirements(ROOT / "requirements-model.txt") == []
    (tmp_path / "r.txt").write_text("# none\nno-such-package==1.0   # why\npandas==0.1\ntorch==0.1\n")
    assert colab.missing_requirements(tmp_path / "r.txt") == ["no-such-package==1.0", "pandas==0.1"]
