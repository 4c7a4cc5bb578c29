"""Notes, measurements and an image's logit as evidence for one label, and their fusion.

Each source gives a log-likelihood ratio (LLR), log p(source | 1) − log p(source | 0): the log-odds that a
scikit-learn classifier predicts, minus those of its training rows. The fused log-odds are a prior plus the
weighted sum of the LLRs; the weights correct sources that repeat each other or are too sure.

Arguments have one entry per image, (N,): ``labels`` (0 or 1), ``groups`` (patients), ``fold`` (0 to K − 1,
from :func:`patient_folds`). S is the number of sources.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from scipy.stats import hypergeom
from simplemma import lemmatize, simple_tokenizer
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from chestxray.evaluation.metrics import check_labels
from chestxray.schema import check

MOST_CHARACTERS = 100_000  # of a note that are read, so that none takes longer than a second
_STRONGEST = np.log(1000)  # limit of an LLR: some hundred patients cannot show more
_NO_WORD = re.compile(r"https?://\S+|[\d_]+")  # addresses, and numbers: they could identify a patient


def lemmas(note: Any, language: str = "en", stop_words: Collection[str] = ENGLISH_STOP_WORDS) -> list[str]:
    """Return the lemmas of a note in their order, in lower case, without stop words.

    ``language`` is a code of simplemma. Unknown words, also of another language, stay as they are. What is no
    text (None, NaN) has no word. See :data:`MOST_CHARACTERS`.
    """
    text = note[:MOST_CHARACTERS].lower() if isinstance(note, str) else ""
    tokens = (token.strip("-'’*") for token in simple_tokenizer(_NO_WORD.sub(" ", text)))
    words = (word for word in tokens if len(word) > 1 and word[0].isalpha() and word not in stop_words)
    return [lemmatize(word, language).lower() for word in words]


class LabelWords(TransformerMixin, BaseEstimator):
    """Find words that name the label in training notes, and remove them from all notes.

    A word names the label if it, or a part of it at a hyphen, is in ``names``, the texts that name the
    classes; or if at least 90 % of it belong to one class, were both equally large, and Fisher's exact test
    is significant (0.05, Bonferroni for the words of at least five patients). All notes of a patient count
    once. ``found_`` has the numbers of ``positive`` and ``negative`` patients of each word.

    The input has the columns ``text`` (lemmas, joined by blanks) and ``group``; the output are texts, (N,).
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = names

    def fit(self, X: pd.DataFrame, y: ArrayLike) -> "LabelWords":
        patients = X.assign(label=np.asarray(y)).groupby("group").agg({"text": " ".join, "label": "max"})
        self.found_ = pd.DataFrame(columns=["positive", "negative"])
        if not patients["text"].str.strip().any():
            return self
        counter = CountVectorizer(token_pattern=r"\S+", binary=True)
        occurs, label = counter.fit_transform(patients["text"]), patients["label"].to_numpy()
        positive, negative = occurs.T @ label, occurs.T @ (1 - label)
        drawn = len(label), label.sum(), positive + negative
        p = 2 * np.minimum(hypergeom.cdf(positive, *drawn), hypergeom.sf(positive - 1, *drawn))
        rates = np.stack([(positive + 0.5) / (label.sum() + 1), (negative + 0.5) / ((1 - label).sum() + 1)])
        frequent, words = positive + negative >= 5, counter.get_feature_names_out()
        found = frequent & (p * frequent.sum() < 0.05) & (rates.max(axis=0) >= 0.9 * rates.sum(axis=0))
        names = set(lemmas(" ".join(self.names)))
        found |= [not names.isdisjoint((word, *word.split("-"))) for word in words]
        self.found_ = pd.DataFrame({"positive": positive, "negative": negative}, index=words)[found]
        return self

    def transform(self, X: pd.DataFrame) -> NDArray:
        kept = ([word for word in text.split() if word not in self.found_.index] for text in X["text"])
        return np.array([" ".join(words) for words in kept], dtype=object)


class Source(NamedTuple):
    """A scikit-learn classifier, its inputs (N rows of pandas), and whether an image has the source, (N,)."""

    estimator: Any
    inputs: pd.DataFrame | pd.Series
    present: ArrayLike


def patient_folds(labels: ArrayLike, groups: ArrayLike, folds: int = 5, seed: int = 0) -> NDArray:
    """Number the fold of each image, stratified, a patient in one only; ValueError for too few patients."""
    groups = np.asarray(groups)
    labels = check_labels(labels, both_classes=True, groups=groups)
    fewest = min(len(np.unique(groups[labels == value])) for value in (0, 1))
    check(2 <= folds <= fewest, f"folds must be 2 to {fewest}, the patients of a class", folds=folds)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    return sum(number * np.isin(np.arange(len(labels)), test) for number, (_, test) in enumerate(splits))


def _ratios(source: Source, labels: NDArray, train: NDArray, test: NDArray) -> NDArray:
    """LLRs of the rows ``test`` after training on ``train``; 0 where the source is missing or has no word."""
    present, ratios = np.asarray(source.present, bool), np.zeros(len(test))
    train, known = train[present[train]], present[test]
    if known.any() and len(np.unique(labels[train])) == 2:
        try:
            fitted = clone(source.estimator).fit(source.inputs.iloc[train], labels[train])
        except ValueError as error:
            if "empty vocabulary" in str(error):  # of scikit-learn: all words name the label
                return ratios
            raise
        positive = fitted.predict_proba(source.inputs.iloc[test[known]])[:, 1]
        ratios[known] = logit(positive.clip(1e-9, 1 - 1e-9)) - logit(labels[train].mean())
    return ratios.clip(-_STRONGEST, _STRONGEST)


@threadpool_limits.wrap(limits=1)  # with so few rows threads only wait for each other
def nested_ratios(source: Source, labels: ArrayLike, groups: ArrayLike, fold: NDArray) -> NDArray:
    """Return out-of-fold LLRs, (K, N), of one source, for K of at least 3.

    In row k, the images of fold k are scored by a classifier that was fitted on all others. The others are
    scored out of K − 1 inner folds. No classifier has seen a patient whom it scores.
    """
    labels, groups, folds = np.asarray(labels), np.asarray(groups), int(fold.max()) + 1
    ratios = np.zeros((folds, len(labels)))
    for k in range(folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        ratios[k, test] = _ratios(source, labels, train, test)
        inner = patient_folds(labels[train], groups[train], folds - 1)
        for j in range(folds - 1):
            ratios[k, train[inner == j]] = _ratios(source, labels, train[inner != j], train[inner == j])
    return ratios


def fuse(ratios: Sequence[NDArray], labels: ArrayLike, fold: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Fuse sources, (K, N) each: weighted sum of LLRs and prior, (N,), by weights (K, S) of other folds."""
    stacked, labels = np.stack(ratios, axis=-1), np.asarray(labels)
    fitted = [fit_weights(stacked[k, fold != k], labels[fold != k]) for k in range(len(stacked))]
    weights, prior = np.array([each for each, _ in fitted]), np.array([each for _, each in fitted])
    own = stacked[fold, np.arange(len(labels))]
    return (own * weights[fold]).sum(axis=1), prior[fold], weights


def fit_weights(ratios: NDArray, labels: ArrayLike) -> tuple[NDArray, float]:
    """Fit weights (S,), none below 0, and the prior of LLRs (N, S) by logistic regression."""
    kept = np.ones(ratios.shape[1])
    while (model := LogisticRegression(C=1e4, max_iter=1000).fit(ratios * kept, labels)).coef_.min() < 0:
        kept[model.coef_.argmin()] = 0  # out of fold it points the wrong way: noise, the worst one first
    return model.coef_[0], float(model.intercept_[0])
