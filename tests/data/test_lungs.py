"""Lung boxes and windows by hand, the network against whole-number arithmetic, and planted boxes."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from chestxray.data import lungs
from chestxray.data.images import ImageSettings, fit
from chestxray.files import project_path, read_json
from chestxray.phantoms import radiograph
from chestxray.phantoms.anatomy import make_anatomy

IMAGE = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)


def phantom(patient):
    """A phantom and the box of its lungs, from the air along the rays."""
    rng = np.random.default_rng([patient, 1, 0])
    anatomy = make_anatomy(patient)
    rays = radiograph.Rays.through(radiograph.make_pose(rng), 224)
    path, air = radiograph.line_integrals(anatomy, rays, rng)
    image = radiograph.expose(path, rays, np.random.default_rng(patient))
    return image, lungs.mask_boxes(air.sum(axis=0, keepdims=True) > 0.3)[0]


def test_mask_boxes_by_hand():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, 2:7, 5] = masks[0, 4, 5:15] = True
    boxes = lungs.mask_boxes(masks)
    assert boxes[0].tolist() == [0.25, 0.2, 0.75, 0.7]
    assert np.isnan(boxes[1]).all()


def test_a_window_is_cut_or_extended_by_its_edge():
    assert np.array_equal(lungs.crop_window(IMAGE, lungs.WHOLE), IMAGE)
    assert np.array_equal(lungs.crop_window(IMAGE, (0.25, 0, 1, 0.5)), IMAGE[:3, 2:])
    wider = lungs.crop_window(IMAGE, (-0.25, 0, 1.125, 1))
    assert np.array_equal(wider, np.pad(IMAGE, ((0, 0), (2, 1)), mode="edge"))


def test_a_window_between_equal_boxes_is_the_image():
    assert lungs.window_between((0.1, 0.2, 0.8, 0.9), (0.1, 0.2, 0.8, 0.9)) == pytest.approx(lungs.WHOLE)


def test_reframed_lungs_have_the_box_that_was_asked_for():
    image, box, target = np.zeros((200, 300), np.uint8), (0.2, 0.3, 0.7, 0.8), (0.15, 0.1, 0.9, 0.95)
    image[60:160, 60:210] = 255
    warped = lungs.crop_window(image, lungs.window_between(box, target))
    found = lungs.mask_boxes(warped[np.newaxis] > 0)[0]
    assert found == pytest.approx(target, abs=0.01)
    # Towards smaller lungs only by inventing a border, which zoom_only refuses.
    smaller = (0.4, 0.4, 0.6, 0.6)
    assert lungs.window_between(box, smaller).tolist() == pytest.approx([-0.8, -0.7, 1.7, 1.8])
    assert lungs.window_between(box, smaller, zoom_only=True).tolist() == [0, 0, 1, 1]


def test_the_network_is_small_and_computes_with_whole_numbers():
    """Every sum stays below 2²⁴ units of a power of two: float32 is exact in any order of summation."""
    content = lungs.MODEL.read_bytes()
    assert len(content) <= 500_000 and hashlib.sha256(content).hexdigest().startswith(lungs.MODEL_HASH)
    graph = onnx.load(lungs.MODEL).graph
    values = {entry.name: numpy_helper.to_array(entry).astype(np.float64) for entry in graph.initializer}
    images = [phantom(patient)[0] for patient in (3, 4)] + [np.full((50, 40), 200, np.uint8)]
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) > 3
    for node in layers:
        weights, bias = values[node.input[1]], values[node.input[2]]
        unit = 2.0 ** np.floor(np.log2(np.abs(weights[weights != 0]).min()))
        while ((weights / unit) % 1).any() or ((bias / unit) % 1).any():
            unit /= 2
        axes = (1, 2, 3) if node.op_type == "Conv" else 0
        most = 255 * np.abs(weights).sum(axis=axes) + np.abs(bias)
        assert (most / unit).max() < 2**24, node.name
        strides = [list(a.ints) for a in node.attribute if a.name in ("strides", "kernel_shape")]
        assert node.op_type == "Gemm" or [1, 1] in strides or [2, 2] in strides  # no Winograd for stride 1
        assert strides != [[3, 3], [1, 1]] and strides != [[1, 1], [3, 3]]
    for image in images:
        expected = exactly(graph, values, image)
        lungs.lung_box(image)
        assert np.array_equal(lungs._networks.network.forward()[0], expected)


def exactly(graph, values, image):
    """The network in float64, with convolutions written as sums."""
    x = cv2.resize(image, (lungs.SIDE, lungs.SIDE), interpolation=cv2.INTER_AREA)[None].astype(np.float64)
    for node in graph.node:
        if node.op_type == "Conv":
            options = {attribute.name: list(attribute.ints) for attribute in node.attribute}
            (pad, *_), (step, _), (size, _) = options["pads"], options["strides"], options["kernel_shape"]
            x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
            patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::step, ::step]
            x = np.einsum("chwij,ocij->ohw", patches, values[node.input[1]])
            x += values[node.input[2]][:, None, None]
        elif node.op_type == "Gemm":
            x = x @ values[node.input[1]] + values[node.input[2]]
        else:
            x = {"Floor": np.floor, "Clip": lambda v: np.clip(v, 0, 255), "Flatten": np.ravel}[node.op_type](
                x
            )
    return x


def test_lungs_of_new_phantoms_are_found():
    pairs = [phantom(patient) for patient in range(900_000, 900_012)]
    boxes = lungs.lung_boxes([image for image, _ in pairs])
    error = np.abs(boxes - [box for _, box in pairs])
    assert error.mean() < 0.035 and error.max() < 0.15


def test_an_implausible_box_leaves_the_whole_image(monkeypatch):
    class Network:
        def setInput(self, blob):  # noqa: N802 (the name in OpenCV)
            assert blob.shape == (1, 1, 64, 64) and blob.dtype == np.float32

        def forward(self):
            return np.array([[100, 20, 130, 240]], np.float32)  # 0.12 of the width

    monkeypatch.setattr(lungs._networks, "network", Network(), raising=False)
    assert lungs.lung_box(IMAGE) is None
    assert np.isnan(lungs.lung_boxes([IMAGE, IMAGE])).all()
    assert lungs.lung_window(IMAGE).tolist() == [0, 0, 1, 1]


def test_a_lung_box_model_sees_the_lungs_with_a_margin(monkeypatch):
    image = np.zeros((100, 200), np.uint8)
    image[20:80, 40:160] = 255
    monkeypatch.setattr(lungs, "lung_box", lambda _: np.array([0.2, 0.2, 0.8, 0.8]))
    # A margin of 2 % of 120 × 60 pixels: 2 columns and 1 row on each side.
    window = lungs.lung_window(image)
    assert np.array_equal(lungs.crop_window(image, window), image[19:81, 38:162])
    monkeypatch.setattr(lungs, "lung_box", lambda _: np.array([0, 0.1, 0.99, 1]))
    assert lungs.lung_window(image).tolist() == pytest.approx([0, 0.082, 1, 1])  # ends at the edges
    monkeypatch.setattr(lungs, "lung_box", lambda _: np.array([0.2, 0.2, 0.8, 0.8]))
    seen = fit(image, ImageSettings(64, "lung_box"))
    assert seen.shape == (64, 64) and (seen[3:-3, 3:-3] == 255).all() and seen[0].max() < 255


def test_the_model_card_says_what_was_measured():
    measured, card = (
        read_json(project_path("results/lung_box.json")),
        lungs.MODEL.with_suffix(".md").read_text(),
    )
    unseen, aurocs = measured["unseen"], measured["auroc_of_the_label"]
    text = " ".join(card.split())
    assert f"**Error** on {unseen['images']:,} images of other patients" in text
    assert f"{unseen['x']:.3f} in x, {unseen['y']:.3f} in y" in text
    assert f"AUROC {aurocs['error']:.2f}, from the true box with {aurocs['mask box']:.2f}" in text
    used = sum(row["images"] for row in measured["by"] if row["used"])
    assert f"lung masks of {used} images" in text and f"{lungs.MODEL.stat().st_size:,} bytes" in text
