"""The pages in Markdown: their numbers and pictures are those of committed runs, their links and code work."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config, tiny_studies, tiny_tokenizer
from PIL import Image
from scipy import stats

from benchmarks import harness
from mgca_lib.checkpoint import save_checkpoint
from mgca_lib.course.pictures import IMAGES, PictureError, publish_pictures, shown_picture
from mgca_lib.grid_results import COMMITTED, read_committed
from mgca_lib.model import build_model

NUMBER = r"([+-]?\d*\.?\d+)"
QUOTED = re.compile(rf"{NUMBER}\s*\[{NUMBER},\s*{NUMBER}\]")
PRINTED = re.compile(rf"{NUMBER} ?[\[(]{NUMBER}(?: to |, ?){NUMBER}")
PAGES = ("README.md", "notebooks/RESULTS.md")


def rounded(mean, low, high):
    return tuple(round(float(part), 3) + 0.0 for part in (mean, low, high))


def printed_by_notebooks(root):
    """Intervals in the outputs of executed notebooks."""
    found = set()
    for path in (root / "notebooks").rglob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                shown = output.get("data", {})
                texts = [output.get("text", ""), shown.get("text/plain", ""), shown.get("text/html", "")]
                found |= {rounded(*parts) for text in texts for parts in PRINTED.findall("".join(text))}
    return found


def of_repeated_seeds(root):
    """Means over seeds, and what they gain over untrained encoders and thumbnails."""
    content = json.loads((root / "notebooks/seeds.json").read_text(encoding="utf-8"))
    cells = [cell for notebook in content.values() for cell in notebook["metrics"].values()]
    return {
        tuple(round(cell[part], digits) + 0.0 for part in ("mean", "low", "high"))
        for cell in cells
        for digits in (1, 3)  # multiples of chance are quoted with one
    }


def of_the_grid(root):
    """Means over the seeds of every variant, and differences within seeds, in each of the tables.

    Differences of every pair, but switches are compared with ``all`` alone, and prototypes with each other.
    """
    found = set()
    for kind in COMMITTED:
        wide = read_committed(root, kind).pivot_table(index="metric", columns=["variant", "seed"], values="value")
        above = {
            name: wide.loc[name] - wide.loc[f"{name}_shuffled"]
            for name in wide.index
            if f"{name}_shuffled" in wide.index
        }
        for part in [*(row for _, row in wide.iterrows()), *above.values()]:
            by_variant = part.unstack("seed")
            values, names = by_variant.to_numpy(), by_variant.index
            compared = [
                [kind != "switches" or "all" in (one, two) or one[:10] == two[:10] == "prototypes" for two in names]
                for one in names
            ]
            differences = (values[:, None] - values[None])[np.array(compared)]
            for spread, may_cut in ((values, True), (differences, False)):
                spread = spread[~np.isnan(spread).any(axis=1)]
                seeds = spread.shape[1]
                half = stats.t.ppf(0.975, seeds - 1) * spread.std(axis=1, ddof=1) / np.sqrt(seeds)
                mean = spread.mean(axis=1)
                found |= {rounded(*parts) for parts in zip(mean, mean - half, mean + half, strict=True)}
                if may_cut and str(part.name).endswith(("/pointing", "/near")):  # hit rates are cut
                    ends = np.clip([mean - half, mean + half], 0, 1)
                    found |= {rounded(*parts) for parts in zip(mean, *ends, strict=True)}
    return found


@pytest.fixture(scope="module")
def committed(repository):
    return printed_by_notebooks(repository) | of_repeated_seeds(repository) | of_the_grid(repository)


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_in_prose_is_one_of_a_committed_run(repository, committed, page):
    text = (repository / page).read_text(encoding="utf-8")
    quoted = [(found[0], rounded(*found.groups())) for found in QUOTED.finditer(text)]
    assert len(quoted) >= 9, f"{page}: the pattern finds next to nothing"
    lost = [words for words, parts in quoted if parts not in committed]
    assert not lost, f"{page}: no committed run has {'; '.join(lost)}"


def test_a_number_that_no_run_has_is_noticed(committed):
    """The gate itself: of numbers with the last digit of the mean changed, hardly any is found by chance."""
    changed = [(round(mean + 0.001, 3), low, high) for mean, low, high in committed]
    assert sum(parts in committed for parts in changed) < 0.05 * len(changed)


def test_the_page_of_the_benchmarks_has_the_table_that_they_print(repository):
    page = (repository / "benchmarks/README.md").read_text(encoding="utf-8")
    assert harness.results_table(harness.RESULTS) in page, "python -m benchmarks --table prints it"


def test_the_readme_quotes_ratios_of_the_benchmarks(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Performance$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    rows = [row.split("|")[2:-2] for row in section.splitlines() if row.startswith("| ")][1:]
    quoted = [cell.strip() for row in rows for cell in row if cell.strip()]
    measured = {f"{json.loads(Path(path).read_text())['ratio']:g}" for path in harness.RESULTS.rglob("*.json")}
    assert len(quoted) >= 10
    assert set(quoted) <= measured


@pytest.mark.parametrize("page", [*PAGES, "slurm/README.md", "benchmarks/README.md", "CONTRIBUTING.md"])
def test_links_of_a_page_lead_somewhere(repository, page):
    here = repository / page
    links = re.findall(r"\]\(([^)]+)\)", here.read_text(encoding="utf-8"))
    missing = []
    for path, _, anchor in (link.partition("#") for link in links if "://" not in link):
        target = here.parent / path if path else here
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert not missing


def anchors(page):
    """Headings as GitHub makes addresses of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_of_the_pages_are_those_that_the_notebooks_show(repository):
    pictures = sorted((repository / IMAGES).glob("*.png"))
    assert pictures
    for path in pictures:
        assert path.read_bytes() == shown_picture(repository, path.name), path.name
    pages = "".join((repository / page).read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in pictures if f"images/{path.name}" not in pages] == []


def test_a_picture_follows_its_notebook(tmp_path):
    def show(content):
        data = {"image/png": [base64.b64encode(content).decode()]}
        cells = [
            {"source": ["run.show(figure, ", '"other", "words")'], "outputs": [{"data": {"image/png": ["AAAA"]}}]},
            {"source": ['run.show(figure, "losses", "words")'], "outputs": [{"text": ["x"]}, {"data": data}]},
        ]
        (tmp_path / "notebooks/06_name.ipynb").write_text(json.dumps({"cells": cells}))

    (tmp_path / IMAGES).mkdir(parents=True)
    path = tmp_path / IMAGES / "06_losses.png"
    path.write_bytes(b"old")
    show(b"new")
    assert publish_pictures(tmp_path) == ["06_losses.png"]
    assert path.read_bytes() == b"new"
    assert publish_pictures(tmp_path) == []
    (tmp_path / IMAGES / "06_loss.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"06_loss.png: no notebook 06 shows a figure 'loss'"):
        publish_pictures(tmp_path)


def test_the_code_of_the_readme_runs(repository, tmp_path, monkeypatch, capsys):
    """On a tiny untrained checkpoint: two cosines come out, and nothing else."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    studies = tiny_studies(tmp_path / "data")
    tokenizer = tiny_tokenizer(studies)
    model = build_model(tiny_config(), tokenizer, seed=0)
    (folder,) = re.findall(r'load_checkpoint\("(.*?)"\)', text)
    save_checkpoint(tmp_path / folder, model, tokenizer, provenance={})
    Image.new("L", (300, 200), 90).save(tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    numbers = [float(part) for part in re.findall(r"-?\d\.\d+", capsys.readouterr().out)]
    assert len(numbers) == 2
    assert all(abs(number) <= 1 for number in numbers)
    assert names["tokens"].local.shape[::2] == (1, 16)
    assert torch.equal(names["features"], model.eval().image_encoder(names["film"]).pooled)
