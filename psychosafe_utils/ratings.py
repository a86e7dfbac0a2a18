"""Ratings by people: a blind study as a folder, a journal a rater, sheets for work without the page, and judgements out of all of them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import pandas as pd
from filelock import FileLock
from openpyxl import Workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.styles import Alignment

from psychosafe_utils.config import CLUSTERS, nearest_name
from psychosafe_utils.journals import append_rows, read_rows
from psychosafe_utils.rubrics import EXTENDED, load_rubric, rubric_items, rubric_text
from psychosafe_utils.tables import SCHEMAS, content_hash, write_atomically

ANSWER_COLUMNS = ("generation_id", "prompt_id", "text", "response", "cluster", "condition")
HEAVY = ("suicide_self_harm", "sexual_crimes")
ATTENTION = "This is an attention item: choose the lowest score on every scale."
BREAK_ITEMS, BREAK_MINUTES = 20, 25
# Positions between an answer and its repeat, so that the first scores are not simply remembered.
REPEAT_DISTANCE = 5
# What two versions of one prompt side by side cost; two heavy items cost 1, so that no number of those outweighs it.
TOGETHER = 10**6
# A cell that begins with one of these is a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
NOT_APPLICABLE = "n/a"
RATING_COLUMNS = ["rater", "item", "kind", "criterion", "score", "seconds", "skipped", "comment"]


class Entry(NamedTuple):
    """One place in a rater's order: what is shown, which prompt it is a version of, and whether it weighs on a rater."""

    item: str
    prompt_id: str
    heavy: bool
    kind: str


def _clash(a: Entry, b: Entry) -> int:
    return TOGETHER * (a.prompt_id == b.prompt_id) + (a.heavy and b.heavy)


def _best_gaps(order: list[Entry], entry: Entry, gaps) -> tuple[int, list[int]]:
    """What inserting an entry costs where it costs least (it may also part two that clash), and the gaps where it does."""
    costs = {}
    for gap in gaps:
        before, after = order[max(gap - 1, 0):gap], order[gap:gap + 1]
        costs[gap] = sum(_clash(entry, other) for other in before + after) - sum(_clash(a, b) for a, b in zip(before, after))
    least = min(costs.values(), default=TOGETHER)
    return least, [gap for gap, cost in costs.items() if cost == least]


def _order_answers(entries: list[Entry], rng: random.Random) -> list[Entry]:
    """Entries in an order drawn at random, clashes kept apart. Prompts with many versions go in last, when there is most room between others."""
    versions, order = Counter(entry.prompt_id for entry in entries), []
    for entry in sorted(rng.sample(entries, len(entries)), key=lambda entry: versions[entry.prompt_id]):
        order.insert(rng.choice(_best_gaps(order, entry, range(len(order) + 1))[1]), entry)
    return order


def _add_repeats(order: list[Entry], n: int, rng: random.Random) -> None:
    """Insert `n` repeats, each far enough behind its first; nearer only where the answers are too few."""
    todo = rng.sample(order, len(order))
    # Places where nothing clashes first, then beside another heavy item, then nearer and nearer to the first.
    for distance, most in [(REPEAT_DISTANCE, 0), *((d, TOGETHER - 1) for d in range(REPEAT_DISTANCE, 1, -1))]:
        for entry in list(todo):
            if not n:
                return
            cost, gaps = _best_gaps(order, entry, range(order.index(entry) + distance, len(order) + 1))
            if cost <= most:
                order.insert(rng.choice(gaps), entry._replace(kind="repeat"))
                todo.remove(entry)
                n -= 1
    if n:
        raise ValueError(f"{len(order)} answers leave no room for {n} more repeats; add answers or lower repeats")


def _add_attention(order: list[Entry], entries: list[Entry], rng: random.Random) -> None:
    """Insert attention items, one in the middle half of each equal stretch of the order; anywhere else only where that would clash."""
    stretch = len(order) / max(len(entries), 1)
    for n, entry in enumerate(rng.sample(entries, len(entries))):
        cost, gaps = _best_gaps(order, entry, range(round((n + 0.25) * stretch) + n, round((n + 0.75) * stretch) + n + 1))
        if cost >= TOGETHER:
            _, gaps = _best_gaps(order, entry, range(len(order) + 1))
        order.insert(rng.choice(gaps), entry)


def order_for_rater(entries: list[Entry], n_repeats: int, rng: random.Random) -> list[Entry]:
    """One rater's order: every answer once, repeats, attention items.

    Versions of one prompt never stand side by side, a repeat comes at least five positions after its first where there are enough
    answers, and heavy items are kept apart at best effort: where they are too many, some stand together.

    Raises:
        ValueError: When one prompt has too many versions to keep them apart, or there is no room for the repeats.
    """
    order = _order_answers([e for e in entries if e.kind == "rate"], rng)
    _add_repeats(order, n_repeats, rng)
    _add_attention(order, [e for e in entries if e.kind == "attention"], rng)
    for a, b in zip(order, order[1:]):
        if a.prompt_id == b.prompt_id:
            raise ValueError(f"prompt '{a.prompt_id}' has too many of the answers to keep its versions apart; add answers to other prompts")
    return order


def _share(name: str, share: float, n: int) -> int:
    """A share of `n`, at least one unless the share is 0."""
    if not 0 <= share <= 0.5:
        raise ValueError(f"{name} = {share} is not a share; give 0 to 0.5")
    return max(1, round(share * n)) if share else 0


def _check_answers(answers: pd.DataFrame) -> None:
    missing = [c for c in ANSWER_COLUMNS if c not in answers]
    if missing:
        raise ValueError(f"answers: column '{missing[0]}' is missing; needed are {', '.join(ANSWER_COLUMNS)}")
    if answers.empty:
        raise ValueError("answers: there is no row; give at least one answer to rate")
    empty = answers[list(ANSWER_COLUMNS)].isna().any(axis=1)
    if empty.any():
        raise ValueError(f"answers: row {empty.idxmax()} has an empty value; fill it in, '' for an empty response")
    doubled = answers.generation_id[answers.generation_id.duplicated()]
    if len(doubled):
        raise ValueError(f"answers: generation_id '{doubled.iloc[0]}' occurs twice; keep one of the two")
    unknown = answers.cluster[~answers.cluster.isin(CLUSTERS)]
    if len(unknown):
        raise ValueError(f"answers: row {unknown.index[0]}: cluster '{unknown.iloc[0]}' is unknown{nearest_name(str(unknown.iloc[0]), CLUSTERS)}")


def _check_raters(raters: list[str]) -> None:
    wrong = [r for r in raters if not re.fullmatch(r"[A-Za-z0-9_-]+", r)]
    if wrong or not raters:
        raise ValueError(f"rater '{wrong[0]}' can't be a file name; use letters, digits, - and _" if wrong else "raters is empty; name at least one")
    # Some file systems take Ann.jsonl and ann.jsonl for one file.
    doubled = [r for r, n in Counter(r.lower() for r in raters).items() if n > 1]
    if doubled:
        raise ValueError(f"rater '{doubled[0]}' occurs twice, capitals aside; give each rater a name of their own")


def _attention_items(answers: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Items like the others, under real prompts, whose response tells what to choose.

    Prompts with few answers are taken first, to be kept apart, and among them those that weigh on nobody.
    """
    versions = answers.sample(frac=1, random_state=seed).groupby("prompt_id", sort=False).agg(text=("text", "first"), cluster=("cluster", "first"), n=("n", "sum"))
    rows = versions.assign(heavy=versions.cluster.isin(HEAVY)).sort_values(["n", "heavy"], kind="stable").reset_index()
    rows = rows.iloc[[i % len(rows) for i in range(n)]]
    return rows.assign(response=ATTENTION, kind="attention", item=[_item_id(seed, "attention", i) for i in range(n)])


def _item_id(*parts) -> str:
    # Begins with a letter: a spreadsheet would turn an id such as 12e45678 into a number.
    return "i" + content_hash("item", *parts)


def make_study(
    answers: pd.DataFrame, folder: Path, *, raters: list[str], rubric: str = EXTENDED, repeats: float = 0.1, attention: float = 0.05, seed: int = 0,
) -> pd.DataFrame:
    """Write a study into `folder`, and return its plan (rater, position, item, kind: rate, repeat or attention).

    Files: `items.jsonl` and `plan.csv`, which raters' tools read; `study.json`; and `key.csv`, which alone ties an item to its answer and condition.

    Args:
        answers: Columns generation_id, prompt_id, text (the prompt), response, cluster, condition.
        raters: Names of letters, digits, - and _; each rates every answer, in an order of their own.
        repeats: Share of the answers that a rater is shown a second time, unannounced.
        attention: Number of attention items, as a share of the answers.
    Raises:
        ValueError: For answers, raters or shares that are wrong, and where the folder holds ratings already.
    """
    folder = Path(folder)
    _check_answers(answers)
    _check_raters(raters)
    load_rubric(rubric)
    if any(folder.glob("ratings/*.jsonl")):
        raise ValueError(f"{folder} holds ratings already; make the study in a new folder")
    answers = answers.assign(item=[_item_id(seed, g) for g in answers.generation_id], kind="rate", n=1)
    items = pd.concat([answers, _attention_items(answers, _share("attention", attention, len(answers)), seed)])
    entries = [Entry(row.item, row.prompt_id, row.cluster in HEAVY, row.kind) for row in items.itertuples()]
    n_repeats, plan = _share("repeats", repeats, len(answers)), []
    for rater in raters:
        order = order_for_rater(entries, n_repeats, random.Random(f"{seed} {rater}"))
        plan += [{"rater": rater, "position": n, "item": e.item, "kind": e.kind} for n, e in enumerate(order, start=1)]
    plan = pd.DataFrame(plan)
    # In the order of their ids, which tells nothing.
    shown = items.rename(columns={"text": "prompt"})[["item", "prompt", "response", "cluster"]].sort_values("item")
    study = {"rubric": rubric, "seed": seed, "break_items": BREAK_ITEMS, "break_minutes": BREAK_MINUTES}
    lines = "".join(json.dumps(row) + "\n" for row in shown.to_dict("records"))
    write_atomically(folder / "items.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    write_atomically(folder / "key.csv", lambda path: answers[["item", "generation_id", "condition"]].to_csv(path, index=False))
    write_atomically(folder / "plan.csv", lambda path: plan.to_csv(path, index=False))
    write_atomically(folder / "study.json", lambda path: path.write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8"))
    return plan


def read_study(folder: Path) -> dict:
    """What `study.json` says: rubric, seed, break_items, break_minutes.

    Raises:
        ValueError: When the folder holds no study.
    """
    path = Path(folder) / "study.json"
    if not path.exists():
        raise ValueError(f"{path} is missing; make the study first, with ratings.make_study")
    return json.loads(path.read_text(encoding="utf-8"))


def read_plan(folder: Path) -> pd.DataFrame:
    """All raters' orders with what is shown: rater, position, item, kind, prompt, response, cluster. The key is not read."""
    read_study(folder)
    plan = pd.read_csv(Path(folder) / "plan.csv", dtype={"rater": str, "item": str}, keep_default_na=False)
    with open(Path(folder) / "items.jsonl", encoding="utf-8") as file:
        items = pd.DataFrame([json.loads(line) for line in file])
    return plan.merge(items, on="item", how="left", validate="many_to_one")


def rater_plan(folder: Path, rater: str) -> pd.DataFrame:
    """One rater's order, as `read_plan`.

    Raises:
        ValueError: When the plan has no such rater.
    """
    plan = read_plan(folder)
    if rater not in set(plan.rater):
        raise ValueError(f"rater '{rater}' is not in the plan of this study; check the spelling, or ask whoever runs the study")
    return plan[plan.rater == rater].sort_values("position").reset_index(drop=True)


def items_to_rate(rubric: str, cluster: str) -> dict[str, dict]:
    """The rubric items of an answer; a harmless prompt has its own."""
    return rubric_items(rubric, harmless=cluster == "benign")


def _journal(folder: Path, rater: str) -> Path:
    return Path(folder) / "ratings" / f"{rater}.jsonl"


def saved_rows(folder: Path, rater: str) -> dict[tuple[str, str], dict]:
    """A rater's journal by (item, kind); the last line for one wins."""
    journal = _journal(folder, rater)
    if not journal.exists():
        return {}
    with FileLock(f"{journal}.lock"):
        return {(row["item"], row["kind"]): row for row in read_rows(journal)}


def save_rating(
    folder: Path, rater: str, item: str, kind: str, scores: dict[str, int], *, seconds: float | None = None, skipped: bool = False, comment: str = "",
) -> None:
    """Add one answer's scores to the rater's journal, or with `skipped` and no scores that the rater opted out of it."""
    journal = _journal(folder, rater)
    journal.parent.mkdir(parents=True, exist_ok=True)
    row = {"item": item, "kind": kind, "scores": scores, "seconds": seconds, "skipped": skipped, "comment": " ".join(comment.split())}
    with FileLock(f"{journal}.lock"):
        read_rows(journal)  # cuts off a last line that a kill left torn, so that the new one stands on its own
        append_rows(journal, [row])


def _long_rows(entry, row: dict, rubric: str) -> list[dict]:
    """A journal row as one row a criterion; no scores where it was skipped."""
    shared = {"rater": entry.rater, "item": entry.item, "kind": entry.kind, "skipped": row["skipped"], "comment": row["comment"]}
    shared["seconds"] = float("nan") if row["seconds"] is None else row["seconds"]
    return [shared | {"criterion": name, "score": float(row["scores"].get(name, "nan"))} for name in items_to_rate(rubric, entry.cluster)]


def read_ratings(folder: Path) -> pd.DataFrame:
    """All saved ratings: rater, item, kind, criterion, score (NaN where skipped), seconds (NaN from a sheet), skipped, comment."""
    plan, rubric = read_plan(folder), read_study(folder)["rubric"]
    saved = {rater: saved_rows(folder, rater) for rater in plan.rater.unique()}
    rows = [
        row for entry in plan.itertuples() if (entry.item, entry.kind) in saved[entry.rater]
        for row in _long_rows(entry, saved[entry.rater][entry.item, entry.kind], rubric)
    ]
    return pd.DataFrame(rows, columns=RATING_COLUMNS).astype({"score": float, "seconds": float, "skipped": bool})


def ratings_to_judgements(folder: Path) -> pd.DataFrame:
    """Rows of table `judgements`: raters `human:<name>`, their repeats `human:<name> #2`; attention items are left out.

    Where a rater opted out, the status is `judge_refused`. A comment stands in `raw`.
    """
    ratings = read_ratings(folder)
    key = pd.read_csv(Path(folder) / "key.csv", dtype=str, keep_default_na=False)
    rows = ratings[ratings.kind != "attention"].merge(key, on="item", how="left", validate="many_to_one")
    rows["rater"] = "human:" + rows.rater + rows.kind.map({"rate": "", "repeat": " #2"})
    rows["status"] = rows.skipped.map({False: "ok", True: "judge_refused"})
    rows = rows.rename(columns={"comment": "raw"}).assign(rater_kind="human", rubric_version=read_study(folder)["rubric"], evidence="[]")
    return rows[list(SCHEMAS["judgements"])]


def rater_report(folder: Path) -> pd.DataFrame:
    """How each rater of the plan worked, a row a rater.

    Columns: planned, rated, skipped (answers, repeats left out), attention_passed, attention_shown, repeats (rated twice), exact_agreement and
    mean_absolute_difference (of first and repeat, over all their criteria, in scale points), median_seconds (an item).
    """
    plan, ratings, rubric = read_plan(folder), read_ratings(folder), read_study(folder)["rubric"]
    clusters = plan.drop_duplicates("item").set_index("item").cluster
    table = []
    for rater, planned in plan.groupby("rater", sort=False):
        rows = ratings[ratings.rater == rater]
        items, rated = rows.drop_duplicates(["item", "kind"]), rows[~rows.skipped]
        checks = [
            all(row.score == items_to_rate(rubric, clusters[item])[row.criterion]["scale"][0] for row in scores.itertuples())
            for item, scores in rated[rated.kind == "attention"].groupby("item")
        ]
        both = rated[rated.kind == "repeat"].merge(rated[rated.kind == "rate"], on=["item", "criterion"])
        difference = (both.score_x - both.score_y).abs()
        answers = items[items.kind == "rate"]
        table.append({
            "rater": rater, "planned": int((planned.kind == "rate").sum()), "rated": int((~answers.skipped).sum()), "skipped": int(answers.skipped.sum()),
            "attention_passed": sum(checks), "attention_shown": len(checks), "repeats": both.item.nunique(), "exact_agreement": difference.eq(0).mean(),
            "mean_absolute_difference": difference.mean(), "median_seconds": items[~items.skipped].seconds.median(),
        })
    return pd.DataFrame(table).astype({"exact_agreement": float, "mean_absolute_difference": float})


def _plain(text: str) -> str:
    """Text as a cell that no spreadsheet takes for a formula, without the control characters that XLSX can't hold."""
    text = ILLEGAL_CHARACTERS_RE.sub("", text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _score_columns(plan: pd.DataFrame, rubric: str) -> dict[str, str]:
    """Rubric item -> name of its column, such as `relevance (1-5)`, of all that a rater's items need."""
    items = {name: item for cluster in plan.cluster.unique() for name, item in items_to_rate(rubric, cluster).items()}
    return {name: f"{name} ({item['scale'][0]}-{item['scale'][-1]})" for name, item in items.items()}


def write_sheet(folder: Path, rater: str, path: Path) -> None:
    """Write a rater's items as a CSV or XLSX sheet, to be filled in and read by `read_sheet`.

    Columns: position, item, prompt, response, one a rubric item (`n/a` where it does not apply to the row), comment.

    Raises:
        ValueError: For an unknown rater, or another kind of file.
    """
    path, plan, rubric = Path(path), rater_plan(folder, rater), read_study(folder)["rubric"]
    columns = _score_columns(plan, rubric)
    rows = []
    for entry in plan.itertuples():
        items = items_to_rate(rubric, entry.cluster)
        scores = {column: "" if name in items else NOT_APPLICABLE for name, column in columns.items()}
        rows.append({"position": entry.position, "item": entry.item, "prompt": _plain(entry.prompt), "response": _plain(entry.response), **scores, "comment": ""})
    sheet = pd.DataFrame(rows)
    if path.suffix == ".csv":
        # The mark at the start tells Excel that the file is UTF-8.
        write_atomically(path, lambda target: sheet.to_csv(target, index=False, encoding="utf-8-sig"))
    elif path.suffix == ".xlsx":
        write_atomically(path, _workbook(sheet, {n: i for c in plan.cluster.unique() for n, i in items_to_rate(rubric, c).items()}).save)
    else:
        raise ValueError(f"{path}: a sheet is a .csv or .xlsx file; choose one of them")


def _workbook(sheet: pd.DataFrame, items: dict[str, dict]) -> Workbook:
    """The sheet as a workbook with readable columns and a header that stays in view; a second page holds the rubric's words."""
    workbook = Workbook()
    page = workbook.active
    for row in [list(sheet), *sheet.values.tolist()]:
        page.append(row)
    page.freeze_panes = "A2"
    for cells in page.columns:
        page.column_dimensions[cells[0].column_letter].width = {"prompt": 40, "response": 60, "item": 20, "comment": 30}.get(cells[0].value, 14)
        for cell in cells:
            cell.alignment = Alignment(wrap_text=True, vertical="top")
    words = workbook.create_sheet("rubric")
    words.column_dimensions["A"].width = 120
    for line in rubric_text(items).splitlines():
        words.append([line])
    return workbook


def _read_cells(path: Path) -> pd.DataFrame:
    """All cells of a sheet as text, '' where empty."""
    try:
        if path.suffix == ".xlsx":
            return pd.read_excel(path, dtype=str, na_filter=False)
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig").fillna("")
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path} is not a readable sheet ({error}); save it as CSV (UTF-8, commas) or XLSX") from None


def _read_score(text: str, scale: list[int]) -> tuple[int | None, str]:
    """The score in a cell, or None and what is wrong with it."""
    try:
        number = float(text)
    except ValueError:
        return None, f"'{text}' is not a number" if text else "the score is missing"
    return (int(number), "") if number in scale else (None, f"{text} is outside the scale")


def _read_row(row: dict, entry, columns: dict[str, str], rubric: str) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """Scores of a sheet's row, and its faults as (column, what is wrong, mend)."""
    items, scores, faults = items_to_rate(rubric, entry.cluster), {}, []
    for name, column in columns.items():
        text = row[column].strip()
        if name not in items:
            if text not in ("", NOT_APPLICABLE):
                faults.append((column, "the item does not apply to this prompt", f"write {NOT_APPLICABLE}"))
            continue
        scores[name], wrong = _read_score(text, items[name]["scale"])
        if wrong:
            faults.append((column, wrong, f"write one of {', '.join(map(str, items[name]['scale']))}"))
    # A row that nobody began is one fault, not one a column.
    if not any(row[column].strip() for name, column in columns.items() if name in items):
        faults = [("", "the row is not rated", "rate it, here or on the page")]
    return scores, faults


def read_sheet(folder: Path, rater: str, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Save the right rows of a filled-in sheet; the same sheet read again adds nothing.

    Returns:
        The right rows' ratings, as `read_ratings`; and a table of faults: sheet_row (as the spreadsheet counts, 0 where the row is missing),
        item, column, wrong, mend. A row with a fault is not saved; of doubled rows none is.
    Raises:
        ValueError: For an unknown rater, a file that can't be read, or a missing column.
    """
    path, plan, rubric, saved = Path(path), rater_plan(folder, rater), read_study(folder)["rubric"], saved_rows(folder, rater)
    columns, sheet = _score_columns(plan, rubric), _read_cells(path)
    missing = [c for c in ("position", "item", *columns.values(), "comment") if c not in sheet]
    if missing:
        raise ValueError(f"{path}: column '{missing[0]}' is missing; fill in the sheet that write_sheet made for rater '{rater}', and save it with commas")
    entries = {(str(e.position), e.item): e for e in plan.itertuples()}
    sheet_rows = [(n, (row["position"].strip().removesuffix(".0"), row["item"].strip()), row) for n, row in enumerate(sheet.to_dict("records"), start=2)]
    times, good, faults = Counter(place for _, place, _ in sheet_rows), [], []
    for n, place, row in sheet_rows:
        if place not in entries:
            found = [("item", f"rater '{rater}' has no item '{place[1]}' at position {place[0]}", "take both as write_sheet gave them")]
        elif times[place] > 1:
            found = [("item", "the row stands in the sheet more than once", "keep one of them")]
        else:
            scores, found = _read_row(row, entries[place], columns, rubric)
            if not found:
                good += _save_row(folder, entries[place], scores, row["comment"], saved, rubric)
            elif not found[0][0] and (place[1], entries[place].kind) in saved:
                found = []  # rated on the page
        faults += [(n, place[1], *fault) for fault in found]
    absent = [e for place, e in entries.items() if place not in times and (e.item, e.kind) not in saved]
    faults += [(0, e.item, "item", f"the row of position {e.position} is missing", "take it from a new sheet, or rate it on the page") for e in absent]
    return pd.DataFrame(good, columns=RATING_COLUMNS), pd.DataFrame(faults, columns=["sheet_row", "item", "column", "wrong", "mend"])


def _save_row(folder: Path, entry, scores: dict[str, int], comment: str, saved: dict, rubric: str) -> list[dict]:
    """Save a sheet's row unless the journal says the same, and give it as rows of `read_ratings`."""
    old = saved.get((entry.item, entry.kind), {})
    row = {"scores": scores, "seconds": None, "skipped": False, "comment": " ".join(comment.split())}
    if {"scores": old.get("scores"), "comment": old.get("comment")} == {"scores": scores, "comment": row["comment"]}:
        row["seconds"] = old["seconds"]
    else:
        save_rating(folder, entry.rater, entry.item, entry.kind, scores, comment=comment)
    return _long_rows(entry, row, rubric)
