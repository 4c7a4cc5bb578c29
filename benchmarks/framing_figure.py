"""Figure of README: what re-framing is, and what it does to networks: python benchmarks/framing_figure.py.

Images are synthetic. The bars are those of results/framing.json: the specificity of the compact network on
real validation images, the mean of three trainings. The heatmap is the one of the first 40 synthetic
pneumonias that covers its lesion best.
"""

from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np

import chestxray as cx
from chestxray.data.images import decode_image, fit
from chestxray.data.lungs import crop_window, lung_box, window_between
from chestxray.deployment.report import overlay
from chestxray.evaluation.saliency import energy_inside
from chestxray.files import read_json

ROOT = Path(__file__).resolve().parent.parent
CLOSER = np.array([0.10, 0.05, 0.90, 0.98])  # lung box of an image that is collimated closely


def main() -> None:
    root = cx.find_data("phantoms")
    table = cx.scan(root).query("official_split == 'test'")
    normal = decode_image((root / table.query("label == 0")["path"].iloc[1]).read_bytes())
    closer = crop_window(normal, window_between(lung_box(normal), CLOSER, zoom_only=True))

    classifier = cx.load_classifier(ROOT / "saved_models" / "phantom_cnn")
    paths = table.query("label == 1")["path"].head(40)
    sick = np.stack(
        [fit(decode_image((root / path).read_bytes()), classifier.image_settings) for path in paths]
    )
    masks = [cv2.imread(str(root.parent / "masks" / Path(path).with_suffix(".png")), 0) for path in paths]
    lesions = np.stack([cv2.resize(mask, sick.shape[1:]) > 127 for mask in masks])
    scores = classifier.score(sick, with_maps=True)
    maps = np.stack([cv2.resize(heatmap, sick.shape[1:]) for heatmap in scores.maps])
    best = int(np.nanargmax(energy_inside(maps, lesions)))
    probability = float(classifier.probabilities(scores.logits[best]))

    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    drawn = overlay(sick[best], maps[best] / maps[best].max())
    axes[0].imshow(cv2.cvtColor(drawn.astype(np.uint8), cv2.COLOR_BGR2RGB))
    axes[0].contour(lesions[best], [0.5], colors="#56b4e9")
    axes[0].set_title(f"Pneumonia: probability {probability:.2f},\nheatmap and lesion", fontsize=10)
    for axis, image, title in ((axes[1], normal, "as taken"), (axes[2], closer, "collimated closer")):
        axis.imshow(cv2.resize(image, (224, 224)), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"A normal image,\n{title}", fontsize=10)
    for axis in axes[:3]:
        axis.set_axis_off()
    cells = {
        cell["cell"]: cell["mean"]
        for cell in read_json(ROOT / "results" / "framing.json")["cells"]
        if (cell["network"], cell["split"]) == ("compact", "official")
    }
    names = {"squash": "sees the\nwhole image", "lung_box": "sees the\nlung box"}
    for shift, key, label in (
        (-0.2, "val_specificity", "as taken"),
        (0.2, "zoom_specificity", "collimated closer"),
    ):
        heights = [cells[cell][key] for cell in names]
        bars = axes[3].bar(np.arange(2) + shift, heights, 0.38, label=label)
        axes[3].bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=9)
    axes[3].set_xticks([0, 1], names.values())
    axes[3].set_ylim(0, 1.35)
    axes[3].set_yticks([0, 0.5, 1])
    axes[3].legend(fontsize=8, frameon=False, loc="upper center", ncols=2)
    axes[3].set_title("Normal images called normal\n(real validation images)", fontsize=10)
    axes[3].spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "images" / "framing.png", dpi=120)


if __name__ == "__main__":
    main()
