"""Gates on the course itself: its notebooks are well formed, in step, and run at smoke.

`make test` runs the notebooks first, through the Snakefile; here their results are read.
"""

import ast
import json
import math
import os
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from mgca_lib.course.pairing import check_pair, check_record, read_source
from mgca_lib.course.parameters import check_notebook
from mgca_lib.course.summary import busy_seconds

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
RECORDS = sorted((ROOT / "notebooks").glob("*/[0-9][0-9]_*.ipynb"))
SMOKE = ROOT / "outputs" / "smoke"
SMOKE_SECONDS = 300  # on two cores of their own
SHARED = 2  # a busy host, or one without bf16, may take so many times as long
CELL_LINES = 25
NAMES = (
    "00_start_here",
    "01_data_preparation",
    "02_encoders_and_tokens",
    "03_instance_alignment",
    "04_token_alignment",
    "05_prototype_alignment",
    "06_pretraining",
    "07_linear_probe",
    "08_seeing_prototypes",
    "09_finding_and_outlining",
    "10_zero_shot",
    "11_prototype_sweep",
    "12_upstream_quirks",
    "13_phantoms_to_patients",
    "14_ablation",
    "15_grounding",
    "16_learning_to_point",
)

each_notebook = pytest.mark.parametrize("source", SOURCES, ids=[path.stem for path in SOURCES])
smoke_run = pytest.mark.skipif(
    "MGCA_SMOKE" not in os.environ, reason="reads the notebooks' smoke results: `make test` makes them first"
)


def form_problems(notebook: NotebookNode, name: str) -> list[str]:
    """Return where a notebook leaves the form that STYLE.md asks for, one line each."""
    cells = notebook.cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    problems = []
    if not re.match(r"# \d\d · .*\?\s*$", cells[0].source.split("\n")[0]) or cells[0].cell_type != "markdown":
        problems.append("the title must be '# NN · ...?', a question")
    if "fit for clinical use" not in cells[0].source:
        problems.append("the first cell must say that nothing here is fit for clinical use")
    if f'start_run("{name}"' not in " ".join(code[1].split()).replace("( ", "("):
        problems.append(f'the second code cell must call start_run("{name}", ...)')
    if sum("run.finish(" in text for text in code) != 1:
        problems.append("one code cell must call run.finish(...)")
    exercises = [place for place, cell in enumerate(cells) if re.search(r"^## .*Exercises", cell.source, re.MULTILINE)]
    if len(exercises) != 1 or any("run.finish(" in cell.source for cell in cells[exercises[0] :]):
        problems.append("run.finish(...) must come before the exercises: a wrong answer must not lose the numbers")
    for number, text in enumerate(code, start=1):
        if len(text.splitlines()) > CELL_LINES:
            problems.append(f"code cell {number} has more than {CELL_LINES} lines")
        if re.search(r"\[(run\.profile|PROFILE)\]", text):
            problems.append(f"code cell {number} looks something up by profile, which another profile lacks; use .get")
        ast.parse(TransformerManager().transform_cell(text))
    return problems


def result_problems(content: dict, name: str) -> list[str]:
    """Return what is wrong with the ``metrics.json`` of a smoke run, one line each."""
    metrics, facts = content["metrics"], content["provenance"]
    problems = []
    if (facts["notebook"], facts["profile"]) != (name, "smoke"):
        problems.append(f"made by {facts['notebook']} at {facts['profile']}")
    if facts["headline"] not in metrics:
        problems.append(f"headline {facts['headline']} is not among the metrics")
    for key, value in metrics.items():
        if isinstance(value, dict) and not value["low"] <= value["mean"] <= value["high"]:
            problems.append(f"{key}: the mean lies outside its interval")
        if not all(math.isfinite(number) for number in (value.values() if isinstance(value, dict) else [value])):
            problems.append(f"{key}: not finite")
    for fact in ("seed", "commit", "versions", "hardware", "data", "question", "seconds"):
        if fact not in facts:
            problems.append(f"provenance lacks {fact}")
    return problems


def test_the_course_is_complete() -> None:
    assert tuple(path.stem for path in SOURCES) == NAMES


def test_snakefile_knows_every_notebook_and_has_no_circle() -> None:
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    needs = ast.literal_eval(re.search(r"NEEDS = (\{.*?\n\})", text, flags=re.DOTALL)[1])
    assert tuple(needs) == NAMES
    done: set[str] = set()
    while ready := {name for name in needs if name not in done and done.issuperset(needs[name])}:
        done |= ready
    assert done == set(needs)


@each_notebook
def test_form(source: Path) -> None:
    assert form_problems(read_source(source), source.stem) == []


@each_notebook
def test_parameters(source: Path) -> None:
    assert {"PROFILE", "SEED", "DATA_ROOT", "OUTPUT_DIR"} <= set(check_notebook(read_source(source)))


@each_notebook
def test_pair(source: Path) -> None:
    assert check_pair(source) == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_runs_of_other_profiles(record: Path) -> None:
    assert check_record(record) == []
    text = "\n".join(cell.source for cell in nbformat.read(record, as_version=4).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", text)
    assert [link for link in targets if not (record.parent / link).exists()] == []


@each_notebook
def test_links_lead_somewhere(source: Path) -> None:
    text = "\n".join(cell.source for cell in read_source(source).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", text)
    names = {f"{name}.ipynb" for name in NAMES}
    assert [link for link in targets if link not in names and not (source.parent / link).exists()] == []


@smoke_run
@each_notebook
def test_runs_at_smoke(source: Path) -> None:
    path = SMOKE / source.stem / "metrics.json"
    assert path.is_file(), f"{source.stem} did not finish at smoke; its error is printed above the tests"
    assert result_problems(json.loads(path.read_text(encoding="utf-8")), source.stem) == []


@smoke_run
def test_smoke_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    executed = [SMOKE / source.stem / f"{source.stem}.ipynb" for source in SOURCES]
    seconds = busy_seconds([path for path in executed if (path.parent / "metrics.json").is_file()])
    with capsys.disabled():
        print(f"\nall notebooks at smoke: {seconds:.0f} s, meant to take {SMOKE_SECONDS} s at most")
    assert seconds < SHARED * SMOKE_SECONDS


GOOD = """\
# %% [markdown]
# # 03 · Does it run?
# Nothing here is fit for clinical use.

# %% tags=["parameters"]
SEED = 42

# %%
run = start_run("03_example", seed=SEED)

# %%
run.finish(question="?", headline="a")

# %% [markdown]
# ## 2. Exercises

# %%
my_answer = None
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("run?", "run.", "a question"),
        ("clinical", "any", "clinical use"),
        ("03_example", "04_example", 'start_run("03_example", ...)'),
        ("run.finish", "run.record", "one code cell must call run.finish"),
        (
            "run.finish(question",
            "# %% [markdown]\n# ## 1. Exercises\n\n# %%\nrun.finish(question",
            "before the exercises",
        ),
        ("SEED = 42", "SEED = 42\n" * 26, "code cell 1 has more than 25 lines"),
        ("seed=SEED)", 'seed=SEED)\nsteps = {"demo": 3}[run.profile]', "code cell 2 looks something up by profile"),
    ],
)
def test_form_check_can_fail(tmp_path: Path, old: str, new: str, problem: str) -> None:
    source = tmp_path / "03_example.py"
    source.write_text(GOOD, encoding="utf-8")
    assert form_problems(read_source(source), source.stem) == []
    source.write_text(GOOD.replace(old, new), encoding="utf-8")
    problems = form_problems(read_source(source), source.stem)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    ("metrics", "facts", "problem"),
    [
        ({"a": float("nan")}, {}, "a: not finite"),
        ({"a": {"mean": 1.0, "low": 0.0, "high": 0.5, "n": 3}}, {}, "outside its interval"),
        ({"b": 1.0}, {}, "headline a is not among"),
        ({"a": 1.0}, {"profile": "demo"}, "made by 03_example at demo"),
    ],
)
def test_result_check_can_fail(metrics: dict, facts: dict, problem: str) -> None:
    complete = dict.fromkeys(("seed", "commit", "versions", "hardware", "data", "question", "seconds"), 1)
    complete |= {"notebook": "03_example", "profile": "smoke", "headline": "a"}
    assert result_problems({"metrics": {"a": 1.0}, "provenance": complete}, "03_example") == []
    problems = result_problems({"metrics": metrics, "provenance": complete | facts}, "03_example")
    assert len(problems) == 1
    assert problem in problems[0]
