"""The word explorer: a widget only where a person turns it, the same panel everywhere else."""

import builtins
import html
import sys
from types import SimpleNamespace

import ipywidgets
import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

from mgca_lib import figures
from mgca_lib.figures import interactive

FILM = np.random.default_rng(0).uniform(size=(24, 18))
MASK = np.zeros((24, 18), bool)
MASK[2:9, 3:10] = True


def study(name="first", words=("no", "large", "effusion"), truth=(False, True, True)):
    score = {"hit": False, "chance": 0.11, "contrast": -0.25}
    return {
        "name": name,
        "film": FILM,
        "words": list(words),
        "maps": [np.eye(3) + number for number in range(len(words))],
        "masks": [MASK if own else None for own in truth],
        "scores": [score | {"hit": number % 2 == 1} if own else None for number, own in enumerate(truth)],
    }


STUDIES = [study(), study("second", ["nodule", "left"], [False, False])]


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


@pytest.fixture
def jupyter(monkeypatch):
    """What a kernel that JupyterLab started looks like from inside."""
    shell = SimpleNamespace(user_ns={"In": ["", "PROFILE = 'demo'"]})
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(version_info=(7, 0)))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/04.ipynb")
    monkeypatch.delenv("MGCA_PROGRESS", raising=False)
    return shell.user_ns


def test_without_an_argument_the_surroundings_decide(jupyter, monkeypatch):
    assert interactive.is_watched()
    assert isinstance(figures.explore_words(STUDIES), ipywidgets.VBox)
    monkeypatch.setenv("MGCA_PROGRESS", "0")  # a batch run of the course
    assert not interactive.is_watched()
    assert isinstance(figures.explore_words(STUDIES), Figure)


def test_papermill_by_hand_and_kernels_of_no_notebook_are_not_watched(jupyter, monkeypatch):
    jupyter["In"].append("# Parameters\nPROFILE = 'smoke'\n")
    assert not interactive.is_watched()
    jupyter["In"].pop()
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert not interactive.is_watched()
    jupyter["__vsc_ipynb_file__"] = "04.ipynb"
    assert interactive.is_watched()
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not interactive.is_watched()


@pytest.mark.parametrize("progress", ["0", "1"])
def test_an_explicit_argument_wins(jupyter, monkeypatch, progress):
    monkeypatch.setenv("MGCA_PROGRESS", progress)
    assert isinstance(figures.explore_words(STUDIES, interactive=True), ipywidgets.VBox)
    assert isinstance(figures.explore_words(STUDIES, interactive=False), Figure)


def test_still_panel_needs_no_widgets(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("ipywidgets"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "“large”" in texts(figures.explore_words(STUDIES, interactive=False))  # the first word with ground truth
    with pytest.raises(ImportError):
        figures.explore_words(STUDIES, interactive=True)


def test_picking_a_word_and_a_study_changes_picture_menu_and_answer(monkeypatch):
    shown = []
    real = interactive.word_panel
    monkeypatch.setattr(
        interactive, "word_panel", lambda one, word: shown.append((one["name"], word)) or real(one, word)
    )
    box = figures.explore_words(STUDIES, interactive=True)
    which, word = box.children[0].children
    picture, answer = box.children[1:]
    assert shown == [("first", 1)]
    assert bytes(picture.value).startswith(b"\x89PNG")
    before = bytes(picture.value)
    word.value = 2
    assert bytes(picture.value) != before
    assert html.unescape(answer.value) == interactive.pointing_text(STUDIES[0], 2)
    which.value = 1
    assert shown == [("first", 1), ("first", 2), ("second", 0)]  # each change draws once
    assert [label for label, _ in word.options] == ["1  nodule", "2  left"]
    assert "nothing to hit" in answer.value
    word.value = 1
    assert shown[-1] == ("second", 1)


def test_panel_says_hit_and_miss_as_the_scores_do():
    assert "hit, the brightest pixel lies inside" in interactive.pointing_text(STUDIES[0], 1)
    assert "(blind guess: 11 %); contrast -0.25" in interactive.pointing_text(STUDIES[0], 1)
    assert "miss, the brightest pixel lies outside" in interactive.pointing_text(STUDIES[0], 2)
    assert "miss, the brightest" in texts(figures.word_panel(STUDIES[0], 2))
    names = html.escape("<b>")
    box = figures.explore_words([study(words=("<b>",), truth=(False,))], interactive=True)
    assert names in box.children[2].value


def test_a_long_report_is_shown_around_the_picked_word():
    words = [f"word{number}" for number in range(400)]
    long = study(words=words, truth=[False] * 400)
    for picked in (0, 200, 399):
        shown = texts(figures.word_panel(long, picked)).split()
        assert words[picked] in shown
        assert "lines" in shown
        assert sum(word in shown for word in words) < 150


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: figures.explore_words([]), ValueError, "at least one study"),
        (lambda: figures.explore_words(STUDIES, study=2, interactive=False), IndexError, "study 2 of 2"),
        (lambda: figures.explore_words(STUDIES, word=3, interactive=False), IndexError, "word 3 of a report with 3"),
        (lambda: figures.word_panel(STUDIES[0] | {"maps": []}, 0), ValueError, "0 maps for 3 words"),
        (lambda: figures.word_panel(STUDIES[0] | {"scores": [None]}, 0), ValueError, "1 scores for 3 words"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_batch_run_holds_a_picture_and_no_widget(monkeypatch):
    """In a real kernel, as papermill starts one: no session of Jupyter, and the variable of the course's runs."""
    code = """
import numpy as np
from IPython.display import Image, display
from mgca_lib import figures
from mgca_lib.figures.interactive import _png
parts = {"maps": [np.eye(2)], "masks": [None], "scores": [None]}
view = figures.explore_words([{"name": "one", "film": np.zeros((8, 8)), "words": ["a"], **parts}])
display(Image(data=_png(view)) if type(view).__name__ == "Figure" else view)
"""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for progress in ("0", "1"):
        monkeypatch.setenv("MGCA_PROGRESS", progress)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
        kinds = [kind for output in notebook.cells[0].outputs for kind in output.get("data", {})]
        assert "image/png" in kinds
        assert not [kind for kind in kinds if "widget" in kind]
        assert "widgets" not in notebook.metadata
