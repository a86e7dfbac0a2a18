import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from psychosafe_utils.figures import order_conditions, plot_composition, plot_learning_curve, plot_points, save_figure, set_style

matplotlib.use("Agg")

COUNTS = pd.DataFrame({
    "cluster": ["weapons", "weapons", "benign", "weapons"], "role": ["self", "may_harm", "curious", "self"], "n": [3, 2, 4, 1],
})
POINTS = pd.DataFrame({
    "metric": ["refusal", "refusal", "overall"], "condition": ["tuned", "generic", "generic"], "estimate": [0.5, 0.25, 0.75],
    "low": [0.4, 0.2, None], "high": [0.6, 0.3, None],
})
CURVE = pd.DataFrame({"step": [1, 2, 2], "split": ["train", "train", "val"], "loss": [3.0, 2.5, 2.75], "learning_rate": 1e-4})


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def small_figure():
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1], [0, 1])
    return figure


def test_a_figure_is_saved_as_png_svg_and_the_table_that_it_plots(tmp_path):
    path = save_figure(small_figure(), COUNTS, tmp_path / "new" / "folder", "01_x")
    assert path == tmp_path / "new" / "folder" / "01_x.png" and path.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in path.with_suffix(".svg").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), COUNTS)


def test_the_same_figure_twice_is_the_same_bytes(tmp_path):
    set_style()
    for name in ("a", "b"):
        save_figure(plot_points(POINTS[:1], x="estimate", xlabel="score"), POINTS, tmp_path / name, "x")
    for end in ("png", "svg", "csv"):
        assert (tmp_path / "a" / f"x.{end}").read_bytes() == (tmp_path / "b" / f"x.{end}").read_bytes()


def test_words_stay_words_in_an_svg(tmp_path):
    set_style()
    save_figure(plot_composition(COUNTS), COUNTS, tmp_path, "x")
    assert ">may harm<" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
    ("conditions", "ordered"),
    [
        (["reference", "tuned", "generic"], ["generic", "tuned", "reference"]), (["zeta", "alpha", "reference"], ["reference", "alpha", "zeta"]),
        (["tuned", "tuned", "tuned"], ["tuned"]), ([], []),
    ],
)
def test_conditions_in_the_workbooks_order(conditions, ordered):
    assert order_conditions(conditions) == ordered


def bars(figure):
    """(cluster, role) -> (left end, width) of every bar."""
    ax = figure.axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    return {
        (names[i], container.get_label()): (bar.get_x(), bar.get_width())
        for container in ax.containers for i, bar in enumerate(container.patches)
    }


def test_composition_stacks_the_counts():
    found = bars(plot_composition(COUNTS))
    assert found["weapons", "self"][1] == 4 and found["weapons", "may harm"][1] == 2 and found["benign", "curious"][1] == 4
    ends = sorted((left, left + width) for (cluster, _), (left, width) in found.items() if cluster == "weapons" and width)
    assert ends[0] == (0, ends[1][0]) and ends[1][1] == 6


def test_composition_of_one_row():
    assert bars(plot_composition(COUNTS[:1])) == {("weapons", "self"): (0, 3)}


@pytest.mark.filterwarnings("ignore:No artists with labels")
def test_composition_of_nothing():
    assert bars(plot_composition(COUNTS[:0])) == {}


def test_composition_takes_every_role():
    roles = ["self", "may_harm", "bystander", "survivor", "curious"]
    figure = plot_composition(pd.DataFrame({"cluster": "weapons", "role": roles, "n": 1}))
    assert sorted(t.get_text() for t in figure.axes[0].get_legend().get_texts()) == sorted(r.replace("_", " ") for r in roles)
    assert len({bar.get_hatch() for c in figure.axes[0].containers for bar in c.patches}) == 5


def test_points_have_a_panel_a_metric_and_a_row_a_condition():
    figure = plot_points(POINTS, x="estimate", xlabel="score")
    assert [ax.get_title() for ax in figure.axes] == ["refusal", "overall"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["generic", "tuned"]
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn[(0.25,)] == [0] and drawn[(0.5,)] == [1]
    assert drawn[(0.2, 0.3)] == [0, 0] and drawn[(0.4, 0.6)] == [1, 1]


def test_points_differ_by_marker_as_well_as_colour():
    lines = [line for line in plot_points(POINTS[:2], x="estimate", xlabel="").axes[0].lines if len(line.get_xdata()) == 1]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2


@pytest.mark.parametrize(("zero", "n"), [(0.0, 3), (None, 2)])
def test_the_line_at_zero_is_optional(zero, n):
    assert len(plot_points(POINTS[:1], x="estimate", xlabel="", zero=zero).axes[0].lines) == n


def test_a_point_without_bounds_is_drawn(tmp_path):
    figure = plot_points(POINTS[2:], x="estimate", xlabel="")
    assert [list(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == 1] == [[0.75]]
    assert save_figure(figure, POINTS, tmp_path, "x").exists()


def test_a_learning_curve_has_a_line_a_split():
    ax = plot_learning_curve(CURVE).axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert lines == {"train": ([1, 2], [3.0, 2.5]), "validation": ([2], [2.75])}
    assert ax.get_xlabel() and ax.get_ylabel()


def test_a_learning_curve_of_nothing():
    assert [len(line.get_xdata()) for line in plot_learning_curve(CURVE[:0]).axes[0].lines] == [0, 0]
