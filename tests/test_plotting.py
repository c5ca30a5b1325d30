"""Every figure: right kind, labelled axes, the categories' own colours, and the numbers it was given."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from nbclient import NotebookClient

from srmir_lib.errors import InputError
from srmir_lib.evaluation import pictures, training_report
from srmir_lib.evaluation import plots as plotting
from srmir_lib.papers.grpo import group_advantages
from srmir_lib.policies.hacking_alarm import SIGNALS, Alarm
from srmir_lib.policies.reward import MONITOR
from srmir_lib.taxonomy import CATEGORIES, COLOURS

KEYS = list(CATEGORIES)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def spread(shift=0.0):
    random = np.random.default_rng(0)
    return {key: random.normal(shift, 1, 50) for key in KEYS}


def history(scale=1.0):
    rows = [{"step": i, "reward": scale * i, "kl": 0.01 * i, "completions/mean_length": 12.0} for i in range(5)]
    return [{"loss": 1.0}, *rows, {"step": 5, "monitor/insult": 1.0, "monitor/crimes": -1.0}]


CURVES = {"reward": "reward (calibrated score)", "kl": "KL to the reference (nats a token)"}
INTERVAL = {"label": "a", "estimate": 1, "low": 0, "high": 2}
RATES = {"base": {"none": 0.7, "fiction": 0.9, "encoding": 0.5}, "linear": {"none": 0.1, "encoding": 0.4}}
ALARM = Alarm(dict.fromkeys(SIGNALS, 0.0), dict.fromkeys(SIGNALS, 1.0), threshold=3.0, looks=1)
LOOKS = [{"step": 1, f"{MONITOR}insult": -4.0, f"{MONITOR}crimes": -4.0, "completions/mean_length": 1.0, "kl": 0.1}]
LOOKS[0] |= {"coherence/log_likelihood": 0.5, "coherence/distinct_bigrams": 5.0}
TURNED = [
    {"dial": dial, "panel": panel, "line": line, "level": level, "estimate": 0.1, "low": 0.0, "high": 0.3} | more
    for dial, levels in {"introspection": (0.5, 0.9), "topic_share": (0, 1)}.items()
    for panel, lines, more in (("gain", ["one"], {"reference": 0}), ("goodness", ["one", "two"], {}))
    for line in lines
    for level in levels
]
COURSE = [{"updates": 0, "KL": 0.0, "goodness": 0.5}, {"updates": 6, "KL": 0.02, "goodness": 0.7}]
MASK = [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1]]
PLACES = np.arange(6.0).reshape(3, 2)
FIGURES = {
    "category_counts": lambda: plotting.category_counts({k: i for i, k in enumerate(KEYS)}, dict.fromkeys(KEYS, 3)),
    "accuracy_heat_map": lambda: plotting.accuracy_heat_map(np.eye(7), KEYS, [*KEYS, "insult"], KEYS),
    "score_distributions": lambda: plotting.score_distributions(spread(1), spread(-1)),
    "pipeline": lambda: pictures.pipeline("00"),
    "probe_diagram": lambda: pictures.probe_diagram("how ? so .", dict.fromkeys(KEYS[:2], "harmful ?"), MASK),
    "loss_curves": lambda: pictures.loss_curves([-1, 0, 1], {"plain": [2, 1, 0], "limit": [2, 1, 2]}),
    "margin_plane": lambda: pictures.margin_plane(PLACES + 1, PLACES, [[1, 1, 0], [0, 1, 1]], [0.1, 0.2, 0.3]),
    "margin_histogram": lambda: plotting.margin_histogram(np.linspace(-1, 3, 40), np.arange(40) % 3 == 0),
    "gap_boxes": lambda: plotting.gap_boxes({"plain": {"easy": [1, 2, 3], "subtle": [0, 1]}}),
    "best_of_n_curves": lambda: plotting.best_of_n_curves(
        [{"method": name, "n": n, "proxy": n, "truth": n / 8} for name in ("plain", "oracle") for n in (1, 2, 4)]
    ),
    "training_curves": lambda: training_report.training_curves({"one": history(), "other": history(0.5)}, CURVES),
    "reward_scales": lambda: plotting.reward_scales(spread(2), spread()),
    "forest_plot": lambda: plotting.forest_plot([INTERVAL | {"group": "g"}], "difference (points)"),
    "dial_curves": lambda: plotting.dial_curves(TURNED),
    "frontier_curves": lambda: plotting.frontier_curves({"one": ([1, 0.5, 0], [0, 0.2, 1])}, {"one": (0.5, 0.2)}),
    "goodness_curves": lambda: plotting.goodness_curves({"one": COURSE, "two": COURSE[:1]}, {"beliefs": 0.97}, 0.01),
    "attack_success_by_family": lambda: plotting.attack_success_by_family(RATES, held_out=["encoding"]),
    "monitor_curves": lambda: training_report.monitor_curves([{"step": 1, f"{MONITOR}insult": 0.5}]),
    "labelled_points": lambda: training_report.labelled_points({"sft": (1, 2)}, "time (seconds)", "reward (score)"),
    "router_and_sum": lambda: training_report.router_and_sum("how ?", "so .", dict.fromkeys(KEYS, 0.5), "privacy"),
    "alarm_curves": lambda: training_report.alarm_curves(ALARM, {"policy": LOOKS}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_one_labelled_figure(name, tmp_path):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    labels = [figure.get_supxlabel(), *(axis.get_xlabel() for axis in figure.axes)]
    assert any("(" in label or "pairs" in label for label in labels), f"{name}: no horizontal axis says its unit"
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 3000


def test_every_public_function_is_tried():
    public = vars(plotting) | vars(training_report) | vars(pictures)
    drawing = {name for name, f in public.items() if getattr(f, "__annotations__", {}).get("return") is Figure}
    assert drawing == set(FIGURES)


@pytest.mark.parametrize("station", [*pictures.STATIONS, *pictures.APPENDICES])
def test_the_pipeline_lights_the_present_station_alone_and_its_words_fit(station):
    figure = pictures.pipeline(station)
    figure.canvas.draw()
    boxes = {patch.get_gid(): patch for patch in figure.axes[0].patches if patch.get_gid()}
    assert list(boxes) == ["00", "01", "02", "03", "A0", "04", "05", "06"]
    lit = {name: to_hex(box.get_facecolor()) != "#ffffff" for name, box in boxes.items()}
    assert lit == {name: name == pictures.APPENDICES.get(station, station) for name in boxes}
    assert all(box.get_linewidth() > 2 for name, box in boxes.items() if lit[name])
    words = [(text.get_gid(), text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts]
    shown = [(name, text, extent) for name, text, extent in words if text]
    for name, text, extent in shown:
        box = boxes[name].get_window_extent() if name else figure.bbox
        assert box.x0 < extent.x0 and extent.x1 < box.x1 and box.y0 < extent.y0 and extent.y1 < box.y1, text
    for at, (_, text, extent) in enumerate(shown):
        assert [other for _, other, place in shown[at + 1 :] if extent.overlaps(place)] == [], f"over {text!r}"


def test_the_pipelines_advantages_are_those_of_its_rewards():
    for station in ("04", "05"):
        (words,) = pictures.STATIONS[station][1].values()
        numbers = re.findall(r": R (.\d\.\d), A (.\d\.\d\d)", words.replace("−", "-"))
        rewards, advantages = (torch.tensor([float(n) for n in column]) for column in zip(*numbers, strict=True))
        assert len(rewards) == 4 and torch.allclose(group_advantages(rewards, 4), advantages, atol=0.005)


def test_an_unknown_station_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="'07'; choose one of 00, 01, 02, 03, A0, 04, 05, 06, A1, A6, A7"):
        pictures.pipeline("07")


def test_the_picture_of_probes_shows_every_question_and_the_mask_as_it_is():
    above, below = FIGURES["probe_diagram"]().axes
    texts = [text.get_text() for text in above.texts]
    assert texts.count("harmful ?") == 2 and "how ? so ." in texts
    assert (np.array(below.images[0].get_array()) < 0.5).astype(int).tolist() == MASK
    assert [label.get_text() for label in below.get_xticklabels()] == ["the text", "1", "2"]


def test_the_picture_of_margins_tells_the_bits_apart_without_colour():
    plane, control = FIGURES["margin_plane"]().axes
    assert [line.get_marker() for line in plane.lines] == ["o", "^"]
    assert plane.lines[0].get_xydata().tolist() == [[1, 2], [3, 4], [2, 3], [4, 5]], (
        "who refuses: two better, two worse"
    )
    drawn = {line.get_label(): line.get_xydata().tolist() for line in control.lines}
    assert drawn == dict(zip(pictures.BITS.values(), [[[0.1, 1.0]], [[0.2, 1.0]], [[0.3, 1.0]]], strict=True))
    assert len(pictures.margin_plane(PLACES, PLACES, np.zeros((2, 3))).axes) == 1, "harm that nobody knows is not drawn"


def test_points_of_a_gap_of_yes_or_no_stand_side_by_side():
    places = np.arange(20.0).reshape(10, 2)
    control = pictures.margin_plane(places + 1, places, np.ones((2, 10)), [0, 1] * 5).axes[1]
    drawn = next(line.get_xdata() for line in control.lines if len(line.get_xdata()))
    assert len(set(np.round(drawn, 6))) == 10 and (np.abs(drawn - [0, 1] * 5) < 0.1).all()
    assert [tick.get_text() for tick in control.get_xticklabels()] == ["0", "1"] or list(control.get_xticks()) == [0, 1]


def test_a_loss_is_marked_where_it_is_least_but_at_no_end():
    lines = FIGURES["loss_curves"]().axes[0].lines
    assert [line.get_xydata().tolist() for line in lines if len(line.get_xdata()) == 1] == [[[0, 1]]]


def test_main_rows_of_a_forest_stand_out():
    rows = [INTERVAL | {"label": name} for name in "abc"]
    axis = plotting.forest_plot(rows, "accuracy", main=("c", "a")).axes[0]
    dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert len({line.get_marker() for line in (dots[0], dots[2])}) == 2
    assert dots[1].get_color() == plotting.PALE not in (dots[0].get_color(), dots[2].get_color())


def test_categories_keep_their_colours_and_order():
    axis = FIGURES["category_counts"]().axes[0]
    solid = axis.containers[1]
    assert [to_hex(bar.get_facecolor()).upper() for bar in solid] == [COLOURS[key].upper() for key in KEYS]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(CATEGORIES.values())


def test_heat_map_prints_finite_cells_only():
    matrix = np.full((2, 7), 0.5)
    matrix[1, 3] = np.nan
    figure = plotting.accuracy_heat_map(matrix, KEYS, ["insult", "crimes", "insult"], row_labels=["insult", "all"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50"] * 13
    counted = [text.get_text().rpartition(" ")[2] for text in figure.axes[0].get_xticklabels()]
    assert counted == [{"insult": "(2)", "crimes": "(1)"}.get(name, "(0)") for name in KEYS]


def test_forest_plot_draws_each_interval():
    rows = [
        {"label": "a", "estimate": 0.5, "low": 0.25, "high": 1.0},
        {"label": "b", "estimate": 0, "low": -1, "high": 1},
    ]
    axis = plotting.forest_plot(rows, "difference").axes[0]
    drawn = [tuple(line.get_xdata()) for line in axis.lines]
    assert (0.25, 1.0) in drawn and (-1, 1) in drawn and (0.5,) in drawn
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_dial_curves_draw_each_interval_and_tell_lines_apart_without_colour():
    figure = plotting.dial_curves(TURNED)
    gain, _, goodness, last = figure.axes
    assert [axis.get_xlabel().split()[0] for axis in figure.axes] == ["introspection", "topic_share"] * 2
    assert [axis.get_ylabel() for axis in figure.axes] == ["gain", "", "goodness", ""]
    (drawn,) = gain.containers
    (bars,) = drawn.lines[2]
    assert [bar.tolist() for bar in bars.get_segments()] == [
        [[pytest.approx(level), pytest.approx(0.0)], [pytest.approx(level), pytest.approx(0.3)]] for level in (0.5, 0.9)
    ]
    assert [list(line.get_ydata()) for line in gain.lines if line.get_linestyle() == "--"] == [[0, 0]]
    looks = [(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in goodness.containers]
    assert len(set(looks)) == 2 and looks[0] == (drawn.lines[0].get_marker(), drawn.lines[0].get_linestyle())
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["one", "two"]


def test_forest_plot_names_its_lines():
    axis = plotting.forest_plot([INTERVAL], "goodness", 0.5, {"ceiling": 0.9, "one draft": 0.7}).axes[0]
    upright = [line for line in axis.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    assert [line.get_xdata()[0] for line in upright] == [0.5, 0.9, 0.7]
    assert len({line.get_linestyle() for line in upright}) == 3, "told apart in grey"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["ceiling (0.90)", "one draft (0.70)"]


def test_courses_of_goodness_are_told_apart_without_colour_and_name_their_ceiling():
    figure = plotting.goodness_curves({"one": COURSE, "two": COURSE}, {"beliefs": 0.97}, 0.01)
    (axis,) = figure.axes
    drawn = {line.get_label(): line for line in axis.lines}
    assert drawn["one"].get_xydata().tolist() == [[0.0, 0.5], [0.02, 0.7]]
    looks = [(line.get_linestyle(), line.get_marker()) for line in (drawn["one"], drawn["two"])]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    assert [text.get_text() for text in axis.texts] == ["beliefs (0.97)"] and "equal KL" in drawn


def test_a_frontier_is_drawn_in_percent_with_the_policy_on_it():
    axis = FIGURES["frontier_curves"]().axes[0]
    assert list(axis.lines[0].get_xdata()) == [100, 50, 0] and list(axis.lines[0].get_ydata()) == [0, 20, 100]
    assert (axis.lines[1].get_xdata()[0], axis.lines[1].get_ydata()[0]) == (50, 20)


def test_training_curves_skip_rows_without_the_key():
    reward, kl = training_report.training_curves({"one": history(), "other": history(0.5)}, CURVES).axes
    assert [list(line.get_xdata()) for line in reward.lines] == [[0, 1, 2, 3, 4]] * 2
    assert [list(line.get_ydata()) for line in reward.lines] == [[0, 1, 2, 3, 4], [0, 0.5, 1, 1.5, 2]]
    assert [line.get_label() for line in kl.lines] == ["one", "other"] and kl.get_title() == CURVES["kl"]


def test_the_router_asks_one_and_the_sum_all_and_an_unknown_prompt_is_a_sum():
    scores = dict(zip(KEYS, (7, 0, 0, 0, 0, 14, 0), strict=True))
    for routed, reward, arrows in (("privacy", "R = +14.00", 2), ("unknown", "R = +3.00", 14)):
        axes = training_report.router_and_sum("how ?", "so .", scores, routed).axes
        texts = [[text.get_text() for text in axis.texts] for axis in axes]
        assert reward in texts[0] and "R = +3.00" in texts[1]
        assert [text.count("") for text in texts] == [arrows, 14], "two arrows for each model that is asked"


def test_the_ceiling_stands_where_goodness_is_drawn():
    history = [{"step": step, "worth": 0.1 * step, "kl": 0.0} for step in range(3)]
    figure = training_report.training_curves({"a": history}, {"worth": "worth", "kl": "KL (nats)"}, {"worth": 0.9})
    across = [[line for line in axis.lines if line.get_linestyle() == ":"] for axis in figure.axes]
    assert [list(line.get_ydata()) for line in across[0]] == [[0.9, 0.9]] and across[1] == []
    axis = training_report.labelled_points({"a": (1, 0.5)}, "x (s)", "y", lines={"ceiling": 0.9}).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines if line.get_label() == "ceiling"] == [[0.9, 0.9]]


def test_held_out_families_stand_last_with_a_star():
    axis = plotting.attack_success_by_family(RATES, held_out=["none"]).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fiction", "encoding", "none *"]
    assert list(axis.lines[0].get_xdata()) == pytest.approx([90, 50, 70])


def test_every_figure_of_a_notebook_shows():
    """In a real kernel: a style context that resets matplotlib's interactive mode would show the first figure only."""
    draw = "plotting.forest_plot([{'label': 'a', 'estimate': 0, 'low': -1, 'high': 1}], 'difference');"
    sources = ["from srmir_lib.evaluation import plots as plotting", f"figure = {draw}", f"figure = {draw}"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [[o.output_type for o in cell.outputs if "image/png" in o.get("data", {})] for cell in notebook.cells]
    assert shown == [[], ["display_data"], ["display_data"]]
