"""Answers written by a model, behind an OpenAI-compatible endpoint or on this machine, and kept only when they pass the corpus's checks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from psychosafe_utils.config import RISK_CLUSTERS
from psychosafe_utils.generate import Decoding, generate_answers, report_progress
from psychosafe_utils.helplines import fill_slots, slots_in
from psychosafe_utils.journals import append_rows, read_rows
from psychosafe_utils.judges import rate_by_rule, rate_grounding
from psychosafe_utils.prompts import prompt_versions
from psychosafe_utils.tables import SCHEMAS, content_hash
from psychosafe_utils.writing import answer_findings, slot_findings

# Least scores by the rule rater: declines, one component of a strategy, a service, two words of the message.
LEAST = {"refusal": 1, "psychological_grounding": 3, "external_reference": 1, "relevance": 3}
BATCH = 16

# Answers to the prompts of one system prompt; an answer that could not be had is an exception in its place.
Ask = Callable[[pd.DataFrame, str, int], list]


def writer_prompt(cluster: str, role: str) -> str:
    """The full PsychoSafe prompt, with the slots of a cluster and role in place of services, so that no number is written."""
    slots = list(dict.fromkeys([f"[[helpline:{cluster}:{role}]]", "[[helpline:suicide_self_harm:self]]", "[[directory]]"]))
    services = f"Write no number, site or name of a service. Write one or two of these, letter by letter: {', '.join(slots)}. In danger: [[emergency]]."
    return prompt_versions()["psychosafe_full"].read_text(encoding="utf-8").strip().replace("{resources}", services)


def ask_endpoint(base_url: str, model: str, *, max_tokens: int = 320, workers: int = 8, timeout: float = 120.0) -> Ask:
    """Ask a model behind an OpenAI-compatible endpoint; the key comes from the environment variable OPENAI_API_KEY alone.

    The first attempt is greedy, later ones are sampled with the attempt as seed.
    """
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=3, timeout=timeout)

    def one(text: str, system_prompt: str, attempt: int):
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": text}]
        try:
            reply = client.chat.completions.create(
                model=model, messages=messages, max_tokens=max_tokens, temperature=0.8 if attempt else 0.0, seed=attempt,
            )
            return (reply.choices[0].message.content or "").strip()
        except (OpenAIError, IndexError, AttributeError) as error:
            return error

    def ask(prompts: pd.DataFrame, system_prompt: str, attempt: int) -> list:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda text: one(text, system_prompt, attempt), prompts.text))

    return ask


def ask_local(model, tokenizer, *, work: Path, max_tokens: int = 320) -> Ask:
    """Ask a model on this machine; the first attempt is greedy, later ones are sampled with the attempt as seed."""

    def ask(prompts: pd.DataFrame, system_prompt: str, attempt: int) -> list:
        decoding = Decoding(max_tokens, 0.8 if attempt else 0.0, attempt, BATCH)
        journal = work / f"writer-{content_hash(system_prompt, decoding, prompts.prompt_id.tolist())}.jsonl"
        return generate_answers(model, tokenizer, prompts, system_prompt, decoding=decoding, journal=journal, label="writer").response.tolist()

    return ask


def rejection_reasons(prompt, answer: str) -> list[str]:
    """Why an answer (contacts as slots) is not kept, as short reasons; empty when it is.

    Args:
        prompt: A row of `prompts` as a named tuple.
    """
    also = [c for c in prompt.also.split("|") if c]
    found = slot_findings(answer, prompt.cluster, also, prompt.role, "x")
    if found:
        return [_reason(f) for f in found]
    found = answer_findings(answer, prompt.text, "x", regions=[prompt.region], hard_case=prompt.hard_case)
    message = {name: getattr(prompt, name) for name in ("cluster", "region", "role", "also")}
    scores = {s.criterion: s.score for s in rate_by_rule([prompt.text], [fill_slots(answer, prompt.region)], [message])[0]}
    wanted = {k: v for k, v in LEAST.items() if k != "refusal" or prompt.hard_case not in ("disclosure", "ambiguous")}
    judged = [f"judge: {name} below {least}" for name, least in wanted.items() if scores[name] is None or scores[name] < least]
    return list(dict.fromkeys([_reason(f) for f in found] + judged))


def _reason(finding: str) -> str:
    """A finding without what is particular to its row, so that reasons can be counted."""
    text = finding.removeprefix("x: ").split(";")[0]
    return re.sub(r"\s+", " ", re.sub(r"\('.*'\)|'[^']*'|\d+", "...", text)).strip()


def _judged_attempt(prompt, answer, attempt: int) -> dict:
    """One attempt as a journal row: accepted, rejected with its reasons, or failed with the error."""
    if isinstance(answer, Exception):
        return {"prompt_id": prompt.prompt_id, "attempt": attempt, "status": "failed", "answer": "", "reasons": [type(answer).__name__]}
    reasons = rejection_reasons(prompt, answer)
    return {"prompt_id": prompt.prompt_id, "attempt": attempt, "status": "rejected" if reasons else "accepted", "answer": answer, "reasons": reasons}


def write_answers(prompts: pd.DataFrame, ask: Ask, *, journal: Path, attempts: int) -> pd.DataFrame:
    """Have a model answer prompts of the risk clusters until an answer passes, at most `attempts` times (rejection sampling).

    Every batch is written to the journal as it is made: a second start asks only for what is missing, failed calls included.

    Args:
        prompts: Table `prompts`.
        journal: JSONL file; must be named after all that makes the answers.
    Returns:
        Columns prompt_id, attempt, status (accepted, rejected, failed), answer, reasons: the last word on each attempt.
    Raises:
        ValueError: When a prompt is of no risk cluster.
    """
    foreign = prompts[~prompts.cluster.isin(RISK_CLUSTERS)]
    if len(foreign):
        raise ValueError(f"prompt {foreign.prompt_id.iloc[0]} is of cluster '{foreign.cluster.iloc[0]}'; a model writes supportive refusals for {', '.join(RISK_CLUSTERS)} alone")
    journal.parent.mkdir(parents=True, exist_ok=True)
    rows = {(r["prompt_id"], r["attempt"]): r for r in read_rows(journal)}
    started, asked = time.perf_counter(), 0
    for attempt in range(attempts):
        accepted = {p for (p, _), r in rows.items() if r["status"] == "accepted"}
        todo = prompts[[p not in accepted and rows.get((p, attempt), {}).get("status", "failed") == "failed" for p in prompts.prompt_id]]
        for (cluster, role), group in todo.groupby(["cluster", "role"]):
            for start in range(0, len(group), BATCH):
                batch = group[start:start + BATCH]
                made = [_judged_attempt(p, a, attempt) for p, a in zip(batch.itertuples(), ask(batch, writer_prompt(cluster, role), attempt))]
                append_rows(journal, made)
                rows |= {(r["prompt_id"], attempt): r for r in made}
                asked += len(made)
                report_progress(f"writer, attempt {attempt + 1}", asked, len(todo), started)
    return pd.DataFrame(list(rows.values()), columns=["prompt_id", "attempt", "status", "answer", "reasons"])


def accepted_pairs(prompts: pd.DataFrame, attempts: pd.DataFrame, writer: str) -> pd.DataFrame:
    """Rows of table `pairs` from the accepted answers; strategy and components are those that the rule rater found."""
    kept = prompts.merge(attempts[attempts.status == "accepted"], on="prompt_id")
    rows = []
    for row in kept.itertuples():
        answer = fill_slots(row.answer, row.region)
        found = [span.label.split(": ") for span in rate_grounding(answer).spans]
        rows.append({
            "prompt_id": row.prompt_id, "answer": answer, "answer_slots": row.answer, "strategy": found[0][0],
            "components": "|".join(name for _, name in found), "resources": "|".join(slots_in(row.answer)), "writer": writer,
        })
    return pd.DataFrame(rows, columns=list(SCHEMAS["pairs"]), dtype=str)


def acceptance_report(attempts: pd.DataFrame) -> pd.DataFrame:
    """How many attempts were accepted, failed, or rejected for each reason (an answer may have several), and their share."""
    counts = attempts.status.value_counts().reindex(["accepted", "failed"], fill_value=0)
    reasons = attempts[attempts.status == "rejected"].reasons.explode().value_counts()
    table = pd.concat([counts, reasons.rename(lambda r: f"rejected: {r}")]).rename_axis("outcome").rename("n").reset_index()
    return table.assign(share=table.n / max(len(attempts), 1))
