"""Several classifiers asked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.metrics import evaluate
from chestxray.evaluation.operating import choose_thresholds

_LEAST = 1e-15  # probability: of a certain answer the log-odds would be infinite


def score_ensemble(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Average the calibrated log-odds of several models, and score the average as a model is scored.

    All weigh the same, so nothing is fitted but the calibration; it and the
    thresholds come from the validation rows alone.

    Args:
        tables: Predictions of the same images (contract 5), matched by
            ``path``; with rows of the split ``val``.

    Returns:
        Predictions of the ensemble in the order of the first table (``path,
        group, subtype, label, split, logit, probability``), and ``thresholds``
        and, by split, ``metrics`` and ``confusion`` as in a result.

    Raises:
        ValueError: Fewer than two tables, or not the same images with the same
            label and split.
    """
    if len(tables) < 2:
        raise ValueError(f"an ensemble has at least two members. Received: tables={len(tables)}")
    found = tables[0][["path", "group", "subtype", "label", "split"]].reset_index(drop=True)
    odds = []
    for table in tables:
        other = found[["path", "label", "split"]].merge(table, on=["path", "label", "split"])
        if not len(other) == len(found) == len(table):
            raise ValueError(
                "the members were scored on different images, labels or splits. "
                f"Received: images={[len(one) for one in tables]}"
            )
        likely = other["probability"].to_numpy(float).clip(_LEAST, 1 - _LEAST)
        odds.append(np.log(likely / (1 - likely)))
    found["logit"] = np.mean(odds, axis=0)
    val = found[found["split"] == "val"]
    found["probability"] = apply_platt(found["logit"], *calibrate(val["logit"], val["label"]))
    thresholds, _ = choose_thresholds(val["label"], found.loc[val.index, "probability"])
    scored: dict[str, Any] = {"thresholds": thresholds, "metrics": {}, "confusion": {}}
    for part, rows in found.groupby("split", sort=False):
        scored["metrics"][part], scored["confusion"][part] = evaluate(
            rows["label"], rows["probability"], rows["group"], thresholds, rows["subtype"]
        )
    return found, scored
