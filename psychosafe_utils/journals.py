"""Journals: JSON lines written as they are made, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

from psychosafe_utils.tables import refuse_full_disk


def read_rows(path: Path) -> list[dict]:
    """The rows of a journal; a last line that was cut off by a kill is left out, also of the file."""
    if not path.exists():
        return []
    # Not splitlines: a text may hold other characters that it takes for the end of a line.
    *whole, torn = path.read_text(encoding="utf-8").split("\n")
    if torn:
        path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add rows to a journal and see them on the disk. Raises TableError when it is full."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        refuse_full_disk(error, path)
        raise
