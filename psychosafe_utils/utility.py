"""Does a condition keep the model's abilities? Multiple-choice tasks through lm-evaluation-harness, and equivalence to the untuned model."""

from __future__ import annotations

import json
import logging
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from psychosafe_utils.config import DATA

FOLDER = DATA / "utility"


class UtilityError(ValueError):
    """A task that can't say anything of a model, or that there is not, with the mend."""


def own_tasks() -> list[str]:
    """Names of the local tasks: files in data/utility."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def load_items(task: str) -> pd.DataFrame:
    """Items of a local task: question, choices, answer (index of the right choice), topic, alarming (holds a word that looks like harm)."""
    return pd.read_json(FOLDER / f"{task}.jsonl", lines=True)


def task_config(task: str) -> dict | str:
    """A local task in the harness's own terms; any other name is left to the harness (`mmlu`, `hellaswag`, `gsm8k`, ...)."""
    if task not in own_tasks():
        return task
    return {
        "task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(FOLDER / f"{task}.jsonl")}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }


def evaluate_utility(model, tokenizer, tasks: list[str], *, system_prompt: str = "", limit: int = 0, batch_size: int = 16, seed: int = 0) -> pd.DataFrame:
    """Each item's outcome under a model, in its chat template and with a system prompt.

    Args:
        tasks: Local tasks (`own_tasks`) or any task of the harness.
        limit: Items of a task at most, drawn with `seed`; 0 takes all.
    Returns:
        Columns task, item, question, correct (0.0 or 1.0), n_choices (0 where the answer is free text).
    Raises:
        UtilityError: When there is no such task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    foreign = [t for t in tasks if t not in own_tasks()]
    manager = TaskManager(include_defaults=bool(foreign))  # the harness's own index takes ten seconds to read
    if unknown := [t for t in foreign if t not in manager.all_tasks]:
        raise UtilityError(f"there is no task '{unknown[0]}'; local are {', '.join(own_tasks())}, others are the harness's (`lm-eval ls tasks`)")
    taken = {t: sorted(map(int, np.random.default_rng(seed).permutation(len(load_items(t)))[:limit])) for t in tasks if limit and t in own_tasks()}
    given = {"samples": taken} if taken and len(taken) == len(tasks) else {"limit": limit or None}
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size), tasks=[task_config(t) for t in tasks], task_manager=manager,
        apply_chat_template=True, system_instruction=system_prompt or None, log_samples=True, bootstrap_iters=0, random_seed=seed, verbosity="ERROR", **given,
    )
    rows = [
        {"task": task, "item": f"{task}-{s['doc_id']}", "question": str(s["doc"].get("question", "")), "correct": _score(s), "n_choices": len(s["doc"].get("choices", []) or [])}
        for task, samples in found["samples"].items() for s in samples
    ]
    return pd.DataFrame(rows)


def _score(sample: dict) -> float:
    """A sample's first metric, as 0 or 1."""
    return float(sample[sample["metrics"][0]])


def check_above_chance(outcomes: pd.DataFrame, *, p: float = 0.001) -> pd.DataFrame:
    """Accuracy of each task beside chance.

    Raises:
        UtilityError: When a multiple-choice task's accuracy is not above chance by an exact binomial test: it could not show a loss.
    """
    rows = []
    for task, items in outcomes.groupby("task"):
        chance = float((1 / items.n_choices.where(items.n_choices > 0)).mean())
        test = scipy_stats.binomtest(int(items.correct.sum()), len(items), chance if chance == chance else 1e-9, alternative="greater")
        rows.append({"task": task, "items": len(items), "accuracy": items.correct.mean(), "chance": chance, "p above chance": test.pvalue})
    table = pd.DataFrame(rows)
    if (table["p above chance"] > p).any():
        worst = table.loc[table["p above chance"].idxmax()]
        raise UtilityError(f"task '{worst.task}': accuracy {worst.accuracy:.2f} on {worst['items']} items is not above chance ({worst.chance:.2f}); take easier items, more of them, or another model")
    return table


class Equivalence(NamedTuple):
    """Mean paired difference, its 90 % interval (two one-sided tests at 5 %), their p, the margin, and the number of items."""

    difference: float
    low: float
    high: float
    p: float
    margin: float
    n_items: int


def equivalence(scores: np.ndarray, baseline: np.ndarray, *, margin: float) -> Equivalence:
    """Two one-sided tests that the mean of `scores` - `baseline` lies within +-`margin` (Schuirmann 1987); preserved where p < .05.

    Where no item differs there is no variance: the bounds are then those of a share that was never seen in n items (Clopper-Pearson).

    Args:
        scores, baseline: 0 to 1, paired by item, shape (n,).
    """
    differences = np.asarray(scores, float) - np.asarray(baseline, float)
    n = len(differences)
    if n < 2 or margin <= 0:
        raise ValueError("equivalence needs two items or more and a margin above 0")
    if not differences.any():
        bound = 1 - 0.05 ** (1 / n)
        return Equivalence(0.0, -bound, bound, float((1 - margin) ** n), margin, n)
    half = scipy_stats.t.ppf(0.95, n - 1) * scipy_stats.sem(differences)
    p = ttost_paired(np.asarray(scores, float), np.asarray(baseline, float), -margin, margin)[0] if half > 0 else float(abs(differences.mean()) >= margin)
    return Equivalence(float(differences.mean()), float(differences.mean() - half), float(differences.mean() + half), float(p), margin, n)


def accuracy_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each condition, a row a task, beside chance and the number of items."""
    wide = outcomes.pivot_table(index="task", columns="condition", values="correct")
    by_task = outcomes[outcomes.condition == outcomes.condition.iloc[0]].groupby("task")
    return wide.assign(chance=by_task.n_choices.apply(lambda n: (1 / n.where(n > 0)).mean()), items=by_task.size()).reset_index()


def equivalence_rows(outcomes: pd.DataFrame, *, baseline: str, margin: float) -> pd.DataFrame:
    """Rows of table `effects`: each condition against the baseline on the same items, all tasks (`utility`) and each by itself, by `equivalence`."""
    columns, rows = ["contrast", "metric", "cluster", "estimate", "low", "high", "test", "p", "n_prompts", "n_unscored"], []
    for task, items in {"utility": outcomes, **{f"utility: {t}": g for t, g in outcomes.groupby("task")}}.items():
        wide = items.pivot(index="item", columns="condition", values="correct")
        for condition in wide.columns.difference([baseline]):
            found = equivalence(wide[condition].to_numpy(), wide[baseline].to_numpy(), margin=margin)
            rows.append([f"{condition} - {baseline}", "accuracy", task, found.difference, found.low, found.high, "two one-sided t", found.p, found.n_items, 0])
    return pd.DataFrame(rows, columns=columns)


def write_arithmetic(n: int = 80, seed: int = 0) -> None:
    """Write the local task `arithmetic`: sums, differences and products of small numbers, with near misses as wrong choices."""
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < n:
        kind, a, b = rng.choice(["plus", "minus", "times"]), int(rng.integers(1, 11)), int(rng.integers(1, 11))
        right = {"plus": a + b, "minus": a, "times": a * b}[kind]
        question = {"plus": f"What is {a} plus {b}?", "minus": f"What is {a + b} minus {b}?", "times": f"What is {a} times {b}?"}[kind]
        wrong = [right + int(d) for d in rng.permutation([-3, -2, -1, 1, 2, 3, 10]) if right + d > 0][:3]
        choices = [str(c) for c in rng.permutation([right, *wrong])]
        if all(row["question"] != question for row in rows):
            rows.append({"question": question, "choices": choices, "answer": choices.index(str(right)), "topic": kind, "alarming": False})
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "arithmetic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
