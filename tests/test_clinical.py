"""Text, fusion and folds by hand; planted label words; records whose best evidence is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from chestxray import clinical
from chestxray.clinical import LabelWords, Source, fit_weights, fuse, lemmas, nested_ratios, patient_folds
from chestxray.phantoms import phantom_records


def bag_of_words():
    return make_pipeline(CountVectorizer(token_pattern=r"\S+"), MultinomialNB())


def texts(*notes):
    return pd.Series([" ".join(lemmas(note)) for note in notes])


class Memory(ClassifierMixin, BaseEstimator):
    """It knows the label of every patient whom it has seen, and of nobody else."""

    def fit(self, X, y):
        self.classes_, self.rate_, self.known_ = np.array([0, 1]), np.mean(y), dict(zip(X, y))
        return self

    def predict_proba(self, X):
        p = np.array([self.known_.get(patient, self.rate_) for patient in X], float)
        return np.stack([1 - p, p], axis=1)


@pytest.fixture
def cohort():
    """120 patients, a third without the disease, each with 1 to 4 images."""
    patients = np.repeat(np.arange(120), np.random.default_rng(0).integers(1, 5, 120))
    return (patients % 3 > 0).astype(int), patients


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("Opacities and INFILTRATES in both lungs.", ["opacity", "infiltrate", "lung"]),
        ("The hila; febrile", ["hila", "febrile"]),  # what simplemma does not know stays
        ("COVID-19, SARS-CoV-2, X-ray", ["covid", "sars-cov", "x-ray"]),
        ("a 65-year-old on 2020_01_28, see https://a.org/p/7?q=name", ["year-old"]),
        ("fiebre y tos", ["fiebre", "tos"]),
        ("发热 咳嗽", ["发热", "咳嗽"]),
        ("बुखार", ["बुखार"]),  # its vowel signs are no letters
        ("", []),
        (" 38.5 ! ", []),
        (None, []),
        (float("nan"), []),
    ],
)
def test_lemmas_of_notes(note, expected):
    assert lemmas(note) == expected


def test_language_and_stop_words_can_be_chosen():
    assert lemmas("Lungen") == ["lungen"] and lemmas("Lungen", "de") == ["lunge"]
    assert lemmas("No fever") == ["fever"] and lemmas("No fever", stop_words=()) == ["no", "fever"]


@pytest.mark.parametrize("part", ["fever ", "a", "é-", "1.", "发", "a·l", "((", "http://", "\u0301"])
def test_of_a_note_of_a_million_characters_the_beginning_is_read(part):
    """Time that grows with the square of the length would not end here."""
    note = "cough " + part * (1_000_000 // len(part)) + " wheeze"
    words = lemmas(note)
    assert words[0] == "cough" and "wheeze" not in words
    assert words == lemmas(note[: clinical.MOST_CHARACTERS])


def test_the_posterior_of_naive_bayes_by_hand_on_three_notes():
    notes = texts("Cough, fevers.", "Fever!", "The lungs are clear.")
    assert notes.tolist() == ["cough fever", "fever", "lung clear"]
    # with disease: cough 1, fever 2 of 3 words; without: lung 1, clear 1 of 2; 4 words are known, plus 1 each
    model = bag_of_words().fit(notes, [1, 1, 0])
    odds = (2 / 3 * 2 / 7) / (1 / 3 * 1 / 6)
    assert model.predict_proba(texts("coughing"))[0, 1] == pytest.approx(odds / (1 + odds))
    source, labels = Source(bag_of_words(), notes, [True] * 3), np.array([1, 1, 0])
    for word, expected in ("cough", (2 / 7) / (1 / 6)), ("fever", (3 / 7) / (1 / 6)), ("clear", 1 / 7 * 3):
        source = source._replace(inputs=pd.concat([notes, texts(word)]), present=[True] * 4)
        ratio = clinical._ratios(source, labels, np.arange(3), np.array([3]))
        assert ratio == pytest.approx(np.log(expected))


def test_empty_notes_and_unknown_words_say_nothing():
    notes = texts("cough fever", "fever", "lung clear", "", "xyzzy", "发热 咳嗽", "cough")
    source = Source(bag_of_words(), notes, notes != "")
    ratios = clinical._ratios(source, np.array([1, 1, 0]), np.arange(3), np.arange(3, 7))
    assert ratios[0] == 0 and ratios[:3] == pytest.approx(0) and ratios[3] > 0.1
    for written in (texts(), texts("", "")):  # nobody wrote a note
        empty = pd.DataFrame({"text": written, "group": range(len(written))})
        finder = LabelWords(["sick"]).fit(empty, np.arange(len(written)))
        assert finder.found_.empty and list(finder.transform(empty)) == list(written)


def test_notes_that_say_nothing_but_the_label_contribute_0(cohort):
    labels, patients = cohort
    notes = pd.DataFrame({"text": np.where(labels, "sick", "well"), "group": patients})
    fold = patient_folds(labels, patients)
    naive = make_pipeline(LabelWords(), CountVectorizer(token_pattern=r"\S+"), MultinomialNB())
    assert not nested_ratios(Source(naive, notes, labels >= 0), labels, patients, fold).any()
    broken = make_pipeline(LabelWords(), CountVectorizer(min_df=-1), MultinomialNB())
    with pytest.raises(ValueError, match="min_df"):  # another mistake is not hidden
        nested_ratios(Source(broken, notes, labels >= 0), labels, patients, fold)


def planted(rng, patients=200, label_word=True):
    labels = np.arange(patients) % 2
    words = np.array([f"word{chr(97 + number)}" for number in range(26)])
    notes = [" ".join(rng.choice(words, 12)) for _ in labels]
    says = {"crackle": np.where(labels, 0.8, 0.3)}  # a strong sign is no leak
    says |= (
        {"diagnosed": np.where(labels, 0.5, 0.0), "ruledout": np.where(labels, 0.01, 0.4)}
        if label_word
        else {}
    )
    for word, share in says.items():
        notes = [
            f"{note} {word}" if here else note for note, here in zip(notes, rng.random(patients) < share)
        ]
    return pd.DataFrame({"text": notes, "group": np.arange(patients)}), labels


@pytest.mark.parametrize("seed", range(5))
def test_planted_label_words_are_found_and_removed_and_nothing_else(seed):
    notes, labels = planted(np.random.default_rng(seed))
    finder = LabelWords().fit(notes, labels)
    assert set(finder.found_.index) == {"diagnosed", "ruledout"}
    holders = notes["text"].str.contains("diagnosed")
    assert finder.found_.loc["diagnosed"].tolist() == [holders[labels == 1].sum(), holders[labels == 0].sum()]
    expected = notes["text"].str.replace(" diagnosed", "").str.replace(" ruledout", "")
    assert finder.transform(notes).tolist() == expected.tolist()
    assert LabelWords().fit(*planted(np.random.default_rng(seed), label_word=False)).found_.empty


def test_names_of_the_classes_are_label_words_even_where_rare():
    notes, labels = planted(np.random.default_rng(0), label_word=False)
    notes.loc[3, "text"] += " pneumonia"
    notes.loc[4, "text"] += " sars-cov sarsaparilla"
    finder = LabelWords(["no finding", "Pneumonias, bacterial", "SARS"]).fit(notes, labels)
    assert finder.found_.index.tolist() == ["pneumonia", "sars-cov"]


def test_a_word_that_chance_or_four_patients_explain_is_no_label_word():
    notes, labels = planted(np.random.default_rng(0), label_word=False)
    notes.loc[np.flatnonzero(labels)[:6], "text"] += " chance"  # 6 : 0, but 27 words were tested
    assert LabelWords().fit(notes, labels).found_.empty
    notes.loc[np.flatnonzero(labels)[:16], "text"] += " chance"
    assert LabelWords().fit(notes, labels).found_.index.tolist() == ["chance"]
    few = (np.arange(200) >= 190).astype(int)
    for patients, found in (4, []), (5, ["rare"]):  # both significant, because one class is small
        told = notes.assign(text=notes["text"].str.replace(" chance", ""))
        told.loc[np.flatnonzero(few)[:patients], "text"] += " rare"
        assert LabelWords().fit(told, few).found_.index.tolist() == found


def test_many_notes_of_one_patient_are_one_witness():
    notes, labels = planted(np.random.default_rng(0), label_word=False)
    one = pd.DataFrame({"text": ["tattoo"] * 50, "group": 1})
    everyone = pd.concat([notes, one]), np.append(labels, [1] * 50)
    assert LabelWords().fit(*everyone).found_.empty
    others = pd.concat([notes, one.assign(group=np.arange(1000, 1050))])
    assert LabelWords().fit(others, everyone[1]).found_.index.tolist() == ["tattoo"]


def test_label_words_of_the_test_fold_are_not_known_in_training():
    """What only the last fold says is neither removed nor learned."""
    notes, labels = planted(np.random.default_rng(0), label_word=False)
    fold = patient_folds(labels, notes["group"])
    notes.loc[(fold == 4) & (labels == 1), "text"] += " diagnosed"
    finder = make_pipeline(LabelWords(), CountVectorizer(token_pattern=r"\S+"), MultinomialNB())
    finder.fit(notes[fold < 4], labels[fold < 4])
    assert finder[0].found_.empty and "diagnosed" not in finder[1].vocabulary_


def test_no_patient_is_in_two_folds(cohort):
    labels, patients = cohort
    fold = patient_folds(labels, patients)
    assert set(fold) == set(range(5)) and (pd.Series(fold).groupby(patients).nunique() == 1).all()
    rates = pd.Series(labels).groupby(fold).mean()
    assert rates.between(labels.mean() - 0.1, labels.mean() + 0.1).all()
    assert (fold != patient_folds(labels, patients, seed=1)).any()


def test_no_classifier_scores_a_patient_whom_it_has_seen(cohort):
    labels, patients = cohort
    source = Source(Memory(), pd.Series(patients), np.ones(len(labels), bool))
    assert not nested_ratios(source, labels, patients, patient_folds(labels, patients)).any()
    by_image = patient_folds(labels, np.arange(len(labels)))
    assert nested_ratios(source, labels, patients, by_image).any()  # so it would be noticed


def test_labels_of_a_fold_do_not_change_its_own_predictions(cohort):
    labels, patients = cohort
    rng = np.random.default_rng(1)
    inputs = [pd.DataFrame({"x": labels + rng.normal(0, 2, len(labels))}) for _ in range(2)]
    fold = patient_folds(labels, patients)

    def predictions(labels):
        ratios = [
            nested_ratios(Source(LogisticRegression(), x, x["x"] > -9), labels, patients, fold)
            for x in inputs
        ]
        evidence, prior, _ = fuse(ratios, labels, fold)
        return evidence + prior

    before, after = predictions(labels), predictions(np.where(fold == 2, 1 - labels, labels))
    assert np.array_equal(before[fold == 2], after[fold == 2])
    assert (before[fold != 2] != after[fold != 2]).all()


def two_independent_sources():
    """Counts in which likelihood ratios (0.75/0.25 and 0.6/0.2) and prior (2 : 1) hold exactly."""
    rows = [(label, x, z) for label in (0, 1) for x in (0, 1) for z in (0, 1)]
    counts = [600, 150, 200, 50, 200, 300, 600, 900]
    table = pd.DataFrame(rows, columns=["label", "x", "z"]).loc[np.repeat(range(8), counts)]
    x, z = (np.log([(1 - p1) / (1 - p0), p1 / p0]) for p1, p0 in ((0.75, 0.25), (0.6, 0.2)))
    return table["label"].to_numpy(), x[table["x"]], z[table["z"]]


def test_fusion_of_independent_sources_is_their_sum_plus_the_prior():
    labels, x, z = two_independent_sources()
    weights, prior = fit_weights(np.stack([x, z], axis=1), labels)
    assert [*weights, prior] == pytest.approx([1, 1, np.log(2)], abs=1e-3)
    fold = np.repeat([0, 1, 2], len(labels))  # three copies: each fold alone has these counts
    labels, x, z = (np.tile(values, 3) for values in (labels, x, z))
    evidence, prior, weights = fuse([np.tile(x, (3, 1)), np.tile(z, (3, 1))], labels, fold)
    assert evidence == pytest.approx(x + z, abs=1e-2) and prior == pytest.approx(np.log(2), abs=1e-3)
    assert weights.shape == (3, 2)
    both = (x > 0) & (z > 0)
    assert expit(evidence + prior)[both] == pytest.approx(2 * 3 * 3 / (1 + 2 * 3 * 3), abs=1e-3)


def test_a_source_told_twice_counts_once():
    labels, x, z = two_independent_sources()
    weights, _ = fit_weights(np.stack([x, x, z], axis=1), labels)
    assert weights == pytest.approx([0.5, 0.5, 1], abs=1e-3)


def test_a_missing_source_contributes_0(cohort):
    labels, patients = cohort
    rng = np.random.default_rng(0)
    x, z = (pd.DataFrame({"x": labels + rng.normal(size=len(labels))}) for _ in range(2))
    z[patients % 2 == 0] = np.nan  # logistic regression would not take them
    fold = patient_folds(labels, patients)
    ratios = [
        nested_ratios(Source(LogisticRegression(), v, v["x"].notna()), labels, patients, fold) for v in (x, z)
    ]
    missing = patients % 2 == 0
    assert not ratios[1][:, missing].any() and ratios[1][:, ~missing].all()
    evidence, _, weights = fuse(ratios, labels, fold)
    own = ratios[0][fold, np.arange(len(labels))]
    assert evidence[missing] == pytest.approx((own * weights[fold, 0])[missing])


def test_a_source_that_points_the_wrong_way_gets_no_weight():
    labels, x, z = two_independent_sources()
    weights, prior = fit_weights(np.stack([x, -z], axis=1), labels)
    alone, prior_alone = fit_weights(x[:, None], labels)
    assert weights.tolist() == pytest.approx([alone[0], 0]) and prior == pytest.approx(prior_alone)


def test_no_source_is_surer_than_a_thousand_to_one(cohort):
    labels, patients = cohort
    naive = Source(bag_of_words(), pd.Series(np.where(labels, "cough " * 99, "clear " * 99)), labels >= 0)
    ratios = nested_ratios(naive, labels, patients, patient_folds(labels, patients))
    assert np.abs(ratios) == pytest.approx(np.log(1000))


def test_too_few_patients_for_the_folds_are_refused(cohort):
    labels, patients = cohort
    for folds in (1, 41):
        with pytest.raises(ValueError, match=f"folds must be 2 to 40.*Received: folds={folds}"):
            patient_folds(labels, patients, folds)
    with pytest.raises(ValueError, match="labels must contain both classes"):
        patient_folds(np.ones(10, int), np.arange(10))


@pytest.fixture(scope="module")
def many():
    return phantom_records(np.random.default_rng(0).random(100_000) < 0.73, 1)


def test_the_known_evidence_is_exact(many):
    """A logistic regression on a log-likelihood ratio finds the weight 1 and the prior."""
    records, best = many
    labels = records["label"]
    for columns in (*([name] for name in best), ["image", "beside the image", "notes"]):
        weights = LogisticRegression(C=1e6).fit(best[columns], labels)
        assert weights.coef_[0] == pytest.approx(1, abs=0.06), columns
        assert weights.intercept_ == pytest.approx(np.log(labels.mean() / (1 - labels.mean())), abs=0.06)


def test_the_best_auroc_of_image_and_missing_values_by_hand(many):
    records, best = many
    labels, lesion = records["label"], best["image"] > 0
    found, alarm = lesion[labels == 1].mean(), lesion[labels == 0].mean()
    assert found == pytest.approx(0.9 * 0.73 / (0.9 * 0.73 + 0.2 * 0.27), abs=0.01)
    assert roc_auc_score(labels, best["image"]) == pytest.approx((1 + found - alarm) / 2)
    assert roc_auc_score(labels, best["missing values"]) == pytest.approx((1 + 0.6 - 0.3) / 2, abs=0.01)


def test_the_evidence_of_a_record_by_hand(many):
    records, best = many
    told = np.zeros(len(records))
    for name, (means, spread, shares) in {
        "temperature": ((37.8, 38.5), 0.8, (0.1, 0.1)),
        "white_cells": ((10.5, 14.0), 4.0, (0.6, 0.3)),
    }.items():
        known = norm.pdf(records[name], means[1], spread) / norm.pdf(records[name], means[0], spread)
        known = known * (1 - shares[1]) / (1 - shares[0])
        told += np.log(np.where(records[name].isna(), shares[1] / shares[0], known))
    assert best["beside the image"].to_numpy() == pytest.approx(told)
    notes, told = records["note"], np.zeros(len(records))
    for number, (pattern, (without, with_disease)) in enumerate(
        {
            "Cough": (0.45, 0.70),
            "Fever|Febrile": (0.30, 0.60),
            "Crackl|A crackle": (0.25, 0.55),
            "Runny|nose runs|Nose": (0.45, 0.20),
            "pneumonia": (0.01, 0.40),
            "Amoxicillin": (0.01, 0.30),
        }.items()
    ):
        if number == 4:
            assert best["notes"].to_numpy() == pytest.approx(np.where(notes == "", 0, told))
        said = notes.str.contains(pattern).to_numpy()
        told += np.log(np.where(said, with_disease / without, (1 - with_disease) / (1 - without)))
    assert best["notes with label words"].to_numpy() == pytest.approx(np.where(notes == "", 0, told))


def test_records_are_the_same_for_the_same_seed_and_age_says_nothing(many):
    lesion = np.arange(200) % 4 > 0
    for first, again in zip(phantom_records(lesion, 3), phantom_records(lesion, 3)):
        pd.testing.assert_frame_equal(first, again)
    assert (phantom_records(lesion, 4)[0]["note"] != phantom_records(lesion, 3)[0]["note"]).any()
    assert roc_auc_score(many[0]["label"], many[0]["age"]) == pytest.approx(0.5, abs=0.01)
