"""Figures are read back: bar heights, texts, positions."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.text import Text

from chestxray import plots
from chestxray.evaluation.calibration import decision_curve, reliability_table


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    """No function shows its figure, changes the global style, or warns while it is drawn."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show() was called"))
    before = dict(matplotlib.rcParams)
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def vertical(axis) -> list[float]:
    """Where the vertical lines of a panel stand."""
    lines = [np.asarray(line.get_xdata(), float) for line in axis.lines]
    return [x[0] for x in lines if len(x) == 2 and x[0] == x[1]]


def bars(axis) -> dict[str, list[tuple[float, float]]]:
    """Legend name -> (bottom, height) of each of its bars."""
    return {c.get_label(): [(b.get_y(), b.get_height()) for b in c] for c in axis.containers}


@pytest.fixture
def catalog():
    rows = [
        ("test", 0, "normal", 3),
        ("test", 1, "virus", 1),
        ("train", 0, "normal", 6),
        ("train", 1, "bacteria", 10),
        ("train", 1, "virus", 8),
    ]
    return pd.concat(
        [
            pd.DataFrame({"split": [split] * n, "label": label, "subtype": subtype})
            for split, label, subtype, n in rows
        ],
        ignore_index=True,
    )


def test_class_balance_counts_by_hand(catalog):
    figure = plots.class_balance(catalog)
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["train\n24 images", "test\n4 images"]
    assert bars(axis) == {
        "NORMAL": [(0, 6), (0, 3)],
        "PNEUMONIA, bacterial": [(0, 10), (0, 0)],
        "PNEUMONIA, viral": [(10, 8), (0, 1)],
    }
    assert {"6\n25 %", "18\n75 %", "3\n75 %", "1\n25 %", "10", "8"} <= set(texts(figure))
    assert axis.containers[0][0].get_facecolor() == matplotlib.colors.to_rgba("#0072B2")


def test_class_balance_without_subtypes_uses_the_class_colour(catalog):
    axis = plots.class_balance(catalog.assign(subtype="")).axes[0]
    assert bars(axis) == {"NORMAL": [(0, 6), (0, 3)], "PNEUMONIA": [(0, 18), (0, 1)]}
    assert axis.containers[1][0].get_facecolor() == matplotlib.colors.to_rgba("#D55E00")


def test_image_sizes_draws_each_image_and_the_median_aspect():
    table = pd.DataFrame(
        {"width": [200, 300, 400, 600], "height": [200, 200, 200, 200], "label": [0, 0, 1, 1]}
    )
    scatter, histogram = plots.image_sizes(table).axes
    points = np.concatenate([c.get_offsets() for c in scatter.collections])
    assert sorted(points[:, 0]) == [200, 300, 400, 600] and set(points[:, 1]) == {200}
    assert scatter.get_xscale() == scatter.get_yscale() == "log"
    for steps, ratios in zip(histogram.collections, ([1, 1.5], [2, 3]), strict=True):
        outline = steps.get_paths()[0].vertices  # two images a class, 50 % each, at their ratios
        raised = outline[outline[:, 1] == 50, 0]
        assert outline[:, 1].max() == 50 and abs(raised.min() - ratios[0]) < 0.1
        assert abs(raised.max() - ratios[1]) < 0.1
    assert legend(histogram) == ["NORMAL (n = 2, median 1.25)", "PNEUMONIA (n = 2, median 2.50)"]


def test_image_sizes_of_one_size_and_class():
    table = pd.DataFrame({"width": [64] * 3, "height": [48] * 3, "label": 1})
    figure = plots.image_sizes(table)
    assert figure.axes[0].get_title("left") == "Size, all 64 × 48"
    low, high = figure.axes[0].get_xlim()
    assert low < 64 < high and any(low < tick < high for tick in figure.axes[0].get_xticks())


def test_framing_draws_the_boxes_and_the_doses():
    columns = ["official_split", "label", "left", "top", "right", "bottom", "aspect"]
    rows = [
        ("train", 0, 0.1, 0.2, 0.9, 0.8, 1.33),
        ("val", 0, 0, 0, 1, 1, 1),
        ("test", 1, 0.2, 0.1, 0.7, 0.9, 0.6),
    ]
    figure = plots.framing(pd.DataFrame(rows, columns=columns), {"re-framed": [0.5, 0.6, 0.8]}, True)
    boxes, doses = figure.axes
    assert [patch.get_bbox().bounds for patch in boxes.patches] == [
        pytest.approx((0.1, 0.2, 0.8, 0.6)),
        pytest.approx((0.2, 0.1, 0.5, 0.8)),
    ]
    assert boxes.get_ylim() == (1, 0)  # rows count down
    assert doses.lines[0].get_xdata().tolist() == [0, 0.5, 1] and doses.lines[0].get_ydata()[2] == 0.8
    assert len(plots.framing(pd.DataFrame(rows, columns=columns)).axes) == 1


def test_sample_grid_shows_the_pixels():
    images = np.arange(5 * 6 * 4, dtype=np.uint8).reshape(5, 6, 4, 1)
    figure = plots.sample_grid(images, list("abcde"), columns=3, suptitle="Five")
    assert len(figure.axes) == 5 and figure.get_suptitle() == "Five"
    for axis, image, title in zip(figure.axes, images, "abcde", strict=True):
        (shown,) = axis.images
        np.testing.assert_array_equal(shown.get_array(), image.reshape(6, 4))
        assert shown.get_clim() == (0, 255) and axis.get_title() == title and not axis.axison
    assert [axis.get_subplotspec().rowspan.start for axis in figure.axes] == [0, 0, 0, 1, 1]


def test_preprocessing_histogram_is_in_per_cent_of_the_pixels():
    black, half = np.zeros((4, 4), np.uint8), np.zeros((4, 8, 1), np.float32)
    half[:, :4] = 100
    figure = plots.preprocessing_steps([black, half], ["black", "half"])
    assert len(figure.axes) == 4
    first, second = (axis.patches[0].get_data().values for axis in figure.axes[2:])
    assert first[0] == 100 and second[0] == second[25] == 50  # bins of four grey values
    assert figure.axes[2].get_ylim() == figure.axes[3].get_ylim() == (0, pytest.approx(55))


def test_augmentation_preview_puts_the_original_first():
    original = np.full((4, 4, 1), 9, np.uint8)
    figure = plots.augmentation_preview(original, [np.full((4, 4, 1), 40.0 + n) for n in range(7)])
    assert [axis.get_title() for axis in figure.axes] == ["original"] + [f"view {n}" for n in range(1, 8)]
    assert [axis.images[0].get_array()[0, 0] for axis in figure.axes] == [9, *range(40, 47)]


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_is_written_when_asked_only(catalog, synthetic):
    image, sized = np.full((4, 4), 7, np.uint8), catalog.assign(width=32, height=32)
    for figure in (
        plots.class_balance(catalog, synthetic),
        plots.image_sizes(sized, synthetic),
        plots.augmentation_preview(image, [image], synthetic),
        plots.preprocessing_steps([image], ["a"], synthetic),
    ):
        assert ("synthetic data" in " ".join(texts(figure))) is synthetic


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "phase": ["head", "head", "fine", "fine"],
            "loss": [0.9, 0.7, 0.5, 0.3],
            "val_loss": [0.8, 0.6, 0.4, 0.5],
            "accuracy": [0.5, 0.6, 0.7, 0.8],
            "val_accuracy": [0.5, 0.6, 0.9, 0.8],
            "val_auroc": [0.6, 0.7, 0.8, 0.9],
            "learning_rate": 1e-3,
        }
    )


def test_learning_curves_mark_phase_and_best_epoch(history):
    figure = plots.learning_curves(history)
    assert [axis.get_title("left") for axis in figure.axes] == ["Loss", "Accuracy", "AUROC"]
    for axis, best in zip(figure.axes, (0.4, 0.9, 0.8), strict=True):
        assert vertical(axis) == [2.5]
        (note,) = axis.texts
        assert note.get_text() == "fine" and note.get_position()[0] == 2.5
        (ring,) = [line for line in axis.lines if line.get_label().startswith("lowest")]
        assert list(ring.get_xdata()) == [3] and list(ring.get_ydata()) == [best]
    train, validation = figure.axes[0].lines[:2]
    assert list(train.get_ydata()) == [0.9, 0.7, 0.5, 0.3]
    assert list(validation.get_ydata()) == [0.8, 0.6, 0.4, 0.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "train",
        "validation",
        "lowest validation loss (epoch 3)",
    ]


def test_one_epoch_of_a_huge_loss_does_not_flatten_the_others(history):
    # Training losses up to 0.9: the axis ends at 4.5.
    for value, title in ((4.4, "Loss"), (29.17, "Loss (cut; highest 29.2)")):
        axis = plots.learning_curves(history.assign(val_loss=[value, 0.6, 0.4, 0.5])).axes[0]
        assert axis.get_title("left") == title
        assert (axis.get_ylim()[1] == pytest.approx(4.5)) == ("cut" in title)


def test_learning_curves_of_one_epoch_and_of_losses_only(history):
    figure = plots.learning_curves(history.iloc[2:3])  # an index that does not start at 0
    assert len(figure.axes) == 3 and vertical(figure.axes[0]) == []
    assert "lowest validation loss (epoch 3)" in texts(figure)
    assert len(plots.learning_curves(history[["epoch", "loss", "val_loss"]]).axes) == 1


def test_learning_curves_without_a_finite_loss_mark_nothing(history):
    assert not any("lowest" in text for text in texts(plots.learning_curves(history.assign(val_loss=np.nan))))


def test_confusion_matrix_orientation_and_percentages():
    figure = plots.confusion_matrices(
        [{"tp": 1388, "fp": 1, "tn": 3, "fn": 12}, {"tp": 0, "fp": 0, "tn": 5, "fn": 0}], ["one", "empty row"]
    )
    first, second = figure.axes
    cells = {text.get_position(): text.get_text() for text in first.texts}
    assert cells == {
        (0.5, 0.5): "3\n75.0 %",
        (1.5, 0.5): "1\n25.0 %",  # (column, row)
        (0.5, 1.5): "12\n0.9 %",
        (1.5, 1.5): "1,388\n99.1 %",
    }
    assert first.yaxis_inverted()  # row 0, NORMAL, is on top
    assert [t.get_text() for t in first.get_xticklabels()] == ["NORMAL", "PNEUMONIA"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["NORMAL\nn = 4", "PNEUMONIA\nn = 1,400"]
    assert (first.get_xlabel(), first.get_ylabel()) == ("decision", "reference standard")
    np.testing.assert_allclose(
        first.collections[0].get_array().ravel(), [75, 25, 100 * 12 / 1400, 100 * 1388 / 1400]
    )
    assert [text.get_text() for text in second.texts] == ["5\n100.0 %", "0\n0.0 %", "0\n0.0 %", "0\n0.0 %"]


def test_confusion_of_three_classes():
    counts = [[8, 1, 1], [0, 6, 4], [2, 2, 1]]
    (axis,) = plots.confusion_matrices([counts], ["three"], classes=["normal", "bacteria", "virus"]).axes
    cells = {text.get_position(): text.get_text().split("\n")[0] for text in axis.texts}
    assert cells == {
        (column + 0.5, row + 0.5): str(counts[row][column]) for row in range(3) for column in range(3)
    }
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "normal\nn = 10",
        "bacteria\nn = 10",
        "virus\nn = 5",
    ]


def test_variants_show_every_seed_and_the_mean():
    scored = {
        name: {"seeds": {"auroc": seeds, "brier": [0.1, 0.2]}, "mean": {"auroc": mean, "brier": 0.15}}
        for name, seeds, mean in (("alone", [0.9, 0.94], 0.92), ("taught", [0.95, 0.97], 0.96))
    }
    auroc, brier = plots.variants(scored).axes
    dots = [line for line in auroc.lines if line.get_marker() == "o"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in dots] == [
        ([0.9, 0.94], [0, 0]),
        ([0.95, 0.97], [1, 1]),
    ]
    bars = [line for line in auroc.lines if line.get_marker() == "|"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in bars] == [
        ([0.92], [0]),
        ([0.96], [1]),
    ]
    assert [text.get_text() for text in auroc.get_yticklabels()] == ["alone", "taught"]
    assert auroc.yaxis_inverted() and brier.get_title(loc="left") == "Brier (lower is better)"


def test_latency_has_a_row_for_each_runtime_and_a_dot_for_each_number_of_cores():
    costs = pd.DataFrame(
        {
            "model": "net",
            "runtime": ["keras", "keras", "litert"],
            "weights": "float32",
            "threads": [1, 2, 1],
            "megabytes": [1.0, 1.0, 0.5],
            "milliseconds": [4.0, 3.0, 0.5],
        }
    )
    (axis,) = plots.latency(costs).axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in dots] == [(4.0, 0), (3.0, 0), (0.5, 1)]
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "net, keras float32 (1.0 MB)",
        "net, litert float32 (0.5 MB)",
    ]
    assert [text.get_text() for text in axis.figure.legends[0].texts] == ["1 core", "2 cores"]
    assert axis.get_xscale() == "log"


def test_long_names_are_not_cut_off():
    name = "a_rather_long_name_of_a_model-patient-s0-t0"
    costs = pd.DataFrame(
        {
            "model": [name] * 2,
            "runtime": "litert",
            "weights": "float32",
            "threads": [1, 2],
            "megabytes": 0.5,
            "milliseconds": [0.4, 300.0],
        }
    )
    scores = pd.DataFrame({"name": [name], "auroc": 0.9, "auroc_low": 0.9, "auroc_high": 0.9})
    for figure in (plots.latency(costs), plots.comparison(scores, ["auroc"])):
        figure.canvas.draw()
        for label in figure.axes[0].get_yticklabels():
            assert label.get_window_extent().x0 >= 0


def test_roc_pr_values_by_hand():
    # 3 of the 4 (negative, positive) pairs are in order: AUROC 0.75. Ranked + - + -:
    # average precision = (1/1 + 2/3) / 2 = 0.833. At 0.4: all but one negative are called.
    curve = ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    figure = plots.roc_pr({"a": curve, "b": ([0, 1, 1, 1], [0.1, 0.5, 0.6, 0.9])}, {"a": 0.4})
    roc, pr = figure.axes
    assert legend(roc) == ["chance, 0.500", "a, AUROC 0.750", "at threshold 0.400", "b, AUROC 1.000"]
    assert legend(pr) == ["prevalence, 0.500", "prevalence, 0.750", "a, AP 0.833", "b, AP 1.000"]
    (point,) = [line for line in roc.lines if line.get_marker() == "o"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.5, 0.5)  # 0.4 itself is called
    (point,) = [line for line in pr.lines if line.get_marker() == "o"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.5, 0.5)
    assert list(roc.lines[1].get_xdata()) == [0, 0, 0.5, 0.5, 1]
    assert list(roc.lines[1].get_ydata()) == [0, 0.5, 0.5, 1, 1]


def test_roc_pr_shows_the_baseline_and_the_band_of_the_first():
    grid = np.array([0.0, 0.5, 1.0])
    figure = plots.roc_pr(
        {"a": ([0, 1, 0, 1], [0.1, 0.4, 0.5, 0.9])},
        band=(grid, [0, 0.2, 1], [0.5, 0.9, 1]),
        baseline={"sees": "border", "auroc": 0.75, "roc": [0.0, 1.0, 1.0]},
    )
    roc = figure.axes[0]
    lines = {line.get_label(): line for line in roc.lines}
    assert lines["baseline with hardly any lung, 0.750\n(border)"].get_xydata().tolist() == [
        [0, 0],
        [0.5, 1],
        [1, 1],
    ]
    outline = roc.collections[0].get_paths()[0].vertices.tolist()
    assert [0.5, 0.2] in outline and [0.5, 0.9] in outline


def test_the_legend_of_roc_pr_covers_no_curve_and_is_not_cut_off():
    curve = ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    baseline = {"sees": "border", "auroc": 0.75, "roc": [0.0, 1.0, 1.0]}
    figure = plots.roc_pr({str(number): curve for number in range(7)}, {"0": 0.4}, baseline=baseline)
    figure.canvas.draw()
    for axis in figure.axes:
        assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0
        shown = axis.get_tightbbox()
        assert shown.y0 >= 0 and shown.y1 <= figure.bbox.y1


def test_calibration_draws_bins_and_net_benefit():
    bins = pd.DataFrame({"predicted": [0.25, 0.75], "observed": [0.25, 1], "low": [0, 0.5], "high": [0.7, 1]})
    decisions = pd.DataFrame({"threshold": [0.5], "model": [0.5], "all": [0.25]})
    figure = plots.calibration({"a": bins}, {"a": decisions})
    reliability, benefit = figure.axes
    assert reliability.lines[1].get_xydata().tolist() == [[0.25, 0.25], [0.75, 1]]
    assert [line.get_ydata()[0] for line in benefit.lines] == [0.25, 0, 0.5]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "predicted = observed",
        "a",
        "treat all",
        "treat none",
    ]
    assert not any(legend.get_window_extent().overlaps(axis.get_window_extent()) for axis in figure.axes)


def test_roc_pr_with_a_threshold_that_calls_nothing():
    plots.roc_pr({"a": ([0, 1], [0.1, 0.2])}, {"a": 0.9}).canvas.draw()


def test_score_distribution_bars_and_thresholds():
    figure = plots.score_distribution(
        [0, 0, 0, 0, 1, 1],
        [0.0, 0.01, 0.5, 0.99, 0.99, 1.0],
        {"Youden": 0.5, "sensitivity": 0.2, "impossible": None},
    )
    pneumonia, normal = figure.axes
    heights = [bar.get_height() for bar in normal.patches]
    assert len(heights) == 25 and sum(heights) == pytest.approx(100)
    assert (heights[0], heights[12], heights[24]) == (50, 25, 25)
    assert [bar.get_height() for bar in pneumonia.patches][24] == pytest.approx(100)
    assert vertical(pneumonia) == vertical(normal) == [0.5, 0.2]
    assert [(t.get_text(), t.get_position()[0]) for t in pneumonia.texts] == [
        (" Youden: 0.500", 0.5),
        (" sensitivity: 0.200", 0.2),
    ]
    assert pneumonia.get_ylabel().startswith("PNEUMONIA (n = 2)")
    assert normal.get_ylabel().startswith("NORMAL (n = 4)")


def test_comparison_points_intervals_and_order():
    table = pd.DataFrame(
        {
            "name": ["first", "second", "third"],
            "auroc": [0.9, 0.8, np.nan],
            "auroc_low": [0.85, np.nan, np.nan],
            "auroc_high": [0.95, np.nan, np.nan],
            "brier": [0.1, 0.2, 0.3],
            "brier_low": 0.05,
            "brier_high": 0.4,
        }
    )
    figure = plots.comparison(table, ["auroc", "brier"])
    auroc, brier = figure.axes
    assert [t.get_text() for t in auroc.get_yticklabels()] == ["first", "second", "third"]
    assert auroc.yaxis_inverted()
    assert [t.get_text() for t in auroc.texts] == ["0.900", "0.800"]
    np.testing.assert_allclose(auroc.collections[0].get_segments()[0], [[0.85, 0], [0.95, 0]])
    np.testing.assert_array_equal(auroc.collections[1].get_offsets()[:2], [[0.9, 0], [0.8, 1]])
    assert auroc.collections[1].get_offsets().mask[2].any()  # the third has no value
    assert auroc.get_title("left") == "AUROC"
    assert brier.get_title("left") == "Brier (lower is better)"


def test_comparison_has_the_colours_of_the_models_and_a_title():
    table = pd.DataFrame({"name": ["custom_cnn-patient-s0-t0", "bacteria"], "auroc": [0.9, 0.8]})
    figure = plots.comparison(table.assign(auroc_low=0.7, auroc_high=1.0), ["auroc"], title="split patient")
    intervals, dots = figure.axes[0].collections
    for marks in (intervals.get_colors(), dots.get_facecolors()):
        assert [to_hex(colour) for colour in marks] == ["#009e73", "#000000"]
    assert figure.get_suptitle() == "split patient"


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_title_stands_before_the_note_on_synthetic_data(synthetic):
    pair = np.array(LABELS * 4), np.linspace(0.1, 0.9, 8)
    bins, decisions = {"a": reliability_table(*pair)}, {"a": decision_curve(*pair)}
    counts = [{"tp": 1, "fp": 1, "tn": 1, "fn": 1}]
    for figure in (
        plots.roc_pr({"a": pair}, synthetic=synthetic, title="split patient"),
        plots.calibration(bins, decisions, synthetic, title="split patient"),
        plots.confusion_matrices(counts, ["a"], synthetic, title="split patient"),
    ):
        assert figure.get_suptitle() == "split patient" + " (synthetic data)" * synthetic


SMALL, LABELS = np.full((4, 4), 7, np.uint8), [0, 1]
WRONG = {
    "thirteen": (lambda: plots.sample_grid([SMALL] * 13, ["a"] * 13), "images=13"),
    "none": (lambda: plots.sample_grid([], []), "images=0"),
    "titles": (lambda: plots.sample_grid([SMALL], []), "titles=0, images=1"),
    "colour": (lambda: plots.sample_grid([np.zeros((4, 4, 3))], ["a"]), "images=(4, 4, 3)"),
    "unit range": (lambda: plots.sample_grid([SMALL / 255], ["a"]), "images=(4, 4)"),
    "views": (lambda: plots.augmentation_preview(SMALL, [SMALL] * 8), "views=8"),
    "no columns": (lambda: plots.image_sizes(pd.DataFrame({"width": [1]})), "columns=['width']"),
    "no rows": (
        lambda: plots.learning_curves(pd.DataFrame(columns=["epoch", "loss", "val_loss"])),
        "rows=0, columns=['epoch', 'loss', 'val_loss']",
    ),
    "split": (
        lambda: plots.class_balance(pd.DataFrame({"split": ["dev"], "label": [0], "subtype": [""]})),
        "split=['dev']",
    ),
    "epochs": (
        lambda: plots.learning_curves(pd.DataFrame({"epoch": [1, 1], "loss": 1.0, "val_loss": 1.0})),
        "epoch=[1, 1]",
    ),
    "cells": (lambda: plots.confusion_matrices([{"tp": 1}], ["a"]), "confusions=[{'tp': 1}]"),
    "one class": (lambda: plots.roc_pr({"a": ([1, 1], [0.1, 0.2])}), "probabilities=(2,)"),
    "NaN": (lambda: plots.score_distribution(LABELS, [0.1, np.nan], {}), "probabilities=(2,)"),
    "logits": (lambda: plots.score_distribution(LABELS, [-3.0, 3.0], {}), "probabilities=(2,)"),
    "calibration of another": (lambda: plots.calibration({"a": None}, {"b": None}), "decisions=['b']"),
    "point": (lambda: plots.roc_pr({"a": (LABELS, [0.1, 0.2])}, {"b": 0.5}), "curves=['a']"),
    "variant": (lambda: plots.variants({}), "scored=[]"),
    "costs": (lambda: plots.latency(pd.DataFrame({"model": ["a"]})), "columns=['model']"),
    "metric": (lambda: plots.comparison(pd.DataFrame({"name": ["a"]}), []), "metrics=[]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_raises_and_leaves_no_figure(case):
    call, received = WRONG[case]
    with pytest.raises(ValueError) as caught:
        call()
    assert "Received: " in str(caught.value) and str(caught.value).endswith(received)
    assert plt.get_fignums() == []


def test_model_summary_shows_trainable_beside_frozen_parameters():
    table = pd.DataFrame({"part": ["block1", "head"], "parameters": [1000, 50]})
    table = table.assign(**{"trainable at first": [0, 50], "trainable in the end": [400, 50]})
    first, last = plots.model_summary(table, ["at first", "in the end"]).axes
    widths = [[bar.get_width() for bar in axis.patches] for axis in (first, last)]
    assert widths == [[0, 50, 1000, 0], [400, 50, 600, 0]]  # trainable of each part, then frozen
    assert last.get_title(loc="left") == "in the end: 450 of 1,050 trainable"
    with pytest.raises(ValueError, match="the table must have rows"):
        plots.model_summary(table, ["later"])


def test_a_shown_figure_has_its_description_size_and_file(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure = plots.learning_curves(pd.DataFrame({"epoch": [1], "loss": [0.5], "val_loss": [0.4]}))
    plots.show(figure, "Loss by epoch.", tmp_path / "new folder" / "curves.png")
    metadata, width = shown[0]._repr_mimebundle_()[1], round(96 * figure.get_figwidth())
    assert metadata["image/png"] == {"alt": "Loss by epoch.", "width": width}
    assert (tmp_path / "new folder" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    plots.show(plots.sample_grid([np.full((8, 8), 9)], ["one"]), "An image.", jpeg=True)
    assert shown[1]._repr_mimebundle_()[1]["image/jpeg"]["alt"] == "An image."


def test_a_model_of_the_recipes_keeps_its_colour_in_each_figure():
    scores = [0.1, 0.9, 0.4, 0.6], [0, 1, 0, 1]
    pair = scores[1], scores[0]

    def colours(names):
        axis = plots.roc_pr(dict.fromkeys(names, pair)).axes[0]
        return {line.get_label().split(",")[0]: line.get_color() for line in axis.lines}

    first = colours(["vgg16-patient-s0-t0", "custom_cnn-patient-s0-t0", "mine-patient-s0-t0"])
    second = colours(["mine-patient-s0-t0", "custom_cnn-official-s0-t0"])
    assert first["custom_cnn-patient-s0-t0"] == second["custom_cnn-official-s0-t0"]
    assert len({first[name] for name in first if "chance" not in name}) == 3
