"""Pictures for the pages in Markdown: those that the executed notebooks show, as files that a page can link to.

``notebooks/images/NN_NAME.png`` is what notebook ``NN`` shows by ``run.show(figure, "NAME", ...)``, byte for byte.
"""

import base64
import json
import re
from pathlib import Path

IMAGES = Path("notebooks", "images")


class PictureError(ValueError):
    """A picture has no notebook that shows it; the message is one line."""


def shown_picture(root: Path, file_name: str) -> bytes:
    """Return the PNG that a committed notebook shows.

    Args:
        root: The project's folder.
        file_name: ``NN_NAME.png``: number of the notebook, and the name under which it shows the figure.

    Raises:
        PictureError: no executed notebook of that number shows a figure of that name.
    """
    number, _, figure = file_name.removesuffix(".png").partition("_")
    for notebook in sorted((root / "notebooks").glob(f"{number}_*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if not re.search(rf'["\']{re.escape(figure)}["\']', "".join(cell["source"])):
                continue
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode("".join(output["data"]["image/png"]))
    raise PictureError(f"{IMAGES / file_name}: no notebook {number} shows a figure {figure!r} in its outputs")


def publish_pictures(root: Path) -> list[str]:
    """Bring the pictures in ``notebooks/images`` up to date with the notebooks, and return the names that changed.

    Raises:
        PictureError: as :func:`shown_picture`.
    """
    changed = []
    for path in sorted((root / IMAGES).glob("*.png")):
        content = shown_picture(root, path.name)
        if path.read_bytes() != content:
            path.write_bytes(content)
            changed.append(path.name)
    return changed
