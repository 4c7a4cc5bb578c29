"""Figures of heatmaps show the given numbers, on one scale."""

import numpy as np
import pandas as pd
import pytest

from chestxray import plots


def test_one_scale_for_all_maps_and_the_strength_in_words():
    images, maps = np.full((2, 16, 16), 90, np.uint8), np.zeros((2, 4, 4))
    maps[:, 1, 2] = 1
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 8:12] = True
    figure = plots.heatmaps(images, maps, np.array([0.5, 2.0]), ["a", "b"], masks, synthetic=True)
    axes = figure.axes
    assert [axis.get_title("left") for axis in axes[:4]] == ["a", "b", "strongest: 0.5", "strongest: 2"]
    weak, strong = (axis.images[0] for axis in axes[2:4])
    assert weak.get_clim() == strong.get_clim() == (0, 2)
    assert weak.get_array().max() == 0.5 and weak.get_array().shape == (4, 4)  # not smoothed
    assert len(axes[0].collections) and not len(axes[1].collections)  # the lesion is outlined
    assert "4 × 4 values" in figure._suptitle.get_text() and "synthetic" in figure._suptitle.get_text()


def test_perturbation_and_cascade_draw_their_numbers():
    figure = plots.perturbation({"deletion": {"map": np.array([[1.0, 0.0], [0.5, 0.5]])}})
    line = figure.axes[0].lines[0]
    assert line.get_ydata().tolist() == [0.75, 0.25] and line.get_label() == "map, area 0.500"
    figure = plots.cascade(pd.DataFrame({"layer": ["c", "b"], "similarity": [0.9, 0.1]}), 0.3)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.9, 0.1]
    assert figure.axes[0].lines[1].get_ydata()[0] == 0.3


def test_a_map_for_each_image():
    with pytest.raises(ValueError, match="strengths=1"):
        plots.heatmaps(np.full((2, 8, 8), 9, np.uint8), np.zeros((2, 2, 2)), np.array([1.0]), ["a", "b"])
