"""How well refusal tokens tell requests apart by what is in our hands: number of requests, share of harmless ones, rank, epochs, learning rate, batch size.

    python benchmarks/learning_curves.py       # half an hour on one core that has bfloat16; a second start does only what is missing

One setting is changed at a time; with the number of requests and of epochs and the size of a batch the number of steps changes too. Learnt from requests of the
contrast pairs, the token alone; measured by the ROC area of p(refuse) on their validation split. The table is put beside the committed
adapter. After a change of the pairs, delete it first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from psychosafe_utils import corpus, finetune, models, prompts, refusal_tokens, stats, tables

OUT = refusal_tokens.COMMITTED / "learning_curves.csv"
BASE = {"requests": 300, "harmless": 0.5, "rank": 8, "epochs": 1, "learning_rate": 8e-4, "batch_size": 4}
VARIED = {"requests": [100, 900], "harmless": [0.2, 0.8], "rank": [2, 32], "epochs": [2], "learning_rate": [2e-4, 3e-3], "batch_size": [16]}
N_VALIDATION = 400


def draw(contrast: pd.DataFrame, split: str, n: int, harmless: float) -> pd.DataFrame:
    """`n` requests of a split, a share of them harmless."""
    rows, n_harmless = contrast[contrast.split == split], round(n * harmless)
    kinds = ((rows.cluster == "benign", n_harmless), (rows.cluster != "benign", n - n_harmless))
    return pd.concat([rows[kind].sample(number, random_state=0) for kind, number in kinds], ignore_index=True)


def measure(setting: dict, work: Path) -> dict:
    """Train with a setting, and the ROC area on validation with its interval."""
    tokenizer, contrast = models.load_tokenizer(models.EMBEDDED), corpus.load_contrast()
    tokens, system_prompt = refusal_tokens.assign_tokens(tokenizer), prompts.load_system_prompt("generic")
    validation = draw(contrast, "val", N_VALIDATION, 0.5)
    learnt, checked = (refusal_tokens.token_rows(t, tokens) for t in (draw(contrast, "train", setting["requests"], setting["harmless"]), validation[::20]))
    recipe = finetune.Recipe(
        lora_r=setting["rank"], lora_alpha=2 * setting["rank"], learning_rate=setting["learning_rate"], epochs=float(setting["epochs"]), batch_size=setting["batch_size"], eval_steps=1000, first_layer=12,
    )
    folder, _ = finetune.train_adapter(
        models.EMBEDDED, models.model_fingerprint(models.EMBEDDED), tokenizer, learnt, checked, system_prompt, recipe=recipe, work=work,
        token_ids=tuple(refusal_tokens.token_ids(tokenizer, tokens)),
    )
    model = models.load_model(models.EMBEDDED, four_bit=True, adapter=str(folder), tokenizer=tokenizer)
    found, _ = refusal_tokens.category_probabilities(model, tokenizer, validation.text.tolist(), system_prompt, tokens)
    area = stats.roc_interval(1 - found[:, 0], (validation.cluster != "benign").to_numpy())
    return {"roc_area": round(area.estimate, 3), "low": round(area.low, 3), "high": round(area.high, 3), "n_validation": len(validation)}


def main() -> None:
    settings = [("base", BASE), *((name, BASE | {name: value}) for name, values in VARIED.items() for value in values)]
    rows = pd.read_csv(OUT).to_dict("records") if OUT.exists() else []
    done = [tuple(row[name] for name in BASE) for row in rows]
    for varied, setting in settings:
        if tuple(setting.values()) in done:
            continue
        with tempfile.TemporaryDirectory() as work:
            rows.append({"varied": varied, **setting, **measure(setting, Path(work))})
        print(rows[-1], flush=True)
        tables.write_atomically(OUT, lambda p: pd.DataFrame(rows).to_csv(p, index=False))


if __name__ == "__main__":
    main()
