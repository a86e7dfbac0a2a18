"""Every rater by its name, writing the same table: rules, a model behind an endpoint, a model on this machine, a guard; several make a panel."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from psychosafe_utils.agreement import panel_scores, ratings_matrix
from psychosafe_utils.config import RATERS
from psychosafe_utils.rubrics import PUBLISHED


def judge_answers(
    answers: pd.DataFrame, rater: str, *, model: str = "", endpoint: str = "", journal: Path | None = None, rubric: str = PUBLISHED,
    repeats: int = 1, together: bool = True, workers: int = 8, generators: list[str] = (), own_family: bool = False, four_bit: bool = False,
) -> pd.DataFrame:
    """Rows of table `judgements` by one rater.

    Args:
        answers: Columns generation_id, text (the prompt), response, cluster, region; role and also where known.
        rater: One of `RATERS`. `rule` knows the published rubric alone.
        model: The judge's name, for `llm` at the endpoint, for `local` as `load_model` takes it, for `guard` '' for the embedded one.
        endpoint: Base URL of an OpenAI-compatible server, for `llm` and `guard`; its key stands in OPENAI_API_KEY.
        journal: File of replies, for `llm`.
        repeats, together, workers: For `llm`, as in `Endpoint`.
        four_bit: Load a model on this machine in 4 bits, for `local` and `guard`.
        generators: Models that wrote the answers; a judge of their family needs `own_family`.
    Raises:
        ValueError: When there is no such rater, or it lacks something.
    """
    if rater not in RATERS:
        raise ValueError(f"unknown rater '{rater}'; there are {', '.join(RATERS)}")
    if rater == "rule":
        from psychosafe_utils.judges import judgement_rows

        if model or endpoint:
            raise ValueError("rater rule asks no model; take rater llm or local, or leave model and endpoint out")
        if rubric != PUBLISHED:
            raise ValueError(f"the rule rater knows rubric '{PUBLISHED}' alone; take rater llm or local for '{rubric}'")
        return judgement_rows(answers)
    if rater == "guard":
        from psychosafe_utils.guard import guard_rows, judge_messages

        messages = answers.rename(columns={"text": "prompt"})[["prompt", "response"]]
        judged = judge_messages(messages, model=model, endpoint=endpoint, four_bit=four_bit)
        return guard_rows(answers.generation_id.tolist(), judged.verdicts, f"guard:{model or 'embedded'}", judged.raws)
    from psychosafe_utils.llm_judges import Endpoint, family_note, judge_with_endpoint

    if rater == "llm":
        if not (endpoint and model):
            raise ValueError("rater llm needs an endpoint and a model")
        return judge_with_endpoint(
            answers, Endpoint(endpoint, model, repeats=repeats, together=together, workers=workers), journal=journal, rubric=rubric,
            generators=list(generators), own_family=own_family,
        )
    if not model:
        raise ValueError("rater local needs a model: a hub id, a local folder, or the embedded model's name")
    from psychosafe_utils.local_judges import judge_locally
    from psychosafe_utils.models import load_model, load_tokenizer

    name = model + family_note(model, list(generators), allow_own=own_family)
    return judge_locally(answers, load_model(model, four_bit=four_bit), load_tokenizer(model), name, rubric=rubric)


def with_panel(judgements: pd.DataFrame) -> pd.DataFrame:
    """The judgements of several raters, and below them the panel's: raters `panel:mean` and `panel:majority`, for what at least two have rated."""
    rows = []
    for criterion in dict.fromkeys(judgements.criterion):
        ratings = ratings_matrix(judgements, criterion)
        if ratings.shape[1] < 2:
            continue
        for name in ("mean", "majority"):
            scores = panel_scores(ratings)[name].where(ratings.notna().sum(axis=1) >= 2)
            rows.append(pd.DataFrame({
                "generation_id": scores.index, "rater": f"panel:{name}", "rater_kind": "panel", "criterion": criterion,
                "rubric_version": judgements.rubric_version[judgements.criterion == criterion].iloc[0], "score": scores.to_numpy(float),
                "status": ["ok" if s == s else "failed" for s in scores], "evidence": "[]", "raw": "",
            }))
    return pd.concat([judgements, *rows], ignore_index=True)
