"""The runner and its gates, each fed a notebook that it must refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from mgca_lib.course.__main__ import main
from mgca_lib.course.execute import ExecutionError, execute, parse_value, remove_results
from mgca_lib.course.pairing import PairError, check_pair, check_record, clean_outputs, pair, publish, read_source
from mgca_lib.course.parameters import (
    ParameterError,
    check_given,
    check_injected_parameters,
    check_notebook,
    declared_parameters,
)
from mgca_lib.course.sources import source_files
from mgca_lib.course.summary import RestrictedDataError, busy_seconds, course_table, publish_seeds, summarise_seeds

NOTEBOOK = """\
# %% [markdown]
# # 03 · Does it run?

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper
SEED = 42
DATA_ROOT = ""
OUTPUT_DIR = ""

# %%
import json
import sys
from pathlib import Path

root = Path.cwd().parent
print("seed", SEED, DATA_ROOT)
print("a warning", file=sys.stderr)
object()

# %% [markdown]
# Now the numbers.

# %%
%config InlineBackend.figure_format = "png"
data = {"mimic_cxr": {"sha256": "0", "source": "phantom", "restricted": False}}
provenance = {"profile": PROFILE, "seed": SEED, "data": data, "question": "Runs?", "headline": "a", "seconds": 1.0}
content = {"metrics": {"a": SEED / 100}, "provenance": provenance}
(root / OUTPUT_DIR / "metrics.json").write_text(json.dumps(content))
print(root / "data")
"""
PARAMETERS = {"PROFILE": "demo", "SEED": 7, "DATA_ROOT": "data/demo"}


def write_project(root: Path, text: str = NOTEBOOK) -> Path:
    """Write a project with one notebook and return the notebook's path."""
    (root / "notebooks").mkdir(parents=True)
    source = root / "notebooks" / "03_example.py"
    source.write_text(text, encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a project whose one notebook was executed; copied by tests that change it."""
    root = tmp_path_factory.mktemp("project")
    source = write_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        execute(source, Path("outputs/demo/03_example"), PARAMETERS, threads=1)
    return root


@pytest.fixture
def published(executed: Path, tmp_path: Path) -> Path:
    """The ``.py`` of a committed pair that passes every gate."""
    root = tmp_path / executed.name
    shutil.copytree(executed, root)
    source = root / "notebooks" / "03_example.py"
    assert publish(source, root / "outputs/demo/03_example", executed)
    return source


class TestParameters:
    """Names, types, and what papermill would get wrong."""

    def test_declared_names_are_those_that_papermill_sees(self, tmp_path: Path) -> None:
        source = read_source(write_project(tmp_path))
        assert list(check_notebook(source)) == list(papermill.inspect_notebook(source))

    @pytest.mark.parametrize(
        ("cell", "problem"),
        [
            ("X: int = 3", "only plain NAME = value"),
            ("x = 3", "only plain NAME = value"),
            ("X = Y = 3", "only plain NAME = value"),
            ("X, Y = 3, 4", "only plain NAME = value"),
            ("import os", "only plain NAME = value"),
            ("X = 2 * 3", "derived values belong in the next cell"),
            ("X = (1, 2)", "cannot pass a tuple"),
            ("X = 1\nX = 2", "declared twice"),
            ('X = "a=b"', "second '='"),
            ("X = 3  # as in y = 3", "second '='"),
            ("X = ", "line 1"),
            ("# Parameters\nX = 3", "marks the cell that papermill adds"),
        ],
    )
    def test_parameters_cell_rules(self, cell: str, problem: str) -> None:
        with pytest.raises(ParameterError, match=problem):
            declared_parameters(cell)

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({"PROFLIE": "smoke"}, "unknown parameter PROFLIE; did you mean PROFILE"),
            ({"ZZ": 1}, "unknown parameter ZZ; the notebook declares PROFILE, SEED, RATE"),
            ({"SEED": "seven"}, "SEED = 'seven': expected a int such as 42"),
            ({"SEED": True}, "expected a int"),
            ({"SEED": 1.5}, "expected a int"),
            ({"PROFILE": 3}, "expected a str"),
        ],
    )
    def test_given_values(self, given: dict, problem: str) -> None:
        declared = {"PROFILE": "demo", "SEED": 42, "RATE": 0.5}
        check_given(declared, {"SEED": 3, "RATE": 1})
        with pytest.raises(ParameterError, match=problem):
            check_given(declared, given)

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ("DATA_ROOT = ", "UNREAD = 1\nDATA_ROOT = ", "UNREAD is declared but no later cell reads it"),
            ("DATA_ROOT)", "0)", "DATA_ROOT is declared but no later cell reads it"),
            ("object()", 'object(\nprint("a")', r"code cell 2, line 8 \(object\(\): '\(' was never closed"),
            ('# %% tags=["parameters"]', "# %%", "must be tagged 'parameters'"),
            ("# %%\nimport json", '# %% tags=["parameters"]\nimport json', "must be tagged 'parameters'"),
        ],
    )
    def test_notebook_gate(self, tmp_path: Path, old: str, new: str, problem: str) -> None:
        assert old in NOTEBOOK
        with pytest.raises(ParameterError, match=problem):
            check_notebook(read_source(write_project(tmp_path, NOTEBOOK.replace(old, new))))

    def test_assigning_is_not_reading(self, tmp_path: Path) -> None:
        text = NOTEBOOK.replace("DATA_ROOT)", "0)").replace("object()", "DATA_ROOT = 'elsewhere'")
        with pytest.raises(ParameterError, match="DATA_ROOT is declared"):
            check_notebook(read_source(write_project(tmp_path, text)))

    def test_injected_parameters(self) -> None:
        cell = 'PROFILE = "demo"\nSEED = 42\nRATE = 0.5'
        check_injected_parameters(["", cell, "# Parameters\nPROFILE = \"smoke\"\nRATE = float('inf')\n", "K = 4"])
        with pytest.raises(ParameterError, match="did you mean SEED"):
            check_injected_parameters(["", cell, "# Parameters\nSEDE = 3\n"])
        with pytest.raises(ParameterError, match="unknown parameter SEED"):
            check_injected_parameters(["# Parameters\nSEED = 3\n", "print(1)"])

    def test_papermill_by_hand(self, tmp_path: Path) -> None:
        check = "from mgca_lib.course.parameters import check_injected_parameters\n\ncheck_injected_parameters()\n"
        cells = [
            nbformat.v4.new_code_cell('PROFILE = "demo"', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(check),
        ]
        notebook = read_source(write_project(tmp_path))
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata), tmp_path / "in.ipynb")
        command = [sys.executable, "-m", "papermill", str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb")]
        run = subprocess.run([*command, "-p", "PROFLIE", "smoke"], capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert "unknown parameter PROFLIE; did you mean PROFILE" in run.stderr

    def test_parse_value_keeps_what_it_cannot_read(self) -> None:
        assert parse_value("three", 42) == "three"


class TestExecute:
    """What is run, what is kept, and what a failure says."""

    def test_parameters_arrive(self, executed: Path) -> None:
        folder = executed / "outputs/demo/03_example"
        provenance = json.loads((folder / "metrics.json").read_text())["provenance"]
        assert (provenance["profile"], provenance["seed"]) == ("demo", 7)
        assert "seed 7 data/demo" in (folder / "03_example.ipynb").read_text()

    def test_failing_cell_is_named_and_the_rest_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write_project(tmp_path, NOTEBOOK.replace("object()", "1 / 0"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ExecutionError, match=r"(?s)03_example\.py: cell In \[3\] failed.*1 / 0.*ZeroDivisionError"):
            execute(source, Path("out"), PARAMETERS, threads=1)
        assert "seed 7" in (tmp_path / "out/03_example.ipynb").read_text()
        assert not (tmp_path / "out/metrics.json").exists()

    def test_stale_metrics_do_not_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        unfinished = NOTEBOOK.replace(
            '(root / OUTPUT_DIR / "metrics.json").write_text(json.dumps(content))', "OUTPUT_DIR"
        )
        source = write_project(tmp_path, unfinished)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/metrics.json").write_text("{}")
        with pytest.raises(ExecutionError, match="must call run.finish"):
            execute(source, Path("out"), PARAMETERS, threads=1)

    def test_nothing_runs_with_an_unknown_parameter(self, tmp_path: Path) -> None:
        source = write_project(tmp_path)
        with pytest.raises(ParameterError, match="03_example.py: unknown parameter SEDE; did you mean SEED"):
            execute(source, tmp_path / "out", {"SEDE": 3}, threads=1)
        assert not (tmp_path / "out").exists()


class TestPairs:
    """``.py`` and ``.ipynb``, and what may be committed."""

    def test_published_pair_passes(self, published: Path) -> None:
        assert check_pair(published) == []

    def test_publishing_and_pairing_again_changes_nothing(self, published: Path, executed: Path) -> None:
        assert not publish(published, published.parents[1] / "outputs/demo/03_example", executed)
        assert not pair(published)

    def test_outputs_are_clean(self, published: Path, executed: Path) -> None:
        text = published.with_suffix(".ipynb").read_text()
        for noise in ("papermill", "injected", 'stderr"', " at 0x", str(executed), "nbformat_version", "ipython3"):
            assert noise not in text
        cells = nbformat.read(published.with_suffix(".ipynb"), as_version=4).cells
        assert [cell.execution_count for cell in cells if cell.cell_type == "code"] == [1, 2, 3]
        assert cells[2].outputs[0].text == "seed 7 data/demo\n"
        assert cells[2].outputs[1].data["text/plain"] == "<object>"
        assert cells[4].outputs[0].text == "data\n"

    def test_prose_may_change_without_a_new_run(self, published: Path) -> None:
        published.write_text(NOTEBOOK.replace("Now the numbers", "And now the numbers"))
        assert any("source differs" in problem for problem in check_pair(published))
        assert pair(published)
        assert check_pair(published) == []

    def test_changed_code_needs_a_new_run(self, published: Path, executed: Path) -> None:
        published.write_text(NOTEBOOK.replace('print("seed"', 'print("the seed"'))
        with pytest.raises(PairError, match="its code changed since the run"):
            publish(published, published.parents[1] / "outputs/demo/03_example", executed)
        pair(published)
        cells = nbformat.read(published.with_suffix(".ipynb"), as_version=4).cells
        assert [bool(cell.outputs) for cell in cells if cell.cell_type == "code"] == [False, False, True]
        assert any("not those of the recorded run" in problem for problem in check_pair(published))

    @pytest.mark.parametrize(
        ("path", "value", "problem"),
        [
            (("cells", 2, "source"), "print(1)", "cell 3: source differs"),
            (("cells", 2, "id"), "abc", "cell 3: id differs"),
            (("cells", 1, "metadata"), {}, "cell 2: metadata differs"),
            (("cells", 2, "metadata"), {"papermill": {"duration": 1.0}}, "cell 3: metadata differs"),
            (("cells", 2, "outputs", 0, "text"), "patient 12\n", "not those of the recorded run"),
            (("cells", 2, "outputs", 0, "text"), "/home/ada/course\n", "a path of one computer"),
            (("cells", 2, "outputs"), [], "not those of the recorded run"),
            (("metadata", "papermill"), {"duration": 1.0}, "differ from the standard"),
            (("metadata", "mgca"), {}, "no outputs of a course run"),
            (("metadata", "mgca", "provenance", "profile"), "smoke", "outputs of profile 'smoke'"),
            (("metadata", "mgca", "provenance", "data", "mimic_cxr", "restricted"), True, "restricted data: mimic_cxr"),
            (("metadata", "mgca", "provenance", "data", "mimic_cxr"), {}, "restricted data: mimic_cxr"),
        ],
    )
    def test_gate_can_fail(self, published: Path, path: tuple, value: object, problem: str) -> None:
        target = published.with_suffix(".ipynb")
        content = json.loads(target.read_text())
        place = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        target.write_text(json.dumps(content))
        assert any(problem in line for line in check_pair(published)), check_pair(published)

    def test_missing_cell_and_missing_file(self, published: Path) -> None:
        target = published.with_suffix(".ipynb")
        content = json.loads(target.read_text())
        del content["cells"][-1]
        target.write_text(json.dumps(content))
        assert any("4 cells, the .py has 5" in problem for problem in check_pair(published))
        target.unlink()
        assert check_pair(published) == ["03_example.ipynb is missing; run `make pair`"]

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda facts: facts["data"]["mimic_cxr"].update(restricted=True), "restricted data"),
            (lambda facts: facts.update(profile="smoke"), "has profile 'smoke'"),
        ],
    )
    def test_publish_refuses(self, published: Path, change: object, problem: str) -> None:
        folder = published.parents[1] / "outputs/demo/03_example"
        content = json.loads((folder / "metrics.json").read_text())
        change(content["provenance"])
        (folder / "metrics.json").write_text(json.dumps(content))
        before = published.with_suffix(".ipynb").read_text()
        with pytest.raises(PairError, match=problem):
            publish(published, folder, published.parents[1])
        assert published.with_suffix(".ipynb").read_text() == before

    def test_publish_needs_a_finished_run(self, published: Path) -> None:
        with pytest.raises(PairError, match="no finished run"):
            publish(published, published.parents[1] / "outputs/demo/04_other", published.parents[1])

    def test_run_of_another_profile_is_a_record(self, published: Path, executed: Path) -> None:
        source = published
        source.write_text(NOTEBOOK.replace("Now the numbers", "Now the [numbers](04_other.ipynb)"))
        folder = source.parents[1] / "outputs/demo/03_example"
        content = json.loads((folder / "metrics.json").read_text())
        content["provenance"]["profile"] = "full_width"
        (folder / "metrics.json").write_text(json.dumps(content))
        assert publish(source, folder, executed, profile="full_width")
        record = source.parent / "full_width" / "03_example.ipynb"
        assert check_record(record) == []
        cells = nbformat.read(record, as_version=4).cells
        assert ["given" in cell.metadata.get("tags", []) for cell in cells].index(True) == 2  # behind the defaults
        assert "SEED = 7" in cells[2].source
        assert "](../04_other.ipynb)" in "".join(cell.source for cell in cells)
        assert cells[3].outputs[0].text == "seed 7 data/demo\n"
        record.write_text(record.read_text().replace("seed 7", "seed 8"))
        assert any("not those of the recorded run" in problem for problem in check_record(record))

    @pytest.mark.parametrize("text", ["print(1)\n", "# ---\n# jupytext_version: 1.19.6\n# ---\n# %%\n1\n"])
    def test_source_form(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(PairError, match="03_example.py"):
            read_source(write_project(tmp_path, text))

    def test_ids_depend_on_text_alone(self, tmp_path: Path) -> None:
        source = write_project(tmp_path)
        before = {cell.source: cell.id for cell in read_source(source).cells}
        source.write_text("# %%\n0\n\n# %%\n0\n\n" + NOTEBOOK)
        after = read_source(source).cells
        assert len({cell.id for cell in after}) == len(after) == len(before) + 2
        assert all(cell.id == before[cell.source] for cell in after[2:])

    def test_printed_pieces_are_joined(self, tmp_path: Path) -> None:
        pieces = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")]
        assert [output.text for output in clean_outputs(pieces, tmp_path)] == ["one\ntwo\n"]


def test_source_files_follow_imports_and_nothing_else(tmp_path: Path) -> None:
    files = {
        "mgca_lib/__init__.py": "",
        "mgca_lib/model.py": "from . import encoders",
        "mgca_lib/encoders.py": "import numpy",
        "mgca_lib/pretrain.py": "from mgca_lib import model",
        "mgca_lib/data/__init__.py": "",
        "mgca_lib/data/studies.py": "def load():\n    import mgca_lib.late",
        "mgca_lib/late.py": "",
        "mgca_lib/course/__init__.py": "",
        "data_scripts/__init__.py": "",
        "data_scripts/prepare_rsna.py": "from data_scripts.images import read",
        "data_scripts/images.py": "",
        "data_scripts/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    notebook = tmp_path / "03.py"
    notebook.write_text(
        "# %%\n%matplotlib inline\nfrom mgca_lib.model import MGCA\nfrom mgca_lib.data import studies\n"
        "import mgca_lib.course\nrun(['data_scripts/prepare_rsna.py'])\n"
    )
    expected = set(files) - {"mgca_lib/pretrain.py", "mgca_lib/course/__init__.py", "data_scripts/unused.py"}
    assert {path.relative_to(tmp_path).as_posix() for path in source_files(notebook, tmp_path)} == expected


class TestSummary:
    """Table and seeds."""

    @staticmethod
    def write(folder: Path, *, seed: int, value: object) -> Path:
        folder.mkdir(parents=True)
        facts = {"seed": seed, "seconds": 12.3, "question": "Why?", "headline": "a"}
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"a": value}, "provenance": facts}))
        return folder

    def test_table(self, tmp_path: Path) -> None:
        self.write(tmp_path / "01_data", seed=1, value={"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3})
        lines = course_table(tmp_path, ["01_data", "02_next"]).splitlines()
        assert lines[0].split() == ["notebook", "question", "seconds", "headline"]
        assert lines[2].split() == ["01_data", "Why?", "12", "a", "=", "0.500", "(0.400", "to", "0.600,", "n=3)"]
        assert lines[3].split() == ["02_next", "-", "did", "not", "finish"]

    def test_seeds(self, tmp_path: Path) -> None:
        folders = [
            self.write(tmp_path / str(seed), seed=seed, value=value)
            for seed, value in ((1, 0.7), (2, {"mean": 0.8, "low": 0.1, "high": 0.9, "n": 5}), (3, 0.9))
        ]
        summary = summarise_seeds(folders)
        assert summary["seeds"] == [1, 2, 3]
        half = 4.302653 * 0.1 / 3**0.5  # Student's t, two degrees of freedom
        expected = {"mean": 0.8, "low": 0.8 - half, "high": 0.8 + half, "n": 3}
        assert summary["metrics"]["a"] == pytest.approx(expected, rel=1e-6)

    def test_seeds_must_differ(self, tmp_path: Path) -> None:
        folders = [self.write(tmp_path / name, seed=1, value=0.5) for name in "ab"]
        with pytest.raises(ValueError, match="a seed of its own"):
            summarise_seeds(folders)

    @pytest.mark.parametrize("data", [{}, {"chexpert": {"restricted": True}}, {"a": {"restricted": False}, "b": {}}])
    def test_seeds_are_published_when_all_runs_may_be(self, tmp_path: Path, data: dict) -> None:
        outputs, target = tmp_path / "demo", tmp_path / "seeds.json"
        assert not publish_seeds(outputs, target)
        run = self.write(outputs / "seed-2" / "01_data", seed=2, value=0.5) / "metrics.json"
        (outputs / "seeds.json").write_text("{}\n")

        def of_data(facts: dict) -> None:
            run.write_text(json.dumps({"metrics": {}, "provenance": {"seed": 2, "data": facts}}))

        of_data(data)
        with pytest.raises(RestrictedDataError, match=r"01_data.metrics.json: made from restricted or unnamed data"):
            publish_seeds(outputs, target)
        assert not target.exists()
        of_data({"phantom": {"restricted": False}})
        assert publish_seeds(outputs, target)
        assert not publish_seeds(outputs, target)
        assert target.read_text() == "{}\n"

    def test_the_run_of_the_first_seed_counts_too(self, tmp_path: Path) -> None:
        outputs = tmp_path / "demo"
        for folder, restricted in ((outputs / "01_data", True), (outputs / "seed-2" / "01_data", False)):
            self.write(folder, seed=1, value=0.5)
            data = {"chexpert": {"restricted": restricted}}
            (folder / "metrics.json").write_text(json.dumps({"metrics": {}, "provenance": {"seed": 1, "data": data}}))
        (outputs / "seeds.json").write_text('{"01_data": {}}')
        with pytest.raises(RestrictedDataError, match=r"demo.01_data.metrics.json"):
            publish_seeds(outputs, tmp_path / "seeds.json")

    def test_busy_seconds_counts_overlap_once(self, tmp_path: Path) -> None:
        paths = []
        for name, start, end in (("a", 0, 10), ("b", 5, 15), ("c", 6, 8), ("d", 20, 21)):
            times = {
                key: f"2026-01-01T00:00:{second:02d}" for key, second in (("start_time", start), ("end_time", end))
            }
            paths.append(tmp_path / f"{name}.ipynb")
            paths[-1].write_text(json.dumps({"metadata": {"papermill": times}}))
        assert busy_seconds(paths) == 16

    def test_a_killed_notebook_has_no_end_and_takes_no_time(self, tmp_path: Path) -> None:
        killed = tmp_path / "a.ipynb"
        killed.write_text(
            json.dumps({"metadata": {"papermill": {"start_time": "2026-01-01T00:00:00", "end_time": None}}})
        )
        assert busy_seconds([killed]) == 0


def test_cleaning_spares_what_took_long(tmp_path: Path) -> None:
    for top in ("data", "outputs"):
        for profile in ("smoke", "demo", "full_width", "paper"):
            (tmp_path / top / profile).mkdir(parents=True)
    remove_results(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert left == [f"{top}/{profile}" for top in ("data", "outputs") for profile in ("full_width", "paper")]


class TestCommands:
    """What a person types, from wherever they stand."""

    def command(self, *arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "mgca_lib.course", *arguments]
        return subprocess.run(words, cwd=where, check=False, capture_output=True, text=True)

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        write_project(tmp_path)
        (tmp_path / "Snakefile").touch()
        return tmp_path

    def finish(self, project: Path, folder: str, seed: int = 1) -> Path:
        target = project / folder
        target.mkdir(parents=True)
        facts = {"seed": seed, "question": "Why?", "headline": "a", "seconds": 1.0}
        (target / "metrics.json").write_text(json.dumps({"metrics": {"a": 0.5}, "provenance": facts}))
        return target

    def test_execute_from_a_subfolder(self, project: Path) -> None:
        done = self.command("execute", "03_example.py", "--threads", "1", where=project / "notebooks")
        assert done.returncode == 0, done.stderr
        assert (project / "outputs/demo/03_example/metrics.json").is_file()
        assert (project / "outputs/demo/03_example/03_example.ipynb").is_file()

    def test_a_notebook_that_is_not_there(self, project: Path) -> None:
        done = self.command("execute", "notebooks/99_none.py", where=project)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "notebooks/99_none.py: no such file" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["execute", "notebooks/broken.py"], "broken.py: code cell 2, line 8 (object(): '(' was never closed"),
            (["execute", "notebooks/page.ipynb"], "page.ipynb: notebooks are executed from their source, page.py"),
            (["execute", "notebooks/03_example.py", "--output-dir", "Snakefile/a"], "Snakefile"),
            (["run", "--seeds", "42", "43"], "--seeds 42 43: give each further seed once, and not that of --seed, 42"),
            (["run", "--seeds", "43", "43"], "--seeds 43 43: give each further seed once"),
            (["summarise", "--outputs", "outputs/demo", "--seeds", "9"], "seed-9: no finished notebook to summarise"),
        ],
    )
    def test_mistakes_get_one_line(
        self,
        project: Path,
        arguments: list[str],
        problem: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        (project / "notebooks/broken.py").write_text(NOTEBOOK.replace("object()", "object("), encoding="utf-8")
        (project / "notebooks/page.ipynb").touch()
        self.finish(project, "outputs/demo/03_example")
        monkeypatch.chdir(project)
        assert main(arguments) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert problem in lines[0]
        assert not (project / "outputs/demo/seeds.json").exists()

    def test_an_interrupted_command_says_so(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.chdir(project)
        monkeypatch.setattr("subprocess.run", interrupt)
        assert main(["run"]) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_table_after_a_run_in_jupyter(self, project: Path) -> None:
        """There are numbers then, and no executed copy to take the time from."""
        self.finish(project, "outputs/demo/03_example")
        done = self.command("table", where=project)
        assert done.returncode == 0, done.stderr
        assert "a = 0.500" in done.stdout
        assert "0 of 1 executed notebooks, 0 s" in done.stdout

    def test_summarise_names_what_is_missing(self, project: Path) -> None:
        self.finish(project, "outputs/demo/03_example")
        self.finish(project, "outputs/demo/seed-2/03_example", seed=2)
        done = self.command("summarise", "--outputs", "outputs/demo", "--seeds", "2", "3", where=project)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "seed-3/03_example: not finished" in done.stderr
        done = self.command("summarise", "--outputs", "outputs/demo", "--seeds", "2", "2", where=project)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert "every run needs a seed of its own" in done.stderr
        done = self.command("summarise", "--outputs", "outputs/demo", "--seeds", "2", where=project)
        assert done.returncode == 0, done.stderr
        assert json.loads((project / "outputs/demo/seeds.json").read_text())["03_example"]["seeds"] == [1, 2]
