"""Which source files a notebook depends on, so that a change reruns what it touches and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("mgca_lib", "data_scripts")
_MENTION = re.compile(rf"\b(?:{'|'.join(PACKAGES)})[./][\w./]+")


def source_files(notebook: Path, root: Path) -> list[Path]:
    """Return the project's own files that a notebook imports or starts, directly or through others.

    Scripts count where the notebook names them in a string (``"data_scripts/prepare_rsna.py"`` or
    ``"data_scripts.prepare_rsna"``). ``mgca_lib/course`` is left out: it runs notebooks, it computes nothing.

    Args:
        notebook: The notebook's ``.py`` file.
        root: The project's folder.

    Returns:
        Sorted paths, the notebook itself not among them.

    Raises:
        SyntaxError: a file is not valid Python.
    """
    tree = _parse(notebook)
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    mentioned = [match.removesuffix(".py").replace("/", ".") for text in strings for match in _MENTION.findall(text)]
    waiting = [*mentioned, *_imports(tree, ())]
    found: set[Path] = set()
    while waiting:
        parts = waiting.pop().split(".")
        for depth in range(1, len(parts) + 1):
            for path in (
                root.joinpath(*parts[:depth], "__init__.py"),
                root.joinpath(*parts[:depth]).with_suffix(".py"),
            ):
                if parts[0] in PACKAGES and path.is_file() and path not in found:
                    found.add(path)
                    package = path.parent.relative_to(root).parts
                    waiting.extend(_imports(_parse(path), package))
    return sorted(path for path in found if path.parent != root / "mgca_lib" / "course")


def _parse(path: Path) -> ast.Module:
    text = path.read_text(encoding="utf-8")
    lines = ("" if re.match(r"\s*[%!]", line) else line for line in text.splitlines())  # IPython's magics
    return ast.parse("\n".join(lines), filename=str(path))


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
