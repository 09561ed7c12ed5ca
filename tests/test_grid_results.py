"""The grid's table: own cells before committed ones, differences within a seed, and nothing restricted published."""

import ast
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from mgca_lib import grid_results as module
from mgca_lib.course.summary import RestrictedDataError
from mgca_lib.grid_results import (
    GridError,
    compare_steps,
    grid_table,
    load_grid,
    paired_differences,
    publish_grid,
    verdict,
)
from mgca_lib.variants import VARIANTS

OPEN = {"mimic_cxr": {"sha256": "ab", "source": "phantom", "restricted": False}}


def write_cell(root, variant, seed, metrics, *, profile="demo", data=OPEN, kind="grid"):
    folder = root / "outputs" / profile / kind / variant / f"seed-{seed}"
    folder.mkdir(parents=True)
    facts = {
        "seed": seed,
        "commit": "c0",
        "data": data,
        "hardware": {"cores": 2},
        "precision": "bf16",
        "training_seconds": 9.5,
        "versions": {"a": "1"},
    }
    (folder / "pretraining").mkdir()
    (folder / "pretraining/history.json").write_text(json.dumps([{"seconds": 4.25}, {"seconds": 5.25}]))
    (folder / "metrics.json").write_text(json.dumps({"metrics": metrics, "provenance": facts}))


def write_committed(root, rows, kind="terms"):
    path = root / module.COMMITTED[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["variant", "seed", "metric", "value", "low", "high", "n"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


@pytest.fixture
def project(tmp_path):
    write_committed(tmp_path, [("all", 1, "auroc", 0.5, 0.4, 0.6, 3), ("gloria", 1, "auroc", 0.6, None, None, None)])
    return tmp_path


def test_cells_become_rows(tmp_path):
    write_cell(tmp_path, "ita+cta", 7, {"auroc": {"mean": 0.8, "low": 0.7, "high": 0.9, "n": 3}, "chance": 0.5})
    (tmp_path / "outputs/demo/grid/all/seed-8").mkdir(parents=True)  # not finished
    table = grid_table(tmp_path / "outputs/demo/grid")
    assert table.loc[0].to_dict() == {
        "variant": "ita+cta",
        "seed": 7,
        "metric": "auroc",
        "value": 0.8,
        "low": 0.7,
        "high": 0.9,
        "n": 3.0,
        "source": "own",
    }
    assert table.loc[1, ["metric", "value", "source"]].tolist() == ["chance", 0.5, "own"]
    assert np.isnan(table.loc[1, ["low", "high", "n"]].astype(float)).all()
    assert len(table) == 2
    assert grid_table(tmp_path / "nowhere").empty


def test_own_cells_take_the_place_of_committed_ones(project):
    write_cell(project, "all", 1, {"auroc": 0.9})
    write_cell(project, "all", 2, {"auroc": 0.7})
    table = load_grid(project, "demo")
    found = {(r.variant, r.seed): (r.value, r.source) for r in table.itertuples()}
    assert found == {("all", 1): (0.9, "own"), ("all", 2): (0.7, "own"), ("gloria", 1): (0.6, "committed")}


def test_numbers_of_two_profiles_are_not_mixed(project):
    assert set(load_grid(project, "paper")["source"]) == {"committed"}
    for variant in module.COMPARED:
        assert set(load_grid(project, "paper")["source"]) == {"committed"}  # not enough to compare
        for seed in (1, 2):
            write_cell(project, variant, seed, {"auroc": 0.9}, profile="paper")
    assert set(load_grid(project, "paper")["source"]) == {"own"}
    assert set(load_grid(project, "demo")["source"]) == {"committed"}


def test_another_folder_of_cells(project):
    write_cell(project / "elsewhere", "all", 1, {"auroc": 0.1})
    table = load_grid(project, "demo", "elsewhere/outputs/demo/grid")
    assert dict(zip(table["variant"], table["value"], strict=True)) == {"all": 0.1, "gloria": 0.6}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "terms.csv: missing"),
        ("", "not a readable table"),
        ("variant,seed\nall,1\n", "column 'metric' is missing"),
    ],
)
def test_a_committed_table_that_cannot_be_read(project, content, problem):
    path = project / module.COMMITTED["terms"]
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(GridError, match=problem):
        load_grid(project, "demo")


def test_publishing_keeps_the_cells_of_others(project):
    assert not publish_grid(project)
    write_cell(project, "cta_grounded", 1, {"auroc": {"mean": 1 / 3, "low": 0.3, "high": 0.4, "n": 5}})
    assert publish_grid(project)
    assert not publish_grid(project)
    table = pd.read_csv(project / module.COMMITTED["terms"])
    assert table["variant"].tolist() == ["all", "cta_grounded", "gloria"]
    assert table.loc[1, ["value", "low", "high", "n"]].tolist() == [0.333333, 0.3, 0.4, 5]
    facts = json.loads((project / module.COMMITTED["terms"]).with_suffix(".json").read_text())
    assert facts == {
        "cta_grounded/seed-1": {
            "commit": "c0",
            "data": OPEN,
            "hardware": {"cores": 2},
            "precision": "bf16",
            "training_seconds": 9.5,
            "versions": {"a": "1"},
        }
    }


def test_every_variant_has_one_table_and_partners_several():
    """But for what is made of several steps: that is trained long, and only long."""
    kinds = ("terms", "inputs", "denials", "switches")
    places = {name: {kind for kind in kinds if module._belongs(name, kind)} for name in VARIANTS}
    together = [name for name, variant in VARIANTS.items() if variant.group == "together"]
    assert {name: places.pop(name) for name in together} == dict.fromkeys(together, set())
    assert len(together) == 4
    partners = {"all": {"switches"}, "ita+cta": {"switches"}, "cta_grounded": {"inputs", "denials"}}
    for partner, others in partners.items():
        assert places.pop(partner) == {"terms"} | others
    assert {name for name, kinds in places.items() if kinds == {"terms"}} == {"ita", "ita+cpa", "gloria"}
    assert all(len(kinds) == 1 for kinds in places.values())


def test_switches_have_a_table_of_their_own_with_the_partner_in_it(project):
    write_committed(project, [("all", 1, "auroc", 0.2, None, None, None)], "switches")
    write_cell(project, "all", 1, {"auroc": 0.9})
    assert not publish_grid(project, "switches")  # a partner alone says nothing about switches
    write_cell(project, "gloria", 1, {"auroc": 0.7}, data=OPEN | {"nih": OPEN["mimic_cxr"]})  # measured on more
    write_cell(project, "queue", 1, {"auroc": 0.8})
    assert publish_grid(project)
    assert publish_grid(project, "switches")
    found = {
        kind: dict(load_grid(project, "paper", "nowhere", kind=kind)[["variant", "value"]].itertuples(index=False))
        for kind in ("terms", "switches")
    }
    assert found == {"terms": {"all": 0.9, "gloria": 0.7}, "switches": {"all": 0.9, "queue": 0.8}}
    own = load_grid(project, "demo", kind="switches")
    assert set(own["variant"]) == {"all", "queue"}


def test_switches_at_another_profile_are_shown_once_what_they_are_held_against_has_two_seeds(project):
    write_committed(project, [("all", 1, "auroc", 0.2, None, None, None)], "switches")
    for name in ("all", "ita+cta", "queue"):
        assert set(load_grid(project, "paper", kind="switches")["source"]) == {"committed"}
        for seed in (1, 2):
            write_cell(project, name, seed, {"auroc": 0.5}, profile="paper")
    assert set(load_grid(project, "paper", kind="switches")["source"]) == {"own"}


def test_publishing_drops_cells_that_were_trained_on_other_data(project, capsys):
    (project / module.COMMITTED["terms"]).unlink()
    for variant, value in (("all", 0.1), ("ita", 0.2), ("ita+cpa", 0.3)):
        write_cell(project, variant, 1, {"auroc": value})
    assert publish_grid(project, "terms")
    for variant in ("all", "ita", "ita+cpa"):
        shutil.rmtree(project / "outputs/demo/grid" / variant)
    other = {"mimic_cxr": {"sha256": "cd", "source": "phantom", "restricted": False}}
    write_cell(project, "all", 1, {"auroc": 0.9}, data=other)
    assert publish_grid(project, "terms")
    assert "left out from now on: ita+cpa/seed-1, ita/seed-1" in capsys.readouterr().out
    write_cell(project, "ita", 1, {"auroc": 0.5})
    with pytest.raises(GridError, match="trained on different data"):
        publish_grid(project, "terms")
    assert pd.read_csv(project / module.COMMITTED["terms"])["value"].tolist() == [0.9]
    facts = json.loads((project / module.COMMITTED["terms"]).with_suffix(".json").read_text())
    assert list(facts) == ["all/seed-1"]


def test_variants_from_another_computer_are_named(project):
    places = {"all/seed-1": "A", "all/seed-2": "A", "ita/seed-1": "A", "gloria/seed-1": "B", "queue/seed-1": "A bf16"}
    for name, place in places.items():
        processor, _, precision = place.partition(" ")
        facts = {"commit": "", "training_seconds": 1, "hardware": {"processor": processor, "cores": 2}, "data": OPEN}
        facts |= {"precision": precision} if precision else {}
        record = (project / module.COMMITTED["terms"]).with_suffix(".json")
        known = json.loads(record.read_text()) if record.is_file() else {}
        record.write_text(json.dumps(known | {name: facts}))
    assert module.trained_elsewhere(project, "all") == ("gloria", "queue")
    assert module.trained_elsewhere(project, "gloria") == ("all", "ita", "queue")
    assert module.committed_cells(project)["precision"].tolist() == ["", "", "", "", "bf16"]


@pytest.mark.parametrize("kind", ["long", "long_denials"])
def test_long_runs_have_a_table_and_a_folder_of_their_own(project, kind):
    write_committed(project, [("all", 1, "auroc", 0.7, None, None, None)], kind)
    write_cell(project, "ita", 1, {"auroc": 0.9}, kind=kind)
    both = load_grid(project, "demo", kind=kind)
    assert {(r.variant, r.value, r.source) for r in both.itertuples()} == {
        ("ita", 0.9, "own"),
        ("all", 0.7, "committed"),
    }
    before = (project / module.COMMITTED["terms"]).read_bytes()
    assert not publish_grid(project)
    assert publish_grid(project, kind)
    assert pd.read_csv(project / module.COMMITTED[kind])["value"].tolist() == [0.7, 0.9]
    assert (project / module.COMMITTED["terms"]).read_bytes() == before


def test_long_runs_at_another_profile_are_shown_once_the_committed_variants_have_two_seeds(project):
    write_committed(project, [(name, 1, "auroc", 0.7, None, None, None) for name in ("all", "queue")], "long")
    for name in ("queue", "all"):
        assert set(load_grid(project, "paper", kind="long")["source"]) == {"committed"}
        for seed in (1, 2):
            write_cell(project, name, seed, {"auroc": 0.5}, profile="paper", kind="long")
    assert set(load_grid(project, "paper", kind="long")["source"]) == {"own"}


def test_a_variant_with_one_seed_keeps_the_interval_of_its_run_if_asked():
    """By hand: 0.1 and 0.3 have mean 0.2 and deviation 0.1414; t(1) = 12.706, so 0.2 +- 1.2706."""
    rows = [("ita", 1, "m", 0.1, 0.0, 0.2), ("ita", 2, "m", 0.3, 0.2, 0.4), ("all", 1, "m", 0.5, 0.4, 0.7)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value", "low", "high"])
    assert list(module.over_seeds(table, "m")) == ["ita"]
    found = module.over_seeds(table, "m", single=True)
    assert vars(found["ita"]) == pytest.approx({"mean": 0.2, "low": -1.07062, "high": 1.47062, "n": 2}, abs=1e-5)
    assert vars(found["all"]) == {"mean": 0.5, "low": 0.4, "high": 0.7, "n": 1}
    cut = module.over_seeds(table, "m", bounds=(0, 1))["ita"]
    assert (cut.low, cut.high) == (0, 1)


@pytest.mark.parametrize("data", [{}, {"mimic_cxr": {"restricted": True}}, {"a": {"restricted": False}, "b": {}}])
def test_restricted_data_are_not_published(project, data):
    before = (project / module.COMMITTED["terms"]).read_bytes()
    write_cell(project, "gloria", 1, {"auroc": 0.9}, data=data)
    with pytest.raises(RestrictedDataError, match=r"gloria/seed-1/metrics.json: made from restricted or unnamed data"):
        publish_grid(project)
    assert (project / module.COMMITTED["terms"]).read_bytes() == before


def test_differences_are_taken_within_a_seed():
    """By hand: differences 0.1, 0.2, 0.3; mean 0.2, deviation 0.1, t(2) = 4.3027, so 0.2 +- 0.2484."""
    rows = [
        (name, seed, "m", value)
        for name, values in {"all": [0, 1, 2], "ita": [0.1, 1.2, 2.3]}.items()
        for seed, value in enumerate(values)
    ]
    rows += [("gloria", 2, "m", 5.0), ("queue", 9, "m", 1.0), ("ita", 0, "other", 99.0)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
    found = paired_differences(table, "all", "m").set_index("variant")
    assert found.index.tolist() == ["gloria", "ita"]  # the queue has no seed in common
    assert found.loc["ita"].tolist() == pytest.approx([0.2, 0.2 - 0.248414, 0.2 + 0.248414, 3], abs=1e-5)
    assert found.loc["gloria", ["mean", "n"]].tolist() == [3.0, 1]
    assert math.isnan(found.loc["gloria", "low"])
    with pytest.raises(ValueError, match=r"no cell of 'all' has the metric 'none'"):
        paired_differences(table, "all", "none")


def test_steps_are_compared_within_seeds_and_put_into_words():
    """By hand: the first step's differences are 0.1, 0.2, 0.3, so 0.2 +- 0.2484; its second metric has one seed."""
    rows = [
        (name, seed, "m", value)
        for name, values in {"a": (0.1, 0.2, 0.3), "b": (0.2, 0.4, 0.6), "c": (0.9, 0.9, 0.9)}.items()
        for seed, value in enumerate(values)
    ]
    rows += [("a", 1, "n", 0.5), ("b", 1, "n", 0.75), ("c", 1, "other", 0.0)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
    steps = {"first": ("a", "b"), "back": ("b", "a"), "not trained": ("a", "d")}
    found = compare_steps(table, steps, {"M": "m", "N": "n", "nowhere": "x"})
    assert found[["step", "name", "before", "after", "metric", "n"]].to_numpy().tolist() == [
        ["first", "M", "a", "b", "m", 3],
        ["first", "N", "a", "b", "n", 1],
        ["back", "M", "b", "a", "m", 3],
        ["back", "N", "b", "a", "n", 1],
    ]
    assert found.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([0.2, -0.048414, 0.448414], abs=1e-5)
    assert found["mean"].tolist() == pytest.approx([0.2, 0.25, -0.2, -0.25])
    assert found["words"].tolist()[:2] == [
        "no difference at this size (at most 0.448 either way)",
        "one seed: no verdict",
    ]
    assert compare_steps(table, {}, {}).columns.tolist() == found.columns.tolist()


def test_the_course_runs_a_notebook_again_when_a_table_that_it_reads_has_changed(repository):
    """The Snakefile names the tables by hand; each notebook's own calls say which it loads."""
    (listed,) = re.findall(r"^READ_GRID = (\{.*?^\})", (repository / "Snakefile").read_text(), re.MULTILINE | re.DOTALL)
    read = {}
    for path in sorted((repository / "notebooks").glob("[0-9]*.py")):
        for call in re.findall(r"^.*= load_grid\((.*)\)$", path.read_text(), re.MULTILINE):
            kind = re.search(r'kind="(\w+)"', call)
            read.setdefault(path.stem, set()).add(module.COMMITTED[kind[1] if kind else "terms"].stem)
    assert {name: set(tables) for name, tables in ast.literal_eval(listed).items()} == read


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.2, 0.1, 0.3), "higher by 0.200"),
        ((-0.2, -0.3, -0.1), "lower by 0.200"),
        ((0.1, -0.02, 0.22), "no difference at this size (at most 0.220 either way)"),
        ((-0.1, -0.22, 0.02), "no difference at this size (at most 0.220 either way)"),
        ((0.0, 0.0, 0.0), "no difference at this size (at most 0.000 either way)"),
        ((0.2, math.nan, math.nan), "one seed: no verdict"),
    ],
)
def test_words_follow_from_the_interval(numbers, words):
    assert verdict(*numbers) == words


@pytest.mark.parametrize(
    ("kind", "partners", "groups"),
    [
        ("inputs", {"cta_grounded"}, ("patches", "words")),
        ("denials", {"cta_grounded"}, ("denials",)),
        ("switches", {"all", "ita+cta"}, ("prototypes", "quirks")),
    ],
)
def test_the_committed_settings_are_whole(repository, kind, partners, groups):
    """The partners and every setting, three seeds each, of one data table and one kind of processor."""
    table = module.read_committed(repository, kind)
    facts = json.loads((repository / module.COMMITTED[kind]).with_suffix(".json").read_text())
    wanted = partners | {name for name, variant in VARIANTS.items() if variant.group in groups}
    cells = {f"{row.variant}/seed-{row.seed}" for row in table[["variant", "seed"]].drop_duplicates().itertuples()}
    assert cells == set(facts) == {f"{name}/seed-{seed}" for name in wanted for seed in (42, 43, 44)}
    assert len({cell["data"]["mimic_cxr"]["sha256"] for cell in facts.values()}) == 1
    assert module.trained_elsewhere(repository, min(partners), kind) == ()


@pytest.mark.parametrize(
    ("kind", "wanted", "fewer_seeds", "epochs", "stopped_early"),
    [
        ("terms", {"ita", "ita+cta", "ita+cpa", "all", "cta_grounded", "gloria"}, {}, 6, {}),
        (
            "long",
            {"all", "cta_grounded", "cta_grounded-stride-8-window-mlm", "cta_grounded-context-affirmed"},
            {
                f"cta_grounded-{steps}affirmed": (42,)  # what notebook 16, section 12, takes apart
                for steps in ("", "stride-8-", "window-mlm-")
            },
            18,
            {},
        ),
        (
            "long_denials",
            {"cta_grounded-affirmed"},
            {"cta_grounded-stride-8-window-mlm-affirmed": (42, 44)},
            18,
            {("cta_grounded-stride-8-window-mlm-affirmed", 44): 16},  # five passes without a better validation loss
        ),
    ],
)
def test_the_committed_results_are_whole(repository, kind, wanted, fewer_seeds, epochs, stopped_early):
    """Every variant with every seed, or those that were trained, of one data table and one kind of processor."""
    table = module.read_committed(repository, kind)
    facts = json.loads((repository / module.COMMITTED[kind]).with_suffix(".json").read_text())
    cells = {f"{row.variant}/seed-{row.seed}" for row in table[["variant", "seed"]].drop_duplicates().itertuples()}
    seeds = dict.fromkeys(wanted, (42, 43, 44)) | fewer_seeds
    assert cells == set(facts) == {f"{name}/seed-{seed}" for name, own in seeds.items() for seed in own}
    assert len({cell["data"]["mimic_cxr"]["sha256"] for cell in facts.values()}) == 1
    assert module.trained_elsewhere(repository, min(wanted), kind) == ()
    assert not [
        name for cell in facts.values() for name, card in cell["data"].items() if card["restricted"] is not False
    ]
    passes = table.loc[table["metric"] == "pretrain/epochs"].set_index(["variant", "seed"])["value"]
    assert passes[passes != epochs].to_dict() == stopped_early
    assert table.loc[table["metric"] == "pretrain/pairs", "value"].nunique() == 1
