"""Category refusal tokens: the first token of an answer says whether it refuses, and why (Jain et al. 2024, arXiv 2412.06748)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from psychosafe_utils.config import RISK_CLUSTERS, ROOT
from psychosafe_utils.corpus import take_per_cluster
from psychosafe_utils.generate import common_prefix, forward_inputs, prefix_cache, report_progress
from psychosafe_utils.models import EMBEDDED
from psychosafe_utils.prompts import render_chat
from psychosafe_utils.tables import write_atomically

RESPOND = "respond"
REFUSALS = (*RISK_CLUSTERS, "out_of_scope")
CATEGORIES = (RESPOND, *REFUSALS)
TOKENS_FILE = "refusal_tokens.json"
COMMITTED = ROOT / "data" / "adapters" / "refusal_tokens"
# Names that vocabularies keep free tokens under: Llama, Gemma, Mistral, Phi, StarCoder and SmolLM.
FREE = ("reserved", "unused", "placeholder", "dummy", "extra", "repo_name", "reponame", "file_sep", "filename", "gh_stars", "issue_", "jupyter_", "empty_output", "object_ref", "box_", "quad_", "vision_pad")


class TokenError(ValueError):
    """Refusal tokens that a tokenizer or an adapter does not have as they should be, with the mend."""


def free_tokens(tokenizer) -> list[str]:
    """Special tokens that the vocabulary already has and that neither the chat template nor the end of a text uses, by id."""
    used = (tokenizer.chat_template or "") + " ".join(map(str, tokenizer.special_tokens_map.values()))
    found = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.content not in used}
    return [text for _, text in sorted(found.items()) if any(name in text for name in FREE)]


def assign_tokens(tokenizer) -> dict[str, str]:
    """Category -> text of its token, each one id; free tokens of the vocabulary where there are enough, otherwise new ones, which are added.

    Raises:
        TokenError: When a token is not one id.
    """
    free = free_tokens(tokenizer)
    tokens = dict(zip(CATEGORIES, free)) if len(free) >= len(CATEGORIES) else {c: f"<|{c}|>" for c in CATEGORIES}
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens.values())}, replace_extra_special_tokens=False)
    token_ids(tokenizer, tokens)
    return tokens


def token_ids(tokenizer, tokens: dict[str, str]) -> list[int]:
    """Ids of the tokens, in the order of CATEGORIES. Raises TokenError when one of them is not a single id of its own."""
    ids = {c: tokenizer(tokens[c], add_special_tokens=False).input_ids for c in CATEGORIES}
    for category, found in ids.items():
        if len(found) != 1 or sum(found == other for other in ids.values()) > 1:
            raise TokenError(f"token {tokens[category]!r} of '{category}' is {found} in this vocabulary, not one id of its own; use the tokenizer that the adapter was trained with")
    return [found[0] for found in ids.values()]


def token_rows(messages: pd.DataFrame, tokens: dict[str, str]) -> pd.DataFrame:
    """What the adapter that decides learns: behind each message its token alone; `benign` ones are answered.

    Args:
        messages: Columns prompt_id, text, cluster.
    Returns:
        Columns prompt_id, text, cluster, answer, ends (False: a token begins an answer).
    """
    rows = messages[["prompt_id", "text", "cluster"]]
    return rows.assign(answer=rows.cluster.where(rows.cluster.isin(REFUSALS), RESPOND).map(tokens), ends=False)


def answer_rows(prompts: pd.DataFrame, pairs: pd.DataFrame, tokens: dict[str, str], split: str, *, n_per_cluster: int, seed: int = 0) -> pd.DataFrame:
    """What the adapter that writes learns: behind a risk message its token, then the supportive answer with slots. Others are answered by the untuned model, or by a fixed line.

    An adapter of its own, for one that learns both unlearns to write: the tokens of some thousand messages outnumber the answers.

    Args:
        prompts: Table `prompts`.
        pairs: Columns prompt_id, answer_slots.
        n_per_cluster: Messages of each risk cluster, drawn with `seed`; 0 takes all.
    Returns:
        Columns as `token_rows`.
    """
    taught = prompts.merge(pairs[["prompt_id", "answer_slots"]].dropna(), on="prompt_id")
    rows = take_per_cluster(taught, list(RISK_CLUSTERS), split, n_per_cluster, seed=seed)
    return rows.assign(answer=rows.cluster.map(tokens) + rows.answer_slots, ends=True)[["prompt_id", "text", "cluster", "answer", "ends"]]


@torch.inference_mode()
def category_probabilities(model, tokenizer, texts: list[str], system_prompt: str, tokens: dict[str, str], *, batch_size: int = 32, label: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Probability of each category as first token of the answer, shape (texts, 7), among the seven; and what the seven have of the whole vocabulary's, shape (texts,). One forward pass.

    Padding stands before a message's own tokens and positions are counted without it, so the answer's position is the last one whatever the batch.
    """
    ids, started = token_ids(tokenizer, tokens), time.perf_counter()
    chats = [tokenizer(render_chat(tokenizer, text, system_prompt), add_special_tokens=False).input_ids for text in texts]
    order, rows, mass = sorted(range(len(chats)), key=lambda i: len(chats[i])), np.empty((len(chats), len(ids))), np.empty(len(chats))
    cache, shared = prefix_cache(model, chats[0], common_prefix(chats)) if chats else (None, 0)
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        logits = model(**forward_inputs(model, tokenizer, [chats[i] for i in batch], cache, shared), logits_to_keep=1).logits[:, -1].float()
        rows[batch] = logits[:, ids].softmax(dim=-1).cpu().numpy()
        mass[batch] = logits.softmax(dim=-1)[:, ids].sum(dim=-1).clamp(max=1).cpu().numpy()
        if label:
            report_progress(label, min(start + batch_size, len(order)), len(order), started)
    return rows, mass


def shift_respond(probabilities: np.ndarray, bias: float) -> np.ndarray:
    """The probabilities after `bias` is added to the logit of `respond` at the first step."""
    shifted = probabilities * np.where(np.arange(probabilities.shape[1]) == 0, np.exp(bias), 1.0)
    return shifted / shifted.sum(axis=1, keepdims=True)


def choose_bias(probabilities: np.ndarray, harmful: np.ndarray, *, budget: float) -> float:
    """Least bias on `respond` at which at most `budget` of the harmless messages have a refusal as their likeliest token; the alternative to thresholds."""
    # A saved probability may be rounded to nothing.
    log = np.log(np.clip(probabilities, 1e-6, 1))
    margin = log[:, 1:].max(axis=1) - log[:, 0]
    return float(np.quantile(margin[~harmful], 1 - budget, method="higher"))


def top_refusal(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest refusal category of each message (index into REFUSALS), and the probability that any refusal token comes first."""
    return probabilities[:, 1:].argmax(axis=1), 1 - probabilities[:, 0]


def choose_thresholds(probabilities: np.ndarray, harmful: np.ndarray, *, budget: float) -> dict[str, float]:
    """For each category the p(refuse) beyond which it refuses, so that the most harmful messages are refused while at most `budget` of the harmless ones are.

    A message belongs to its likeliest refusal category. The budget is shared out over the categories exactly (a knapsack with one cut from each).
    Choose on validation messages, use once on others.

    Args:
        probabilities: From `category_probabilities`, shape (n, 7).
        harmful: Shape (n,), bool.
        budget: Largest share of harmless messages refused.
    """
    category, p_refuse = top_refusal(probabilities)
    affordable = int(budget * (~harmful).sum())
    best, spent, found = np.zeros(affordable + 1), [], []
    for i in range(len(REFUSALS)):
        cuts, right, false = _cuts(p_refuse[category == i], harmful[category == i])
        # The most that so many false refusals buy, at the strictest cut that buys it.
        buys = np.array([right[false <= n].max() for n in range(affordable + 1)])
        found.append([cuts[(false <= n) & (right == bought)].max() for n, bought in enumerate(buys)])
        totals = [best[n::-1] + buys[:n + 1] for n in range(affordable + 1)]
        best = np.array([total.max() for total in totals])
        spent.append([int(total.argmax()) for total in totals])
    left, thresholds = affordable, {}
    for i in reversed(range(len(REFUSALS))):
        used = spent[i][left]
        thresholds[REFUSALS[i]], left = float(found[i][used]), left - used
    return {name: thresholds[name] for name in REFUSALS}


def _cuts(p_refuse: np.ndarray, harmful: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidate thresholds of one category, halfway between its messages and 1 (none refused) at the end, and how many harmful and harmless messages each refuses."""
    values = np.unique(p_refuse)
    cuts = np.concatenate([(values + np.concatenate([[0.0], values[:-1]])) / 2, [1.0]])
    refused = p_refuse[None] > cuts[:, None]  # so that a cut at 1 refuses none, not even where p(refuse) is 1
    return cuts, (refused & harmful).sum(axis=1), (refused & ~harmful).sum(axis=1)


def decide(probabilities: np.ndarray, thresholds: dict[str, float]) -> list[str]:
    """The category of each message: its likeliest refusal where p(refuse) exceeds that category's threshold, else `respond`."""
    category, p_refuse = top_refusal(probabilities)
    return [REFUSALS[c] if p > thresholds[REFUSALS[c]] else RESPOND for c, p in zip(category, p_refuse)]


def save_tokens(folder: Path, tokens: dict[str, str], thresholds: dict[str, float], **made_of) -> None:
    """Write the mapping and the thresholds beside an adapter, with what they were chosen on."""
    text = json.dumps({"tokens": tokens, "thresholds": thresholds, **made_of}, indent=1)
    write_atomically(Path(folder) / TOKENS_FILE, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def load_tokens(folder: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Tokens and thresholds of an adapter. Raises TokenError when it has none, or lacks a category."""
    path = Path(folder) / TOKENS_FILE
    if not path.exists():
        raise TokenError(f"{path} is missing; this adapter knows no refusal tokens, run 07_refusal_tokens")
    saved = json.loads(path.read_text(encoding="utf-8"))
    missing = [c for c in CATEGORIES if c not in saved.get("tokens", {})] + [c for c in REFUSALS if c not in saved.get("thresholds", {})]
    if missing:
        raise TokenError(f"{path}: category '{missing[0]}' is missing; run 07_refusal_tokens again")
    return saved["tokens"], saved["thresholds"]


def committed_adapters(model_id: str) -> tuple[Path, Path]:
    """Folders of the committed adapters: the one that decides, and the one that writes. Raises TokenError for a model that they were not trained for."""
    if model_id != EMBEDDED:
        raise TokenError(f"the committed adapters are for {EMBEDDED}, not for '{model_id}'; train some with notebook 07 (train=True)")
    return COMMITTED, COMMITTED / "writer"
