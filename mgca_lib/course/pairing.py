"""Keeps ``NN_name.py`` and ``NN_name.ipynb`` in step, and committed outputs clean.

The ``.py`` file (percent format) is the truth. The ``.ipynb`` holds the same cells with the outputs of a ``demo``
run, and under ``metadata.mgca`` where they come from: the run's provenance, and a digest of code and outputs. Who
edits code, or commits outputs of a run of their own, breaks the digest, and the pair gate says so.

A run of another profile that is worth showing lies beside the pairs as ``PROFILE/NN_name.ipynb``, with the
parameters it was given. It is a record: what it ran is in the file, and it is not brought into step when a ``.py``
changes.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from mgca_lib.course.summary import restricted_data

OUTPUT_PROFILE = "demo"
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
_WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
_NOISE = ((re.compile(r"(<[\w.]+[^<>\n]*?) at 0x[0-9a-fA-F]+>"), r"\1>"),)
_LOCAL_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|tmp|work|mnt|workspace|private/var)/[\w.-]+|\b[A-Z]:\\\\?Users"
)


class PairError(ValueError):
    """A notebook cannot be paired or published; the message names it and says what to do."""


def read_source(path: Path) -> NotebookNode:
    """Read a ``.py`` notebook as the ``.ipynb`` it stands for: no outputs, ids that depend on the text alone.

    Raises:
        PairError: the file is not in percent format, or its header names a version of jupytext.
    """
    text = path.read_text(encoding="utf-8")
    if not text.startswith(("# %%", "# ---\n")):
        raise PairError(f"{path.name}: must begin with '# %%' or with a jupytext header")
    if re.search(r"^# +jupytext_version:", text, flags=re.MULTILINE):
        raise PairError(f"{path.name}: remove jupytext_version from the header; it changes with every upgrade")
    parsed = jupytext.reads(text, fmt="py:percent")
    seen: dict[str, int] = {}
    cells = []
    for cell in parsed.cells:
        key = f"{cell.cell_type}\n{cell.source}"
        seen[key] = seen.get(key, 0) + 1
        identity = hashlib.sha256(f"{path.stem}\n{seen[key]}\n{key}".encode()).hexdigest()[:12]
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}.get(cell.cell_type)
        if make is None:
            raise PairError(f"{path.name}: {cell.cell_type} cells are not used here")
        tags = cell.metadata.get("tags")
        cells.append(make(source=cell.source, id=identity, metadata={"tags": list(tags)} if tags else {}))
    return nbformat.v4.new_notebook(cells=cells, metadata=json.loads(json.dumps(_METADATA)))


def pair(source: Path) -> bool:
    """Rewrite the ``.ipynb`` beside a ``.py``; outputs of cells whose code is unchanged are kept.

    Returns:
        Whether the file changed.
    """
    target = source.with_suffix(".ipynb")
    notebook = read_source(source)
    if target.is_file():
        old = nbformat.read(target, as_version=4)
        kept = {_key(cell): cell.outputs for cell in _own_cells(old) if cell.cell_type == "code" and cell.outputs}
        _set_outputs(notebook, [kept.get(_key(cell), []) for cell in notebook.cells])
        if "mgca" in old.metadata:
            notebook.metadata["mgca"] = old.metadata["mgca"]
    return _write(notebook, target)


def published_path(source: Path, profile: str) -> Path:
    """Return where the executed notebook of a profile is kept: at ``demo`` beside its ``.py``.

    >>> published_path(Path("notebooks/06_pretraining.py"), "full_width").as_posix()
    'notebooks/full_width/06_pretraining.ipynb'
    """
    target = source.with_suffix(".ipynb")
    return target if profile == OUTPUT_PROFILE else target.parent / profile / target.name


def publish(source: Path, output_dir: Path, root: Path, *, profile: str = OUTPUT_PROFILE) -> bool:
    """Copy the outputs of an executed notebook to :func:`published_path`, cleaned.

    Args:
        source: The ``.py`` file.
        output_dir: Folder with the executed notebook and its ``metrics.json``.
        root: The project's folder; its path is taken out of the outputs.
        profile: Of the run.

    Returns:
        Whether the file changed.

    Raises:
        PairError: the run is missing, failed, was made from other code, from restricted data or with another
            profile, or its outputs name a folder of this computer.
    """
    executed, metrics = output_dir / f"{source.stem}.ipynb", output_dir / "metrics.json"
    if not (executed.is_file() and metrics.is_file()):
        raise PairError(f"{source.name}: no finished run in {output_dir}; run `make course` first")
    provenance = json.loads(metrics.read_text(encoding="utf-8"))["provenance"]
    if provenance.get("profile") != profile:
        raise PairError(f"{source.name}: the run has profile {provenance.get('profile')!r}, not {profile!r}")
    if restricted := restricted_data(provenance):
        raise PairError(
            f"{source.name}: the run used restricted data ({', '.join(restricted)}), whose outputs stay here"
        )
    run = nbformat.read(executed, as_version=4)
    notebook = read_source(source)
    cells = _own_cells(run)
    if [_key(cell) for cell in cells if cell.cell_type == "code"] != [
        _key(cell) for cell in notebook.cells if cell.cell_type == "code"
    ]:
        raise PairError(f"{source.name}: its code changed since the run; run `make course` again")
    if profile != OUTPUT_PROFILE:
        cells = _show_parameters(notebook, run)
        _move_links(notebook)
    outputs = iter(clean_outputs(cell.outputs, root) for cell in cells if cell.cell_type == "code")
    _set_outputs(notebook, [next(outputs) if cell.cell_type == "code" else [] for cell in notebook.cells])
    notebook.metadata["mgca"] = {"digest": digest(notebook), "provenance": provenance}
    if problems := _content_problems(notebook, profile):
        raise PairError(f"{source.name}: {problems[0]}")
    target = published_path(source, profile)
    target.parent.mkdir(exist_ok=True)
    return _write(notebook, target)


def clean_outputs(outputs: list[NotebookNode], root: Path) -> list[NotebookNode]:
    """Return outputs without what differs between computers and runs for no good reason.

    Warnings (stderr), widgets, memory addresses and execution counts go, the project's folder becomes ``.``, and
    neighbouring pieces of printed text are joined.
    """
    cleaned: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            text = _clean_text(output.text, root)
            if cleaned and cleaned[-1].output_type == "stream":
                cleaned[-1].text += text
            else:
                cleaned.append(nbformat.v4.new_output("stream", name="stdout", text=text))
        elif output.output_type in ("display_data", "execute_result"):
            if any(widget in output.data for widget in _WIDGETS):
                continue
            data = {
                mime: _clean_text(value, root) if isinstance(value, str) and not mime.startswith("image/p") else value
                for mime, value in output.data.items()
            }
            cleaned.append(nbformat.v4.new_output(output.output_type, data, metadata=dict(output.metadata)))
        else:
            cleaned.append(output)
    return cleaned


def digest(notebook: NotebookNode) -> str:
    """Return a hash of code and outputs; prose does not count, so that it can be polished without a new run."""
    code = [[cell.source, cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]


def check_pair(source: Path) -> list[str]:
    """Return what is wrong with a committed pair, one line each; an empty list when all is well."""
    target = source.with_suffix(".ipynb")
    if not target.is_file():
        return [f"{target.name} is missing; run `make pair`"]
    expected, found = read_source(source), nbformat.read(target, as_version=4)
    problems = []
    if len(found.cells) != len(expected.cells):
        problems.append(f"{len(found.cells)} cells, the .py has {len(expected.cells)}; run `make pair`")
    for number, (ours, theirs) in enumerate(zip(expected.cells, found.cells, strict=False), start=1):
        for part in ("cell_type", "source", "id", "metadata"):
            if ours.get(part) != theirs.get(part):
                problems.append(f"cell {number}: {part} differs from the .py; run `make pair`")
    extra = {name: value for name, value in found.metadata.items() if name != "mgca"}
    if extra != _METADATA:
        problems.append(f"metadata {sorted(extra)} differ from the standard; run `make pair`")
    return problems + _content_problems(found, OUTPUT_PROFILE)


def check_record(path: Path) -> list[str]:
    """Return what is wrong with the committed run of another profile, ``PROFILE/NN_name.ipynb``, one line each."""
    return _content_problems(nbformat.read(path, as_version=4), path.parent.name)


def _content_problems(notebook: NotebookNode, profile: str) -> list[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    record = notebook.metadata.get("mgca", {})
    provenance = record.get("provenance", {})
    problems = []
    if not outputs or not provenance:
        problems.append("no outputs of a course run; run `make course` and `make outputs`")
    elif record.get("digest") != digest(notebook):
        problems.append(
            "code or outputs are not those of the recorded run; run `make course` and `make outputs`, and commit no "
            "outputs of other runs: they may hold restricted data"
        )
    if provenance and provenance.get("profile") != profile:
        problems.append(f"outputs of profile {provenance.get('profile')!r}, not {profile!r}")
    if provenance and "data" not in provenance:
        problems.append("the provenance does not say which data were used")
    problems += [f"outputs made from restricted data: {name}" for name in restricted_data(provenance)]
    problems += [f"an error output: {output.ename}" for output in outputs if output.output_type == "error"]
    text = json.dumps([_texts(output) for output in outputs]) + json.dumps(notebook.metadata)
    problems += [f"a path of one computer: {found}" for found in sorted(set(_LOCAL_PATH.findall(text)))]
    return problems


def _texts(output: NotebookNode) -> Any:
    if "data" not in output:
        return dict(output)
    return {mime: value for mime, value in output.data.items() if not mime.startswith("image/p")}


def _own_cells(notebook: NotebookNode) -> list[NotebookNode]:
    added = {"injected-parameters", "papermill-error-cell-tag"}
    return [cell for cell in notebook.cells if not added & set(cell.metadata.get("tags", []))]


def _show_parameters(notebook: NotebookNode, run: NotebookNode) -> list[NotebookNode]:
    """Put the cell with the parameters that a run was given into a notebook; returns the run's cells with it."""
    shown = [cell for cell in run.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    for place, cell in enumerate(shown):
        if "injected-parameters" in cell.metadata.get("tags", []):
            copy = nbformat.v4.new_code_cell(source=cell.source, id="parameters", metadata={"tags": ["given"]})
            notebook.cells.insert(place, copy)
    return shown


def _move_links(notebook: NotebookNode) -> None:
    """Let the relative links of the prose start one folder further down."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:|#|mailto:|attachment:)", "](../", cell.source)


def _key(cell: NotebookNode) -> str:
    return cell.source.strip()


def _set_outputs(notebook: NotebookNode, outputs: list[list[NotebookNode]]) -> None:
    """Set outputs and number the code cells as one run from top to bottom would; no outputs at all: no numbers."""
    executed = any(outputs)
    count = 0
    for cell, own in zip(notebook.cells, outputs, strict=True):
        if cell.cell_type != "code":
            continue
        count += 1
        cell.outputs = own
        cell.execution_count = count if executed else None
        for output in own:
            if output.output_type == "execute_result":
                output.execution_count = count


def _clean_text(text: str, root: Path) -> str:
    for folder in (root.as_posix(), str(root)):
        text = text.replace(folder + "/", "").replace(folder, ".")
    for pattern, replacement in _NOISE:
        text = pattern.sub(replacement, text)
    return text


def _write(notebook: NotebookNode, target: Path) -> bool:
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    text += "" if text.endswith("\n") else "\n"
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return False
    target.write_text(text, encoding="utf-8", newline="\n")
    return True
