"""Figures of heatmaps show the given numbers."""

import numpy as np
import pandas as pd
import pytest

from chestxray import plots


def test_each_map_is_scaled_to_its_maximum_and_drawn_over_its_image():
    images, maps = np.full((2, 16, 16), 90, np.uint8), np.zeros((2, 4, 4))
    maps[0, 1, 2], maps[0, 3, 3] = 0.2, 0.1
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 8:12] = True
    figure = plots.heatmaps(images, {"weak": maps, "strong": 50 * maps}, ["a", "b"], masks, synthetic=True)
    axes = figure.axes
    assert [axis.get_title("left") for axis in axes[:2]] == ["a", "b"]
    assert [axis.get_ylabel() for axis in axes[::2]] == ["image", "weak", "strong"]
    weak, strong = (axes[row].images[1] for row in (2, 4))
    assert weak.get_clim() == strong.get_clim() == (0, 1)
    for drawn in (weak, strong):
        assert drawn.get_array().max() == 1 and drawn.get_array()[3, 3] == 0.5
        assert drawn.get_array().shape == (4, 4)  # not smoothed
        assert drawn.get_extent() == [-0.5, 15.5, 15.5, -0.5]
    assert not axes[3].images[1].get_alpha().any()  # an empty map does not hide the image
    assert all(len(axis.collections) for axis in axes[::2])  # the lesion is outlined
    assert not any(len(axis.collections) for axis in axes[1::2])
    assert "synthetic" in figure._suptitle.get_text()


def test_perturbation_and_cascade_draw_their_numbers():
    figure = plots.perturbation({"deletion": {"map": np.array([[1.0, 0.0], [0.5, 0.5]])}})
    line = figure.axes[0].lines[0]
    assert line.get_ydata().tolist() == [0.75, 0.25] and line.get_label() == "map, area 0.50"
    figure = plots.cascade(pd.DataFrame({"layer": ["c", "b"], "similarity": [0.9, 0.1]}), 0.3)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.9, 0.1]
    assert figure.axes[0].lines[1].get_ydata()[0] == 0.3


def test_a_layer_after_which_no_map_is_left_has_a_cross():
    table = pd.DataFrame({"layer": ["c", "b", "a"], "similarity": [0.9, np.nan, 0.1]})
    lines = plots.cascade(table, 0.3).axes[0].lines
    assert [line.get_label() for line in lines] == [
        "same image", "no map is left", "other images, original model"
    ]  # fmt: skip
    assert lines[1].get_xdata().tolist() == [1] and lines[1].get_ydata().tolist() == [0]


def test_a_map_for_each_image():
    with pytest.raises(ValueError, match=r"maps=.*\(1, 2, 2\)"):
        plots.heatmaps(np.full((2, 8, 8), 9, np.uint8), {"map": np.zeros((1, 2, 2))}, ["a", "b"])
