"""Where the pretrained weights of a backbone are; knows no Keras."""

from __future__ import annotations

import os
from pathlib import Path


def find_weights(weights: str | None, backbone: str) -> tuple[str | None, str]:
    """Say where the weights of a backbone come from.

    Args:
        weights: A weights file; a folder with ``<backbone>_notop*.h5``;
            ``"imagenet"`` for such a file in the folder ``CHESTXRAY_WEIGHTS``
            if it has one, else for Keras' download; None for random weights.
        backbone: Name in the registry.

    Returns:
        What ``keras.applications`` takes as ``weights``, and the name to
        record: ``imagenet``, ``random``, or the file's name.

    Raises:
        FileNotFoundError: The file or folder does not hold the weights.
    """
    if weights is None:
        return None, "random"
    place = os.environ.get("CHESTXRAY_WEIGHTS") if weights == "imagenet" else weights
    if place and not Path(place).exists():
        raise FileNotFoundError(f"no such file or folder of weights: {place}. Received: weights={weights!r}")
    if place and Path(place).is_file():
        return str(place), Path(place).name
    # Keras itself writes inception_v3, but vgg16 and resnet50.
    found = [
        path
        for path in (sorted(Path(place).glob("*notop*.h5")) if place else [])
        if path.name.replace("_", "").lower().startswith(backbone.lower())
    ]
    if found:
        return str(found[0]), found[0].name
    if weights == "imagenet":
        return "imagenet", "imagenet"
    raise FileNotFoundError(
        "no weights file here (in a folder it must be named "
        f"{backbone.lower()}*notop*.h5). Received: weights={weights!r}"
    )
