"""Somebody's own images: labels meet predictions, and the report says what is true of them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.special import expit, logit

from chestxray.cli import main
from chestxray.deployment.evaluate import drift_report, join_labels, locally_calibrated, report
from chestxray.evaluation.drift import describe_reference
from chestxray.files import read_json, write_json

PUBLISHED = read_json(Path(__file__).parents[2] / "saved_models" / "custom_cnn-patient-s0-t0" / "card.json")
CLASSES = ("NORMAL", "PNEUMONIA")
MEASURES = ("brightness", "contrast", "sharpness", "likeness", "distance")


def predictions_of(count=400, seed=0, slope=1.0, shift=0.0):
    """Predictions of a model that is right but for slope and shift of its log-odds, and the labels."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0, 2, count)
    labels = (generator.random(count) < expit(odds)).astype(int)
    told = (odds - shift) / slope
    table = pd.DataFrame(
        {
            "path": [f"/films/{number}.png" for number in range(count)],
            "status": "ok",
            "probability": expit(told),
            "decision": np.where(told >= 0, CLASSES[1], CLASSES[0]),
            "problem": None,
            "logit": told,
        }
    )
    for name in MEASURES:
        table[name] = generator.normal(100, 10, count)
    return table, labels


def card_of(table):
    return PUBLISHED | {
        "name": "model",
        "classes": list(CLASSES),
        "limits": ["Research software, not a medical device."],
        "calibration": {"slope": 1.0, "intercept": 0.0},
        "thresholds": {"youden": 0.5, "sensitivity_95": None, "half": 0.5},
        "triage": {"rule_out": 0.1, "rule_in": 0.9},
        "reference": describe_reference({name: table[name] for name in (*MEASURES, "logit")}),
    }


@pytest.fixture(scope="module")
def told():
    table, labels = predictions_of()
    given = pd.DataFrame(
        {"path": table["path"], "label": labels, "site": np.arange(400) % 2, "group": np.arange(400) // 2}
    )
    return table, given


# Labels


def test_labels_meet_predictions_by_path_or_by_name(told):
    table, given = told
    for changed in (
        given,
        given.assign(path=given["path"].str.removeprefix("/films/")),
        given.assign(label=given["label"].map(dict(enumerate(CLASSES)))),
    ):
        joined, absent = join_labels(table, changed.sample(frac=1, random_state=0), CLASSES)
        assert absent.empty
        joined = joined.set_index("path").loc[table["path"]]
        assert joined["label"].tolist() == given["label"].tolist()
        assert joined["group"].tolist() == given["group"].astype(str).tolist()


def test_labels_without_prediction_are_told(told):
    table, given = told
    more = pd.concat([given, pd.DataFrame({"path": ["elsewhere.png"], "label": [1]})])
    joined, absent = join_labels(table, more, CLASSES)
    assert len(joined) == 400 and absent["path"].tolist() == ["elsewhere.png"]


def test_patients_that_are_numbers_may_be_missing(told):
    table, given = told
    joined, _ = join_labels(table, given.assign(group=given["group"].where(given.index > 1)), CLASSES)
    assert joined["group"].nunique() == 201  # two images without a patient, and 199 patients
    assert "400 images of 201 patients" in report(joined, card_of(table))[0][1]


def test_without_groups_each_image_is_a_patient(told):
    table, given = told
    joined, _ = join_labels(table, given.drop(columns="group"), CLASSES)
    assert joined["group"].nunique() == 400
    assert "another patient" in report(joined, card_of(table))[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.drop(columns="label"), "labels need a column label"),
        (lambda given: given.assign(label="ill"), "Received: label='ill'"),
        (lambda given: pd.concat([given, given.iloc[:1]]), "name a path twice"),
        (
            lambda given: given.assign(path="x/" + given["path"].str.removeprefix("/films/") + "x"),
            "no path of the labels is among the predictions",
        ),
        (
            lambda given: pd.concat([given.iloc[:1], given.iloc[:1].assign(path="0.png")]),
            "match the same prediction",
        ),
    ],
)
def test_labels_that_do_not_fit(told, change, message):
    table, given = told
    with pytest.raises(ValueError, match=message):
        join_labels(table, change(given), CLASSES)


def test_an_ambiguous_file_name(told):
    table, given = told
    twins = table.assign(path=np.where(table.index == 1, "/other/0.png", table["path"]))
    with pytest.raises(ValueError, match="whole paths. Received: path='0.png'"):
        join_labels(twins, pd.DataFrame({"path": ["0.png"], "label": [1]}), CLASSES)


def test_a_file_of_the_same_name_in_another_folder_is_another_file(told):
    table, _ = told
    labels = pd.DataFrame({"path": ["siteB/0.png", "far/films/1.png", "films/2.png"], "label": [1, 0, 1]})
    joined, absent = join_labels(table, labels, CLASSES)
    assert joined["path"].tolist() == ["/films/2.png"]
    assert absent["path"].tolist() == ["siteB/0.png", "far/films/1.png"]
    # A prediction of "1.png" says not of which folder: whole paths of the labels do not match its end.
    joined, absent = join_labels(table.assign(path=table["path"].str[1:]), labels, CLASSES)
    assert joined["path"].tolist() == ["films/2.png"] and len(absent) == 2
    inside = table.assign(path=table["path"].str.removeprefix("/films/"))
    with pytest.raises(ValueError, match="no path of the labels"):
        join_labels(inside, labels, CLASSES)


def test_names_of_files_do_not_steer_the_terminal(told, tmp_path):
    table, _ = told
    write_json(tmp_path / "model" / "card.json", card_of(table))
    table.assign(path=table["path"] + "\x1b[2J").to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "l.csv").write_text("path,label\n1.png\x1b[2J,1\nother.png\x1b[2J,1\n")
    words = ["evaluate", str(tmp_path / "p.csv"), "--model", str(tmp_path / "model")]
    for more in ([], ["--labels", str(tmp_path / "l.csv")]):
        output = CliRunner().invoke(main, [*words, *more]).output
        assert ".png\\x1b[2J" in output and "\x1b" not in output


def test_labels_that_a_spreadsheet_wrote(told, tmp_path):
    table, _ = told
    write_json(tmp_path / "model" / "card.json", card_of(table))
    table.to_csv(tmp_path / "p.csv", index=False)
    labels = [f"{number}.png,{number % 2}.0,{number // 2:03d}" for number in range(120)]
    labels[6:8] = ["6.png,0.0,3", "7.png,1.0,"]  # "003" and "3" are two patients; no patient; no label
    labels[8:12] = ["8.png,0.0,NA", "9.png,1.0,NA", "10.png,0,None", "11.png,1,None"]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,group", *labels, "120.png,,"]))
    said = CliRunner().invoke(
        main,
        [
            "evaluate",
            str(tmp_path / "p.csv"),
            "--model",
            str(tmp_path / "model"),
            "--labels",
            str(tmp_path / "l.csv"),
        ],
    )
    assert "120 images of 61 patients" in said.output, said.output


# The report


def section(sections, title):
    return next(one for one in sections if one[0] == title)


def test_the_report_scores_what_was_scored(told):
    table, given = told
    refused = table.assign(probability=table["probability"].where(table.index >= 10))
    joined, _ = join_labels(refused, given, CLASSES)
    sections = report(joined, card_of(table), ["site"])
    counted = section(sections, "Images")[1]
    assert counted.startswith("390 images of 195 patients") and "10 more were refused" in counted
    rows = joined[joined["probability"].notna()]
    called = rows["probability"] >= 0.5
    points = section(sections, "Decisions at the stored thresholds")[2].set_index("")
    assert points.loc["sensitivity", "youden"] == pytest.approx(called[rows["label"] == 1].mean())
    assert list(points.columns) == ["youden", "half"]  # sensitivity_95 has no threshold
    triage = section(sections, "Triage")[2].set_index("decision")
    assert triage.loc["rule in", "images"] == (rows["probability"] >= 0.9).sum()
    assert section(sections, "By site")[2]["images"].tolist() == [195, 195]


def test_predictive_values_at_the_prevalence_asked_for(told):
    table, given = told
    joined, _ = join_labels(table, given, CLASSES)
    points = section(report(joined, card_of(table), prevalence=0.1), "Decisions at the stored thresholds")[2]
    assert {"ppv_10", "npv_10"} == {name for name in points[""] if name[:3] in ("ppv", "npv")}


def test_a_class_of_few_images_is_told(told):
    table, given = told
    joined, _ = join_labels(table, given, CLASSES)
    sick, well = joined[joined["label"] == 1], joined[joined["label"] == 0]
    for count, few in ((29, True), (30, False)):
        text = section(report(pd.concat([sick, well[:count]]), card_of(table)), "Images")[1]
        assert ("fewer than 30 images: read the intervals" in text) == few


def test_local_recalibration_mends_what_is_wrong():
    table, labels = predictions_of(2000, slope=0.5, shift=1.0)
    rows = table.assign(label=labels, group=table.index)
    found = section(report(rows, card_of(table)), "Calibration")[2]
    found = found.set_index(["calibration", "metric"])["value"]
    assert found["as stored", "slope"] == pytest.approx(0.5, abs=0.05)
    assert found["refitted here (cross-validated)", "slope"] == pytest.approx(1, abs=0.1)
    assert found["refitted here (cross-validated)", "brier"] < found["as stored", "brier"] - 0.01


def test_recalibration_is_fitted_on_other_patients():
    labels = np.arange(60) % 2
    rows = pd.DataFrame(
        {
            "logit": np.random.default_rng(0).normal(0, 1, 60) + labels,
            "label": labels,
            "group": np.arange(60) // 2,
        }
    )
    swapped = rows.assign(label=np.where(rows["group"] == 7, 1 - rows["label"], rows["label"]))
    before, after = locally_calibrated(rows), locally_calibrated(swapped)
    changed = np.flatnonzero(before != after)
    assert 40 < len(changed) < 60 and not set(changed) & {14, 15}  # its own fold did not see it


def test_too_few_patients_are_not_recalibrated():
    table, labels = predictions_of(400)
    rows = table.assign(label=labels, group=np.arange(400) % 8)
    text, found = section(report(rows, card_of(table)), "Calibration")[1:]
    assert "too few patients" in text and set(found["calibration"]) == {"as stored"}


def test_a_model_that_ranks_backwards_here_is_told():
    table, labels = predictions_of(400)
    rows = table.assign(label=1 - labels, group=table.index)
    text = section(report(rows, card_of(table)), "Calibration")[1]
    assert "ranks these images backwards" in text


def test_columns_of_the_labels_never_replace_what_the_model_said(told):
    table, given = told
    joined, _ = join_labels(table, given.assign(probability=given["label"], logit=0.0, status="x"), CLASSES)
    joined = joined.set_index("path").loc[table["path"]]
    assert joined["probability"].tolist() == table["probability"].tolist()
    assert (joined["logit"] == table["logit"].to_numpy()).all() and set(joined["status"]) == {"ok"}


def test_labels_that_are_not_known_yet_are_left_out(told):
    table, given = told
    some = given.assign(label=given["label"].astype(str).where(given.index < 100))
    assert len(join_labels(table, some, CLASSES)[0]) == 100
    with pytest.raises(ValueError, match="no label is given"):
        join_labels(table, given.assign(label=None), CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="logit"), r"missing: \['logit'\]"),
        (lambda rows: rows.assign(probability=np.nan), "no labelled image was classified"),
    ],
)
def test_predictions_that_cannot_be_scored(told, change, message):
    table, given = told
    joined, _ = join_labels(table, given, CLASSES)
    with pytest.raises(ValueError, match=message):
        report(change(joined), card_of(table))


def test_predictions_of_another_model_are_noticed(told):
    table, given = told
    joined, _ = join_labels(table, given, CLASSES)
    rounded = joined.round({"probability": 5, "logit": 5})
    assert len(report(rounded, card_of(table))) == len(report(joined, card_of(table)))
    other = card_of(table) | {"name": "other", "calibration": {"slope": 1.01, "intercept": 0.0}}
    with pytest.raises(ValueError, match="another model made .* of these 400 .* model='other', path='/f"):
        report(joined, other)
    mixed = table.assign(logit=table["logit"].where(table.index != 7, table["logit"] + 0.01))
    with pytest.raises(ValueError, match="another model made 1 of these 400 .* path='/films/7.png'"):
        drift_report(mixed, card_of(table))


# Without labels


def test_drift_shares_and_what_to_label(told):
    table, _ = told
    card = card_of(table)
    later, _ = predictions_of(300, seed=1)
    later["brightness"] += 15
    later.loc[:29, ["status", "probability", "problem"]] = ["refused", np.nan, "upside down"]
    later.loc[0, [*MEASURES, "logit"]] = np.nan  # refused before it was measured
    later.loc[30:35, ["status", "probability", "logit", *MEASURES]] = ["unreadable", *[np.nan] * 7]
    sections = drift_report(later, card)
    shares = section(sections, "Shares")[2].set_index("what")
    assert shares.loc["unlike the training images", ["images", "of"]].tolist() == [30, 294]
    assert shares.loc["unreadable", ["images", "of"]].tolist() == [6, 300]
    assert shares.loc["predicted PNEUMONIA", "of"] == 264
    assert shares.loc["predicted PNEUMONIA", "images"] == (later.loc[36:, "logit"] >= 0).sum()
    other = later.assign(decision=CLASSES[1])  # decided by another rule than youden
    assert (
        section(drift_report(other, card), "Shares")[2].set_index("what").loc["predicted PNEUMONIA", "images"]
        == 264
    )
    verdicts = section(sections, "Drift")[2].set_index("what")["verdict"]
    assert verdicts["brightness"] == "large change"
    assert set(verdicts.drop("brightness")) == {"no change seen"}
    to_label = section(sections, "What to label next")[2]
    assert len(to_label) == 20 and to_label["path"].is_unique
    near = to_label[to_label["why"] == "nearest to the threshold"]["probability"]
    judged = later["probability"].dropna()
    assert sorted((near - 0.5).abs()) == pytest.approx(sorted((judged - 0.5).abs())[:10])


# The command


@pytest.mark.parametrize("missing", ["thresholds", "limits", "schema"])
def test_a_card_that_cannot_be_used(told, tmp_path, missing):
    card = card_of(told[0])
    del card[missing]
    write_json(tmp_path / "model" / "card.json", card)
    told[0].to_csv(tmp_path / "p.csv", index=False)
    for words in (["evaluate", str(tmp_path / "p.csv"), "--model"], ["export", "--format", "onnx"]):
        found = CliRunner().invoke(main, [*words, str(tmp_path / "model")])
        assert found.exit_code == 2 and missing in found.output and "Received: folder=" in found.output


def test_classes_that_are_called_by_digits(told, tmp_path):
    table, said = told[0], []
    for classes in (["NORMAL", "PNEUMONIA"], ["0", "1"]):
        write_json(tmp_path / "model" / "card.json", card_of(table) | {"classes": classes})
        names = dict(zip(["NORMAL", "PNEUMONIA"], classes, strict=True))
        table.assign(decision=table["decision"].map(names)).to_csv(tmp_path / "p.csv", index=False)
        words = ["evaluate", str(tmp_path / "p.csv"), "--model", str(tmp_path / "model")]
        lines = CliRunner().invoke(main, words).output.splitlines()
        said.append([line.split()[2:] for line in lines if f"predicted {classes[1]}" in line])
    assert said[0] == said[1] and len(said[0]) == 1


def test_the_page_has_pictures_intervals_and_the_names_of_the_classes(told, tmp_path):
    table, labels = told[0], tmp_path / "mine.csv"
    write_json(tmp_path / "model" / "card.json", card_of(table) | {"classes": ["healthy", "sick"]})
    names = {"NORMAL": "healthy", "PNEUMONIA": "sick"}
    table.assign(decision=table["decision"].map(names)).to_csv(tmp_path / "p.csv")
    table.assign(label=["healthy", "sick"] * (len(table) // 2))[["path", "label"]].to_csv(labels)
    files = [str(tmp_path / name) for name in ("p.csv", "model", "mine.csv", "page.html")]
    words = ["evaluate", files[0], "--model", files[1], "--labels", files[2], "--html", files[3]]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and "sick" in page and "pneumonia" not in page
    assert re.search(r"auroc +0\.\d\d \(0\.\d\d–0\.\d\d\)", done.output)


def test_a_page_does_not_replace_its_table(told, tmp_path):
    write_json(tmp_path / "model" / "card.json", card_of(told[0]))
    told[0].to_csv(tmp_path / "p.csv", index=False)
    before = (tmp_path / "p.csv").read_bytes()
    found = CliRunner().invoke(
        main,
        [
            "evaluate",
            str(tmp_path / "p.csv"),
            "--model",
            str(tmp_path / "model"),
            "--html",
            str(tmp_path / "p.csv"),
        ],
    )
    assert found.exit_code == 2 and "must end in .html or .htm. Received" in found.output
    assert (tmp_path / "p.csv").read_bytes() == before


def test_command_with_and_without_labels(told, tmp_path):
    table, given = told
    write_json(tmp_path / "model" / "card.json", card_of(table))
    table.to_csv(tmp_path / "p.csv", index=False)
    given.to_csv(tmp_path / "labels.csv", index=False)
    arguments = ["evaluate", str(tmp_path / "p.csv"), "--model", str(tmp_path / "model")]
    result = CliRunner().invoke(main, [*arguments, "--html", str(tmp_path / "drift.html")])
    assert result.exit_code == 0, result.output
    assert "Drift does not prove a loss of performance" in result.output
    assert "Drift does not prove a loss" in (tmp_path / "drift.html").read_text(encoding="utf-8")
    result = CliRunner().invoke(
        main, [*arguments, "--labels", str(tmp_path / "labels.csv"), "--by", "site", "--prevalence", "0.1"]
    )
    assert result.exit_code == 0, result.output
    for said in ("By site", "ppv_10", "not a medical device"):
        assert said in result.output
    result = CliRunner().invoke(main, [*arguments, "--labels", str(tmp_path / "labels.csv"), "--by", "sex"])
    assert result.exit_code == 2 and result.output.splitlines()[-1].endswith("Received: by='sex'")


def test_prevalence_is_shifted_from_that_of_these_images():
    """The model was calibrated where most are ill; here 1 in 2 is, and it is asked about 1 in 5."""
    table, labels = predictions_of(2000, shift=-2.0)
    rows = table.assign(label=labels, group=table.index)
    text = section(report(rows, card_of(table), prevalence=0.2), "Calibration")[1]
    odds = logit(locally_calibrated(rows)) + logit(0.2) - logit(labels.mean())
    assert f"refitted probability {labels.mean():.2f} becomes {expit(odds).mean():.2f}" in text
