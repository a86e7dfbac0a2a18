"""The report of a run: one HTML page that needs nothing else. Model output is untrusted and escaped by the template."""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from psychosafe_utils.figures import METRIC_NAMES, order_conditions
from psychosafe_utils.helplines import registry
from psychosafe_utils.tables import read_table

STALE_DAYS = 180
CONTENT_NOTE = (
    "This material mentions suicide, self-harm, substance use, violence, weapons and sexual crime in abstract terms. It contains "
    "no instructions or graphic description. If this is close to home, findahelpline.com lists free support by country; in "
    "immediate danger call your emergency number."
)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>PsychoSafe workbook: {{ run_id }}</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}td,th{padding:.3rem .6rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}
td{white-space:nowrap}td blockquote,td code{white-space:pre-wrap;overflow-wrap:anywhere}.note{background:#f3f3f0;padding:.8rem 1rem;border-left:4px solid #767676}
img{max-width:100%}pre,blockquote{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:.2rem 0}summary{cursor:pointer;padding:.3rem 0}
.warn{background:#fff3cd;padding:.6rem 1rem}h2{margin-top:2.2rem}</style></head><body>
<h1>PsychoSafe workbook: run <code>{{ run_id }}</code></h1>
<p class="note"><b>Content note.</b> {{ content_note }} Research material, not a clinical tool.</p>
<p>Model <b>{{ model }}</b>{% if adapter %}, adapter {{ adapter }}{% endif %}; rater: {{ raters }}. {{ n_prompts }} test prompts, {{ n_generations }} answers,
{{ n_unscored }} unscored judgements. Helplines last checked {{ checked }}.</p>
{% if stale %}<p class="warn">The helpline registry is {{ stale }} days old. Re-verify every contact with its operator before use.</p>{% endif %}
<h2>Comparison</h2><p>Mean score with its 95&nbsp;% bootstrap interval over prompts. <code>reference</code> is the answer that was written by hand for the prompt.
<code>overall</code> is the plain mean of the four criteria, each put on 0 to 1; the published formula is unknown.</p>
{{ table(means) }}
<h3>By risk cluster: overall (0-1)</h3>{{ table(clusters) }}
<h3>Difference to {{ baseline }}, paired by prompt</h3>{{ table(differences) }}
{% if published is not none %}<h3>Beside the published figures</h3><p>Relative change against a generic prompt. Published: Qwen3.5-27B with the full prompt and an LLM judge.
Here: another model, corpus and rater; the signs may be compared, the sizes may not.</p>{{ table(published) }}{% endif %}
{% if guard is not none %}<h3>The guard's check of every answer</h3><p>Share of answers whose request it takes for harmful, that refuse, and that it flags: a harmful request, answered without a refusal.</p>{{ table(guard) }}{% endif %}
{% for name, picture in figures %}<h2>{{ name }}</h2><img alt="{{ name }}" src="data:image/png;base64,{{ picture }}">{% endfor %}
<h2>The same prompts, every condition</h2>{% for prompt in examples %}<details><summary><b>{{ prompt.cluster.replace('_',' ') }}</b>: {{ prompt.text }}</summary>
<table>{% for answer in prompt.answers %}<tr><th>{{ answer.condition }}{% if answer.flagged %}<br><small>flagged by the guard</small>{% endif %}</th><td><blockquote>{{ answer.response or '(empty)' }}</blockquote></td></tr>{% endfor %}</table></details>{% endfor %}
<h2>How this run was made</h2><table>{% for step in steps %}<tr><td>{{ step.notebook }}</td><td>{{ '%.0f s'|format(step.seconds) }}</td><td><code>{{ step.parameters }}</code></td></tr>{% endfor %}</table>
<p>Versions: {{ versions }}.</p></body></html>"""
TABLE = """<table><tr>{% for c in frame.columns %}<th>{{ c }}</th>{% endfor %}</tr>{% for row in frame.itertuples(index=False) %}<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}</table>"""


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"


def _signed(value: float, form: str = "+.2f") -> str:
    return "-" if pd.isna(value) else format(value, form)


def mean_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Pooled means as text `estimate [low, high]`, a row a condition and a column a metric, with prompts and unscored counts."""
    rows = effects[(effects.cluster == "all") & ~effects.contrast.str.contains(" [-/] ")]
    table = []
    for condition in order_conditions(rows.contrast):
        of = rows[rows.contrast == condition].set_index("metric")
        cells = {METRIC_NAMES.get(m, m): f"{_number(r.estimate)} [{_number(r.low)}, {_number(r.high)}]" for m, r in of.iterrows()}
        table.append({"condition": condition, **cells, "prompts": int(of.n_prompts.max()), "unscored": int(of.n_unscored.sum())})
    return pd.DataFrame(table)


def cluster_table(effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means of one metric as text, a row a condition and a column a cluster, with the prompts and unscored answers of all."""
    rows = effects[(effects.metric == metric) & ~effects.contrast.str.contains(" [-/] ")]
    cells = rows.assign(cell=[f"{_number(r.estimate)} [{_number(r.low)}, {_number(r.high)}]" for r in rows.itertuples()])
    wide = cells.pivot(index="contrast", columns="cluster", values="cell").drop(columns="all", errors="ignore")
    wide.columns = [c.replace("_", " ") for c in wide.columns]
    counts = rows[rows.cluster != "all"].groupby("contrast")[["n_prompts", "n_unscored"]].sum()
    wide = wide.join(counts.rename(columns={"n_prompts": "prompts", "n_unscored": "unscored"})).rename_axis("condition").reset_index()
    return wide.sort_values("condition", key=lambda c: c.map(order_conditions(c).index)).reset_index(drop=True)


def difference_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Pooled paired differences: estimate, interval, relative change, Holm's p, Cliff's delta, prompts, unscored."""
    pooled = effects[effects.cluster == "all"]
    relative = pooled[pooled.contrast.str.contains(" / ")].copy()
    relative["contrast"] = relative.contrast.str.replace(" / ", " - ").str.removesuffix(" - 1")
    relative = relative.set_index(["contrast", "metric"]).estimate
    rows = [
        {
            "contrast": r.contrast, "metric": METRIC_NAMES.get(r.metric, r.metric),
            "difference": " ".join([_signed(r.estimate), f"[{_signed(r.low)}, {_signed(r.high)}]"]),
            "relative": "-" if pd.isna(relative.get((r.contrast, r.metric))) else f"{relative[(r.contrast, r.metric)]:+.0%}",
            "p (Holm)": "-" if pd.isna(r.p_holm) else f"{r.p_holm:.3g}", "Cliff's delta": _number(r.effect_size),
            "prompts": r.n_prompts, "unscored": r.n_unscored,
        }
        for r in pooled[pooled.contrast.str.contains(" - ") & (pooled.test != "")].itertuples()
    ]
    return pd.DataFrame(rows)


def published_table(effects: pd.DataFrame, published: pd.DataFrame, condition: str, baseline: str) -> pd.DataFrame:
    """Our relative changes of one condition beside the published ones.

    Args:
        published: Columns metric, published_relative_change.
    """
    ours = effects[(effects.cluster == "all") & (effects.contrast == f"{condition} / {baseline} - 1")].set_index("metric")
    rows = [
        {
            "metric": METRIC_NAMES.get(r.metric, r.metric), "published": f"{r.published_relative_change:+.1%}",
            f"here ({condition})": "-" if r.metric not in ours.index or pd.isna(ours.estimate[r.metric]) else
            "{} [{}, {}]".format(*(_signed(ours.loc[r.metric, c], "+.1%") for c in ("estimate", "low", "high"))),
        }
        for r in published.itertuples()
    ]
    return pd.DataFrame(rows)


def guard_table(judgements: pd.DataFrame, generations: pd.DataFrame) -> pd.DataFrame:
    """What a guard says of each condition's answers: shares of its three judgements that it gave, with the number of judgements unread or failed."""
    rows = judgements.merge(generations[["generation_id", "condition"]], on="generation_id")
    shares = rows.pivot_table(index="condition", columns="criterion", values="score", aggfunc="mean").map(_number)
    unread = rows[rows.status.isin(("parse_error", "failed"))].groupby("condition").size().reindex(shares.index, fill_value=0)
    shares.columns = [c.replace("_", " ") for c in shares.columns]
    return shares.assign(unread=unread).loc[order_conditions(shares.index)].reset_index()


def _examples(generations: pd.DataFrame, prompts: pd.DataFrame, flagged: set[str]) -> list[dict]:
    """The first test prompt of each cluster, with every condition's answer, marked where a guard flagged it."""
    examples = []
    for cluster, rows in prompts[prompts.prompt_id.isin(generations.prompt_id)].groupby("cluster"):
        answers = generations[generations.prompt_id == rows.prompt_id.iloc[0]].set_index("condition")
        examples.append({
            "cluster": cluster, "text": rows.text.iloc[0],
            "answers": [{"condition": c, "response": answers.response[c], "flagged": answers.generation_id[c] in flagged} for c in order_conditions(answers.index)],
        })
    return examples


def _steps(run: dict) -> list[dict]:
    return [
        {"notebook": name, "seconds": step["seconds"], "parameters": json.dumps({k: v for k, v in step["parameters"].items() if k != "run_dir"})}
        for name, step in sorted(run["notebooks"].items())
    ]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` of a run whose notebooks 01-04 have been run, and return its path."""
    tables, run = run_dir / "tables", json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    effects, judgements = read_table(tables / "04_effects.parquet", "effects"), read_table(tables / "04_judgements.parquet", "judgements")
    generations, prompts = read_table(tables / "04_generations.parquet", "generations"), read_table(tables / "01_prompts.parquet", "prompts")
    sidecar = json.loads((tables / "04_effects.parquet.json").read_text(encoding="utf-8"))
    baseline, published_file = sidecar["parameters"]["baseline"], run_dir / "figures" / "04_published.csv"
    guarded = read_table(tables / "09_judgements.parquet", "judgements") if (tables / "09_judgements.parquet").exists() else None
    flagged = set() if guarded is None else set(guarded[(guarded.criterion == "response_harmful") & (guarded.score == 1)].generation_id)
    age = (date.today() - date.fromisoformat(registry().last_checked.min())).days
    environment = Environment(autoescape=True)
    html = environment.from_string(PAGE).render(
        run_id=run_dir.name, content_note=CONTENT_NOTE, model=", ".join(sorted(set(generations.model) - {"written by hand"})),
        adapter=", ".join(sorted(set(generations.adapter) - {""})), raters=", ".join(sorted(set(judgements.rater))),
        n_prompts=generations.prompt_id.nunique(), n_generations=len(generations), n_unscored=int(judgements.score.isna().sum()),
        checked=registry().last_checked.min(), stale=age if age > STALE_DAYS else 0, baseline=baseline,
        means=mean_table(effects), clusters=cluster_table(effects, "overall"), differences=difference_table(effects),
        published=pd.read_csv(published_file) if published_file.exists() else None,
        figures=[(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in sorted((run_dir / "figures").glob("*.png"))],
        examples=_examples(generations, prompts, flagged), guard=None if guarded is None else guard_table(guarded, generations), steps=_steps(run),
        versions=", ".join(f"{k} {v}" for k, v in sidecar["versions"].items()),
        table=lambda frame: Markup(environment.from_string(TABLE).render(frame=frame)),
    )
    path = run_dir / "report.html"
    path.write_text(html, encoding="utf-8")
    return path

