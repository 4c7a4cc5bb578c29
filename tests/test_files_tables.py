"""Names stay as they are written, numbers are numbers."""

import numpy as np
import pandas as pd
import pytest

from chestxray.files import read_table


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["01", "1", "2"], ["01", "1", "2"]),  # wards
        (["NA", "EU", ""], ["NA", "EU", np.nan]),  # sites
        (["None", "null", "x"], ["None", "null", "x"]),
        (["0.5", "", "-3e2"], [0.5, np.nan, -300.0]),
        (["3", "NA", "5"], [3.0, np.nan, 5.0]),  # ages, as R writes them
        (["0", "10", "200"], [0, 10, 200]),
        (["True", "False", "True"], [True, False, True]),
    ],
)
def test_columns_of_numbers_and_of_names(tmp_path, cells, expected):
    pd.DataFrame({"x": range(3), "own": cells}).to_csv(tmp_path / "list.csv", index=False)
    table = read_table(tmp_path / "list.csv", ())
    pd.testing.assert_series_equal(table["own"], pd.Series(expected, name="own"), check_dtype=False)
    assert table["x"].tolist() == [0, 1, 2]


def test_two_columns_of_one_name_stay_apart(tmp_path):
    (tmp_path / "list.csv").write_text("ward,logit,ward\n01,0.25,02\n1,0.5,2\n")
    table = read_table(tmp_path / "list.csv", ())
    assert table.to_dict("list") == {"ward": ["01", "1"], "logit": [0.25, 0.5], "ward.1": ["02", "2"]}


def test_named_columns_are_names_also_where_they_look_like_numbers(tmp_path):
    (tmp_path / "list.csv").write_text("group,age\n7,7\n,8\n12,9\n")
    table = read_table(tmp_path / "list.csv", ("group", "absent"))
    assert table["group"].fillna("missing").tolist() == ["7", "missing", "12"]
    assert table["age"].tolist() == [7, 8, 9]
