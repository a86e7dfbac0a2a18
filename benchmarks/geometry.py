"""Time and memory of the hidden states of many prompts, pooled layer by layer.

    OMP_NUM_THREADS=2 PSYCHOSAFE_DTYPE=float32 python benchmarks/geometry.py      # 3 minutes on 2 cores with AVX-512; --prompts 200 for a quick look

Prompts of the corpus and of the contrast pairs, half and half, drawn with a seed, under the generic system prompt, through the embedded model in 4 bits.
"""

from __future__ import annotations

import argparse
import resource
import time

import pandas as pd

from psychosafe_utils import corpus, geometry, models
from psychosafe_utils.prompts import load_system_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2000)
    n = parser.parse_args().prompts
    texts = pd.concat([table.text.sample(n // 2, random_state=0) for table in (corpus.load_corpus()[0], corpus.load_contrast())]).tolist()
    started = time.perf_counter()
    model, tokenizer = models.load_model(models.EMBEDDED, four_bit=True), models.load_tokenizer(models.EMBEDDED)
    states = geometry.pooled_states(model, tokenizer, texts, system_prompt=load_system_prompt("generic"), label="states")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(texts)} prompts, states of shape {states.mean.shape}: {time.perf_counter() - started:.0f} s, {peak:.2f} GiB at most, {models.weights_name(model, True)}")


if __name__ == "__main__":
    main()
