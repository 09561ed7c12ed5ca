"""The parameter gate: a misspelt or unread notebook parameter is an error, not a silent default.

papermill warns about a name that the parameters cell lacks, and goes on with the default. So the names are
checked twice: before a batch run (:func:`check_given`), and inside the notebook by ``start_run``
(:func:`check_injected_parameters`), which also covers ``papermill notebook.ipynb out.ipynb -p NAME VALUE``.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode  # slow to import, and every running notebook imports this module

TAG = "parameters"
_INJECTED = "# Parameters"  # papermill's first line in the cell that it adds
_PLAIN = (str, int, float, bool, list, dict, type(None))  # what papermill can inject


class ParameterError(ValueError):
    """A parameters cell, or a value given for it, breaks the rules; the message is one line that says how."""


def declared_parameters(source: str) -> dict[str, Any]:
    """Return names and defaults of a parameters cell.

    Args:
        source: The cell's text: nothing but ``NAME = literal`` lines, comments and blank lines.

    Raises:
        ParameterError: a line is anything else, or would be misread by papermill.

    >>> declared_parameters('PROFILE = "demo"  # how much')
    {'PROFILE': 'demo'}
    """
    if source.lstrip().startswith(_INJECTED):
        raise ParameterError(f"parameters cell: begins with {_INJECTED!r}, which marks the cell that papermill adds")
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"parameters cell, line {error.lineno}: {error.msg}") from None
    lines = source.splitlines()
    declared: dict[str, Any] = {}
    for statement in statements:
        where = f"parameters cell, line {statement.lineno} ({lines[statement.lineno - 1].strip()})"
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                pass
            case _:
                raise ParameterError(f"{where}: only plain NAME = value lines with upper-case names belong here")
        try:
            default = ast.literal_eval(value)
        except ValueError:
            raise ParameterError(
                f"{where}: derived values belong in the next cell, papermill would not update them"
            ) from None
        if not isinstance(default, _PLAIN):
            raise ParameterError(
                f"{where}: papermill cannot pass a {type(default).__name__}; use a list, text or number"
            )
        if name in declared:
            raise ParameterError(f"{where}: {name} is declared twice")
        declared[name] = default
    for number, line in enumerate(lines, start=1):
        if not line.lstrip().startswith("#") and line.count("=") > 1:
            raise ParameterError(
                f"parameters cell, line {number} ({line.strip()}): papermill skips lines with a second '='"
            )
    return declared


def check_given(declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare given values with the declared defaults.

    Raises:
        ParameterError: a name is not declared, or a value has another type than its default.

    >>> check_given({"PROFILE": "demo"}, {"PROFLIE": "smoke"})
    Traceback (most recent call last):
    mgca_lib.course.parameters.ParameterError: unknown parameter PROFLIE; did you mean PROFILE?
    """
    for name, value in given.items():
        if name not in declared:
            near = difflib.get_close_matches(name.upper(), declared, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the notebook declares {', '.join(declared) or 'none'}"
            raise ParameterError(f"unknown parameter {name}; {hint}")
        default = declared[name]
        expected = (int, float) if type(default) is float else type(default)
        fits = isinstance(value, expected) and isinstance(value, bool) == isinstance(default, bool)
        if default is not None and not fits:
            raise ParameterError(f"{name} = {value!r}: expected a {type(default).__name__} such as {default!r}")


def check_notebook(notebook: NotebookNode) -> dict[str, Any]:
    """Check the parameters of a notebook before it runs, and return names and defaults.

    Raises:
        ParameterError: there is not exactly one parameters cell, it breaks the rules of
            :func:`declared_parameters`, a later cell never reads a declared name, or a cell is not valid Python.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [index for index, cell in enumerate(code) if TAG in cell.metadata.get("tags", [])]
    if tagged != [0]:
        raise ParameterError(f"exactly the first code cell must be tagged {TAG!r}; tagged are code cells {tagged}")
    declared = declared_parameters(code[0].source)
    read = set().union(*(_names_read(cell.source, number) for number, cell in enumerate(code[1:], start=2)))
    for name in declared:
        if name not in read:
            raise ParameterError(f"parameter {name} is declared but no later cell reads it")
    return declared


def check_injected_parameters(history: Sequence[str] | None = None) -> None:
    r"""Check what papermill injected into the running notebook; does nothing elsewhere.

    Args:
        history: The cells executed so far; by default those of the running IPython.

    Raises:
        ParameterError: an injected name is not declared in the cell before it, or has another type.

    >>> check_injected_parameters(["SEED = 1", "# Parameters\\nSEED = 2"])
    """
    if history is None:
        from IPython import get_ipython

        shell = get_ipython()
        history = shell.user_ns.get("In", []) if shell else []
    for before, cell in zip(["", *history], history, strict=False):
        if cell.startswith(_INJECTED):
            given = {
                statement.targets[0].id: _literal(statement.value)
                for statement in ast.parse(cell).body
                if isinstance(statement, ast.Assign)
            }
            check_given(declared_parameters(before), given)


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return float(ast.unparse(value)[7:-2])  # papermill writes infinities and NaN as float('inf')


def _names_read(source: str, number: int) -> set[str]:
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError as error:
        lines = source.splitlines()
        where = lines[error.lineno - 1].strip() if error.lineno and error.lineno <= len(lines) else ""
        raise ParameterError(f"code cell {number}, line {error.lineno} ({where}): {error.msg}") from None
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
