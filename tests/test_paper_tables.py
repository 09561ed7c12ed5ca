"""The paper's printed numbers: read as they stand, and never made up."""

import math

import pytest

from mgca_lib.evaluation.paper_tables import CSV_FILE, paper_table, published_probes


def test_every_row_of_the_file_is_in_one_table():
    lines = CSV_FILE.read_text(encoding="utf-8").strip().splitlines()
    assert [len(paper_table(number)) for number in range(1, 6)] == [108, 36, 36, 24, 12]
    assert sum(len(paper_table(number)) for number in range(1, 6)) == len(lines) - 1


def test_values_are_what_is_printed_and_unknown_ones_stay_unknown():
    for number in range(1, 6):
        for row in paper_table(number).itertuples():
            if row.printed in ("-", "<1"):
                assert math.isnan(row.value)
            else:
                assert f"{row.value:g}" == f"{float(row.printed):g}"
                assert 0 <= row.value <= 100


def test_published_probes_are_table_1_as_shares():
    shown = published_probes({"mgca": "MGCA (ViT-B/16)", "random": "Random Init"})
    assert list(shown) == ["chexpert", "rsna", "covidx"]
    assert shown["chexpert"] == {
        "1%": {"mgca": 0.888, "random": 0.561},
        "10%": {"mgca": 0.891, "random": 0.626},
        "100%": {"mgca": 0.897, "random": 0.657},
    }
    assert shown["covidx"]["1%"] == {"mgca": 0.748, "random": 0.505}


def test_a_dash_is_left_out():
    shown = published_probes({"vse++": "VSE++", "mgca": "MGCA (ViT-B/16)"})
    assert shown["covidx"]["1%"] == {"mgca": 0.748}


def test_unknown_tables_and_methods_are_refused():
    with pytest.raises(ValueError, match="1, 2, 3, 4, 5"):
        paper_table(6)
    with pytest.raises(ValueError, match="no method 'CLIP'"):
        published_probes({"clip": "CLIP"})
