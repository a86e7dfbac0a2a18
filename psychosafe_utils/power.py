"""How many prompts and raters a planned rating study needs, by simulation with crossed prompt and rater effects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Study(NamedTuple):
    """A planned comparison of two systems on the same prompts, in rubric points.

    `difference_sd` is the spread of one rater's difference between the systems over prompts, `icc` the share of its variance that raters have
    in common, `rater_sd` how far raters differ in which system they prefer.
    """

    n_prompts: int = 150
    n_raters: int = 3
    raters_per_prompt: int = 3
    difference: float = 0.3
    difference_sd: float = 1.0
    icc: float = 0.43
    rater_sd: float = 0.15


def assigned(study: Study) -> np.ndarray:
    """Which rater rates which prompt, shape (prompts, raters): each prompt by `raters_per_prompt`, each rater equally often.

    Raises:
        ValueError: When a prompt would need more raters than there are.
    """
    if study.raters_per_prompt > study.n_raters:
        raise ValueError(f"{study.raters_per_prompt} raters a prompt were asked for, but there are {study.n_raters}; lower raters_per_prompt or raise n_raters")
    cells = np.zeros((study.n_prompts, study.n_raters), bool)
    for prompt in range(study.n_prompts):
        cells[prompt, (prompt + np.arange(study.raters_per_prompt) * (study.n_raters // study.raters_per_prompt)) % study.n_raters] = True
    return cells


def simulate_differences(study: Study, n_sim: int, rng: np.random.Generator) -> np.ndarray:
    """Differences between the systems, shape (simulations, prompts, raters); NaN where a rater does not rate a prompt."""
    prompt = rng.normal(0, study.difference_sd * study.icc**0.5, (n_sim, study.n_prompts, 1))
    rater = rng.normal(0, study.rater_sd, (n_sim, 1, study.n_raters))
    noise = rng.normal(0, study.difference_sd * (1 - study.icc) ** 0.5, (n_sim, study.n_prompts, study.n_raters))
    return np.where(assigned(study), study.difference + prompt + rater + noise, np.nan)


def paired_p(differences: np.ndarray) -> np.ndarray:
    """p of the t test over prompt means, which takes the raters as all there are; one a simulation."""
    return stats.ttest_1samp(np.nanmean(differences, axis=2), 0, axis=1).pvalue


def clustered_p(differences: np.ndarray) -> np.ndarray:
    """p of a mean with standard errors clustered by prompt and by rater (Cameron, Gelbach & Miller 2011), t with the fewer clusters less one.

    Where the sum of the two variances less their overlap is below either of them, the larger stands in. NaN with a single rater.
    """
    n_sim, n_prompts, n_raters = differences.shape
    if n_raters < 2:
        return np.full(n_sim, np.nan)
    n_cells = np.isfinite(differences).sum(axis=(1, 2))
    mean = np.nanmean(differences, axis=(1, 2))
    residual = np.nan_to_num(differences - mean[:, None, None])
    by_prompt = (residual.sum(axis=2) ** 2).sum(axis=1) * n_prompts / (n_prompts - 1)
    by_rater = (residual.sum(axis=1) ** 2).sum(axis=1) * n_raters / (n_raters - 1)
    variance = np.maximum(by_prompt + by_rater - (residual**2).sum(axis=(1, 2)), np.maximum(by_prompt, by_rater)) / n_cells**2
    return 2 * stats.t.sf(np.abs(mean) / variance**0.5, min(n_prompts, n_raters) - 1)


def rejection_rates(study: Study, *, n_sim: int = 2000, level: float = 0.05, seed: int = 0) -> pd.Series:
    """Share of simulated studies with p below `level`, by each test: its power, or with difference 0 its false-positive rate."""
    differences = simulate_differences(study, n_sim, np.random.default_rng(seed))
    return pd.Series({"paired t over prompts": (paired_p(differences) < level).mean(), "clustered by prompt and rater": (clustered_p(differences) < level).mean()})


def power_table(study: Study, n_prompts: list[int], n_raters: list[int], **simulation) -> pd.DataFrame:
    """False-positive rate and power of both tests for each number of prompts and raters."""
    rows = []
    for prompts in n_prompts:
        for raters in n_raters:
            planned = study._replace(n_prompts=prompts, n_raters=raters)
            false, power = rejection_rates(planned._replace(difference=0.0), **simulation), rejection_rates(planned, **simulation)
            rows += [{"prompts": prompts, "raters": raters, "test": test, "false_positives": false[test], "power": power[test]} for test in false.index]
    return pd.DataFrame(rows)
