import base64
import json
import re
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from psychosafe_utils import report
from psychosafe_utils.figures import save_figure
from psychosafe_utils.judges import judgement_rows
from psychosafe_utils.report import difference_table, mean_table, published_table, write_report
from psychosafe_utils.stats import compare_conditions
from psychosafe_utils.tables import TableError, write_table

matplotlib.use("Agg")

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\" {{ 7 * 7 }} {% raw %}"
NAN = float("nan")


def effects_of(generic, tuned, metric="refusal"):
    rows = [
        {"prompt_id": f"p{i}", "cluster": "benign", "condition": condition, metric: value}
        for condition, values in {"generic": generic, "tuned": tuned}.items() for i, value in enumerate(values)
    ]
    return compare_conditions(pd.DataFrame(rows), baseline="generic", metrics=[metric], n_boot=100)


def write_run(folder, *, response="Water it on Mondays.", prompt="How do I repot a fern?", effects=None, parameters=None):
    """A minimal run: two prompts, two conditions, one figure. `response` is the tuned model's first answer."""
    tables = folder / "tables"
    prompts = pd.DataFrame({
        "prompt_id": ["a-1", "b-1"], "text": [prompt, "Why do cats purr?"], "cluster": ["benign", "weapons"], "role": "curious", "split": "test",
        "scenario_id": ["a", "b"], "pair_id": "", "region": "GB", "register": "", "hard_case": "", "also": "", "kind": "", "source": "written", "licence": "CC-BY-4.0",
    })
    generations = pd.DataFrame({
        "generation_id": ["g0", "g1", "g2", "g3"], "prompt_id": ["a-1", "a-1", "b-1", "b-1"], "model": "tiny", "revision": "", "adapter": ["", "lora"] * 2,
        "condition": ["generic", "tuned"] * 2, "seed": 0, "response": ["Gently.", response, "", "They are content."], "finish_reason": "stop",
        "n_tokens": 3, "p_refuse": NAN,
    })
    judgements = judgement_rows(generations.merge(prompts, on="prompt_id"))
    effects = effects_of([0, 0, 1, 1], [1, 0, 1, 1]) if effects is None else effects
    write_table(prompts, tables / "01_prompts.parquet", "prompts", parameters={})
    write_table(generations, tables / "04_generations.parquet", "generations", parameters={})
    write_table(judgements, tables / "04_judgements.parquet", "judgements", parameters={})
    write_table(effects, tables / "04_effects.parquet", "effects", parameters={"baseline": "generic"})
    step = {"key": "0", "seconds": 61.6, "parameters": {"run_dir": "quick", "seed": 7} | (parameters or {})}
    (folder / "run.json").write_text(json.dumps({"notebooks": {"01_corpus": step}}), encoding="utf-8")
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    save_figure(figure, effects, folder / "figures", "04_points")
    plt.close(figure)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quick")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of one plain run, to be read or spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "quick"))


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_a_report_says_what_was_run(run):
    page = page_of(run)
    assert (run / "report.html").exists()
    assert "run <code>quick</code>" in page and "Model <b>tiny</b>, adapter lora; rater: rule." in page
    assert re.search(r"2 test prompts, 4 answers,\s+5 unscored judgements", page)  # the empty answer fails on five criteria
    assert "62 s" in page and "{&#34;seed&#34;: 7}" in page and "run_dir" not in page
    assert "Content note." in page and "findahelpline.com" in page
    assert "How do I repot a fern?" in page and "They are content." in page and "(empty)" in page


def test_the_figure_is_inside_the_page_and_nothing_is_fetched(run):
    page = page_of(run)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(p) for p in pictures] == [(run / "figures" / "04_points.png").read_bytes()]
    assert len(re.findall(r"\ssrc=", page)) == 1 and not re.search(r"<(link|script|iframe|object)\b|@import|url\(", page)


def test_html_in_a_response_is_shown_and_not_run(tmp_path):
    page = page_of(write_run(tmp_path / "quick", response=HOSTILE))
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page and "&amp; &#34;quotes&#34; {{ 7 * 7 }} {% raw %}" in page


def test_html_in_a_prompt_a_parameter_and_the_runs_name_is_escaped(tmp_path):
    page = page_of(write_run(tmp_path / "<i>quick", prompt=f"Why? {HOSTILE}", parameters={"model": HOSTILE}))
    assert "<script" not in page and "<i>" not in page and "<img src=x" not in page
    assert page.count("&lt;i&gt;quick") == 2


def test_html_in_a_table_is_escaped(tmp_path):
    effects = effects_of([0, 1], [1, 1])
    effects["contrast"] = effects.contrast.str.replace("tuned", "<b>tuned")
    run = write_run(tmp_path / "quick", effects=effects)
    pd.DataFrame({"metric": [HOSTILE]}).to_csv(run / "figures" / "04_published.csv", index=False)
    page = page_of(run)
    assert "<script" not in page and "<b>tuned" not in page and "&lt;b&gt;tuned" in page and page.count("&lt;script") == 1


def test_the_published_figures_are_shown_where_they_were_written(run):
    assert "Beside the published figures" not in page_of(run)
    pd.DataFrame({"metric": ["refusal"], "published": ["+12.3%"]}).to_csv(run / "figures" / "04_published.csv", index=False)
    assert "Beside the published figures" in page_of(run) and "+12.3%" in page_of(run)


def test_an_old_registry_gives_a_warning(run, monkeypatch):
    for checked, warns in (("2020-01-01", True), (str(pd.Timestamp.now().date()), False)):
        monkeypatch.setattr(report, "registry", lambda checked=checked: pd.DataFrame({"last_checked": [checked, "2999-01-01"]}))
        page = page_of(run)
        assert ('<p class="warn">' in page) == warns and f"Helplines last checked {checked}." in page


@pytest.mark.parametrize("table", ["01_prompts", "04_generations", "04_judgements", "04_effects"])
def test_a_missing_table_is_named_with_its_notebook(run, table):
    (run / "tables" / f"{table}.parquet").unlink()
    with pytest.raises(TableError, match=rf"{table}\.parquet is missing; run the notebook that writes it first \({table[:2]}_"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_report_of_a_baseline_alone(tmp_path):
    effects = effects_of([0, 1], [1, 1])
    page = page_of(write_run(tmp_path / "quick", effects=effects[effects.contrast == "generic"]))
    assert "Difference to generic" in page and "refusal (share)" in page


def test_means_by_hand():
    table = mean_table(effects_of([0, 0, 1, 1], [1, NAN, 1, 1]))
    assert table.condition.tolist() == ["generic", "tuned"] and table.prompts.tolist() == [4, 3] and table.unscored.tolist() == [0, 1]
    assert re.fullmatch(r"0\.50 \[0\.\d\d, 1\.00\]", table["refusal (share)"][0]) and table["refusal (share)"][1] == "1.00 [1.00, 1.00]"


def test_differences_by_hand():
    row = difference_table(effects_of([1, 2, 4, 5], [2, 3, 5, 6])).iloc[0]
    assert (row.contrast, row.metric, row.difference) == ("tuned - generic", "refusal (share)", "+1.00 [+1.00, +1.00]")
    assert row.relative == "+33%"  # 16 / 12 - 1
    # Of 16 pairs 10 are greater (1 + 2 + 3 + 4), 4 less and 2 equal: 6 / 16.
    assert row["Cliff's delta"] == "0.38" and (row.prompts, row.unscored) == (4, 0)


def test_equal_conditions_and_a_baseline_of_zeros():
    row = difference_table(effects_of([0, 0, 0], [0, 0, 0])).iloc[0]
    assert (row.difference, row.relative, row["p (Holm)"], row["Cliff's delta"]) == ("+0.00 [+0.00, +0.00]", "-", "1", "0.00")


def test_a_single_prompt_shows_dashes_and_no_nan():
    effects = effects_of([1], [2])
    assert mean_table(effects)["refusal (share)"].tolist() == ["1.00 [-, -]", "2.00 [-, -]"]
    assert "nan" not in difference_table(effects).to_string().lower()


def test_a_single_prompt_beside_the_published_figures_shows_no_nan():
    published = pd.DataFrame({"metric": ["refusal"], "published_relative_change": [0.5]})
    assert "nan" not in published_table(effects_of([1], [2]), published, "tuned", "generic").to_string().lower()


def test_conditions_without_a_common_prompt_have_no_row():
    assert difference_table(effects_of([1, NAN], [NAN, 1])).empty


def test_ours_stands_beside_the_published():
    published = pd.DataFrame({"metric": ["refusal", "relevance"], "published_relative_change": [0.281, -0.05]})
    table = published_table(effects_of([1, 2], [2, 4]), published, "tuned", "generic")
    assert table.values.tolist() == [
        ["refusal (share)", "+28.1%", "+100.0% [+100.0%, +100.0%]"], ["relevance (1-5)", "-5.0%", "-"],
    ]


def test_cluster_table_has_a_row_a_condition_and_a_column_a_cluster():
    from psychosafe_utils.report import cluster_table

    rows = [
        {"contrast": c, "metric": "overall", "cluster": k, "estimate": e, "low": e - 0.1, "high": e + 0.1, "n_prompts": 4, "n_unscored": u}
        for c, k, e, u in (("tuned", "all", 0.5, 1), ("tuned", "weapons", 0.5, 1), ("generic", "all", 0.2, 0), ("generic", "weapons", 0.2, 0), ("tuned - generic", "all", 0.3, 1))
    ]
    table = cluster_table(pd.DataFrame(rows), "overall")
    assert table.to_dict("records") == [
        {"condition": "generic", "weapons": "0.20 [0.10, 0.30]", "prompts": 4, "unscored": 0},
        {"condition": "tuned", "weapons": "0.50 [0.40, 0.60]", "prompts": 4, "unscored": 1},
    ]


def test_the_guards_check_of_every_answer_is_shown(tmp_path):
    from psychosafe_utils.guard import Verdict, guard_rows

    tmp_path = write_run(tmp_path / "run")
    assert "guard" not in write_report(tmp_path).read_text().lower()
    verdicts = [Verdict("yes", "no", "yes"), Verdict("yes", "yes", "no"), Verdict("no", "n/a", "n/a"), Verdict("", "", "")]
    rows = guard_rows(["g0", "g1", "g2", "g3"], verdicts, "guard:embedded", [""] * 4)
    write_table(rows, tmp_path / "tables" / "09_judgements.parquet", "judgements", parameters={})
    table = report.guard_table(rows, pd.read_parquet(tmp_path / "tables" / "04_generations.parquet")).set_index("condition")
    assert table.loc["generic"].to_dict() == {"prompt harmful": "0.50", "response harmful": "1.00", "response refuses": "0.00", "unread": 0}
    assert table.loc["tuned"].to_dict() == {"prompt harmful": "1.00", "response harmful": "0.00", "response refuses": "1.00", "unread": 3}
    html = write_report(tmp_path).read_text()
    assert html.count("flagged by the guard") == 1 and "The guard's check of every answer" in html
