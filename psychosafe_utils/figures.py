"""Figures: each saved as PNG and SVG beside the table that it plots; readable in grey and by the colour-blind."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

METRIC_NAMES = {
    "refusal": "refusal (share)", "psychological_grounding": "grounding (1-5)",
    "external_reference": "reference (share)", "relevance": "relevance (1-5)", "overall": "overall (0-1)",
}
CONDITION_ORDER = ("generic", "psychosafe_compact", "psychosafe_full", "tuned", "tuned_psychosafe", "tuned_tokens", "reference")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS_ACROSS = 5


def set_style() -> None:
    """The workbook's look: seaborn whitegrid, a colour-blind palette, text kept as text in SVG."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "psychosafe", "figure.dpi": 80, "savefig.dpi": 150})


def save_figure(figure: plt.Figure, table: pd.DataFrame, folder: Path, name: str) -> Path:
    """Write `name`.png, .svg and .csv (the plotted table) into `folder`, and return the PNG's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    table.to_csv(folder / f"{name}.csv", index=False)
    return folder / f"{name}.png"


def order_conditions(conditions) -> list[str]:
    """Conditions in the order of the workbook, unknown ones last by name."""
    known = {name: i for i, name in enumerate(CONDITION_ORDER)}
    return sorted(set(conditions), key=lambda c: (known.get(c, len(known)), c))


def plot_composition(counts: pd.DataFrame) -> plt.Figure:
    """Stacked bars of prompts by cluster and role. Columns cluster, role, n."""
    wide = counts.pivot_table(index="cluster", columns="role", values="n", aggfunc="sum", fill_value=0)
    figure, ax = plt.subplots(figsize=(8, 3.8))
    left = pd.Series(0, index=wide.index)
    for role, hatch in zip(wide.columns, ("", "//", "..", "xx", "\\\\")):
        ax.barh(wide.index.str.replace("_", " "), wide[role], left=left, label=role.replace("_", " "), hatch=hatch, edgecolor="white")
        left = left + wide[role]
    ax.set(xlabel="prompts", ylabel="")
    ax.invert_yaxis()
    ax.legend(title="role", bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False)
    return figure


def plot_points(table: pd.DataFrame, *, x: str, xlabel: str, zero: float | None = 0.0, order: list[str] | None = None) -> plt.Figure:
    """Points with intervals, a panel a metric and a row a condition, on one axis. Columns metric, condition, `x`, low, high.

    Args:
        order: Of the conditions, first on top; that of the workbook when None.
    """
    metrics = list(dict.fromkeys(table.metric))
    conditions = order or order_conditions(table.condition)
    across = min(len(metrics), PANELS_ACROSS)
    down = -(-len(metrics) // across)
    figure, axes = plt.subplots(down, across, figsize=(2.5 * across + 1.4, (0.5 * len(conditions) + 1.6) * down), sharex=True, sharey=True, squeeze=False)
    palette = sns.color_palette("colorblind", len(conditions))
    for place in range(len(metrics), across * down):
        axes.flat[place].set_visible(False)
    for ax, metric in zip(axes.flat, metrics):
        rows = table[table.metric == metric].set_index("condition")
        for i, condition in enumerate(c for c in conditions if c in rows.index):
            row, y = rows.loc[condition], conditions.index(condition)
            ax.plot([row.low, row.high], [y, y], color=palette[y], lw=2.2, zorder=2)
            ax.plot(row[x], y, MARKERS[y % len(MARKERS)], color=palette[y], ms=8, mec="white", zorder=3)
        if zero is not None:
            ax.axvline(zero, color="0.35", lw=1, ls="--", zorder=1)
        ax.set(title=metric.replace("_", " "), xlabel=xlabel)
        ax.tick_params(labelbottom=True)  # shared axes label the lowest row alone
        ax.title.set_fontsize(11)
    axes[0][0].set_yticks(range(len(conditions)), [c.replace("_", " ") for c in conditions])
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def plot_refusal_curves(curves: pd.DataFrame) -> plt.Figure:
    """Refusal of harmful against harmless messages over all thresholds, a line a set, a mark at the chosen threshold. Columns set, over_refusal, refusal, chosen."""
    names = list(dict.fromkeys(curves["set"]))
    figure, ax = plt.subplots(figsize=(6.4, 4.6))
    for name, color, dash, marker in zip(names, sns.color_palette("colorblind", len(names)), ("-", "--", "-.", ":", "-"), MARKERS):
        rows = curves[curves["set"] == name]
        ax.plot(rows[~rows.chosen].over_refusal, rows[~rows.chosen].refusal, dash, color=color, lw=2, label=name)
        ax.plot(rows[rows.chosen].over_refusal, rows[rows.chosen].refusal, marker, color=color, ms=10, mec="black", zorder=3)
    ax.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
    ax.set(xlabel="share of harmless messages refused", ylabel="share of harmful messages refused", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def plot_reliability(table: pd.DataFrame) -> plt.Figure:
    """Share that is harmful against the probability given, a line a set, with the diagonal. Columns set, p, share."""
    names = list(dict.fromkeys(table["set"]))
    figure, ax = plt.subplots(figsize=(5.2, 4.6))
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, zorder=0)
    for name, color, marker in zip(names, sns.color_palette("colorblind", len(names)), MARKERS):
        rows = table[table["set"] == name]
        ax.plot(rows.p, rows.share, marker=marker, color=color, lw=1.8, ms=7, mec="white", label=name)
    ax.set(xlabel="probability of harm, by the guard", ylabel="share that is harmful", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    return figure


LAYER_LABELS = {"variance_ratio": "share of spread between\nsafe and unsafe prompts", "roc_auc": "ROC area of the direction"}


def plot_layers(curves: pd.DataFrame) -> plt.Figure:
    """An index by layer, a panel an index and a line a condition; a condition of one layer is a level line. Columns condition, layer, index, value."""
    names, indices = list(dict.fromkeys(curves.condition)), list(dict.fromkeys(curves["index"]))
    figure, axes = plt.subplots(1, len(indices), figsize=(4.6 * len(indices), 3.8), squeeze=False)
    palette = dict(zip(names, sns.color_palette("colorblind", len(names))))
    for ax, index in zip(axes[0], indices):
        for i, name in enumerate(names):
            rows = curves[(curves["index"] == index) & (curves.condition == name)].sort_values("layer")
            if len(rows) == 1:
                ax.axhline(rows.value.iloc[0], color=palette[name], ls=":", lw=2, label=name)
            elif len(rows):
                ax.plot(rows.layer, rows.value, ("-", "--", "-.", ":")[i % 4], color=palette[name], lw=2, label=name)
        ax.set(xlabel="layer", ylabel=LAYER_LABELS.get(index, index))
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.tight_layout()
    return figure


def plot_learning_curve(curve: pd.DataFrame) -> plt.Figure:
    """Loss a token by step, on train and validation. Table `curves`."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6))
    for split, marker, dash in (("train", "", "-"), ("val", "o", "--")):
        rows = curve[curve.split == split]
        ax.plot(rows.step, rows.loss, dash, marker=marker, label={"train": "train", "val": "validation"}[split])
    ax.set(xlabel="optimiser step", ylabel="loss on the answer\n(nats a token)")
    ax.legend(frameon=False)
    return figure
