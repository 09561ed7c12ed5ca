"""Real films that anyone may have, found on this computer and prepared: NIH ChestX-ray14 and the COVID-19 collection.

A folder may hold the two as their owners ship them (``ChestX-ray14/``, ``covid-chestxray-dataset/``, and beside them
``lung_masks/``), or as sample sets: resized films with a ``metadata.csv`` that states the licence of each
(``nih_cxr14_subset/``, ``cohen_covid/``). Sample sets are first laid out as their owners would ship them, so that both
go through the same prepare scripts.
"""

import csv
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_scripts import prepare_covid_cxr, prepare_nih
from data_scripts.ledger import Summary
from data_scripts.preparation import read_table
from data_scripts.prepare_covid_cxr import may_be_shown, split_source
from mgca_lib.data.studies import DatasetError, Studies

SHARED_VARIABLE = "MGCA_SHARED"
NIH_SAMPLES, COVID_SAMPLES = "nih_cxr14_subset", "cohen_covid"
_NIH_RELEASES = ("ChestX-ray14*", "ChestXray-NIHCC*", "nih", "nih_cxr14")
_COVID_RELEASES = ("covid-chestxray-dataset*", "covid_cxr")
_HANNOVER_DOI = "10.6084/m9.figshare.12275009"
_HANNOVER = "H. B. Winther et al., Hannover Medical School"
_COVID_COLUMNS = (
    *("patientid", "offset", "finding", "view", "modality", "folder", "filename", "doi", "url", "license"),
    "clinical_notes",
)


def find_real_films(named: str, project: Path) -> Path | None:
    """Return the folder that holds real films.

    Args:
        named: A folder, or ``""`` for the usual places: the folder that the variable ``MGCA_SHARED`` names, and
            ``shared`` beside the project.
        project: The project's folder.

    Returns:
        The folder, or its subfolder ``realdata``; ``None`` where nothing was named and the usual places hold none.

    Raises:
        DatasetError: the named folder is missing or holds neither of the two datasets.
    """
    usual = os.environ.get(SHARED_VARIABLE) or project.parent / "shared"
    folder = Path(named or usual).expanduser()
    for place in (folder, folder / "realdata"):
        if _nih_folder(place) or _covid_folder(place):
            return place
    if named:
        raise DatasetError(
            f"REAL_DATA = {named!r}: holds no folder of NIH ChestX-ray14 ({', '.join((NIH_SAMPLES, *_NIH_RELEASES))}) "
            f"or of the COVID-19 collection ({', '.join((COVID_SAMPLES, *_COVID_RELEASES))})"
        )
    return None


def prepare_real_films(
    folder: Path, raw: Path, prepared: Path, *, size: int = 256, limit: int | None = None, quiet: bool = True
) -> dict[str, Summary]:
    """Prepare what a folder of :func:`find_real_films` holds as ``prepared/nih`` and ``prepared/covid_cxr``.

    Args:
        folder: The folder.
        raw: Where sample sets are laid out as their owners would ship them.
        prepared: Folder of the prepared datasets.
        size: Longer side of the stored images, pixels.
        limit: Most images of each split; ``None`` keeps all.
        quiet: Show no progress bar.

    Returns:
        Name of each prepared dataset -> its counts.

    Raises:
        DatasetError: a dataset is there but cannot be used.
    """
    settings = {"size": size, "limit": limit, "quiet": quiet}
    done = {}
    source = _nih_folder(folder)
    if source is not None:
        release = lay_out_nih(source, raw / "nih") if source.name == NIH_SAMPLES else source
        # A release of 42 GB comes in parts, and a part is enough.
        done["nih"] = prepare_nih.prepare(release, prepared / "nih", partial=True, **settings)
    source = _covid_folder(folder)
    if source is not None:
        release = lay_out_covid(source, raw / "covid_cxr") if source.name == COVID_SAMPLES else source
        masks = (release / "lung_masks", folder / "lung_masks")
        settings["lung_masks"] = next((mask for mask in masks if mask.is_dir()), "")
        settings["views"] = "all" if source.name == COVID_SAMPLES else "frontal"  # the samples are frontal throughout
        done["covid_cxr"] = prepare_covid_cxr.prepare(release, prepared / "covid_cxr", **settings)
    return done


def lay_out_nih(samples: Path, raw: Path) -> Path:
    """Lay the sample set out as the NIH Clinical Center ships the whole: table, box list, split lists, images.

    The images stay JPEG files of their size; their names are those of the release but for the suffix. The list of the
    test split holds the films that the sample set keeps for tests, so that no patient of these trains anything.

    Args:
        samples: ``nih_cxr14_subset``.
        raw: Folder to write; files that are there already are replaced.

    Returns:
        ``raw``.
    """
    columns = ("image", "patient", "view", "finding", "split_hint", "followup", "orig_file")
    films = read_table(samples / "metadata.csv", columns).to_dict("records")
    raw.mkdir(parents=True, exist_ok=True)
    _copy((samples / film["image"], raw / "images" / _stem_name(film["orig_file"], ".jpg")) for film in films)
    rows = [
        (film["orig_file"], film["finding"], film["followup"], film["patient"].rsplit("-", 1)[-1].lstrip("0") or "0")
        + (film["view"],)
        for film in films
    ]
    _write_csv(raw / prepare_nih.TABLES[0], prepare_nih.TABLE_COLUMNS, rows)
    for name, wanted in (("train_val_list.txt", ("train", "val")), ("test_list.txt", ("test",))):
        listed = [film["orig_file"] for film in films if film["split_hint"] in wanted]
        (raw / name).write_text("".join(f"{one}\n" for one in listed), encoding="utf-8")
    file_of = {film["image"]: film["orig_file"] for film in films}
    boxes = []
    if (samples / "boxes.csv").is_file():
        sides = ("x1", "y1", "x2", "y2")
        for box in read_table(samples / "boxes.csv", ("image", "label", *sides)).to_dict("records"):
            try:
                x1, y1, x2, y2 = (prepare_nih.RELEASED_SIZE * float(box[side]) for side in sides)
            except ValueError as error:
                raise DatasetError(f"{samples / 'boxes.csv'}: row {box['row']}: {error}") from None
            if box["image"] not in file_of:
                raise DatasetError(
                    f"{samples / 'boxes.csv'}: row {box['row']}: no image {box['image']!r} in metadata.csv"
                )
            boxes.append((file_of[box["image"]], box["label"], x1, y1, x2 - x1, y2 - y1))
        _write_csv(raw / prepare_nih.BOXES, prepare_nih.BOX_COLUMNS, boxes)
    return raw


def lay_out_covid(samples: Path, raw: Path) -> Path:
    """Lay the sample set out as ieee8023/covid-chestxray-dataset, with the outlines of the lungs beside it.

    Films of one group (same patient, or the same film) get one patient id. Of the clinical notes those stay that the
    list ``pairs_recommended.csv`` has and that speak of the film: others tell the history alone, or repeat a table.

    Args:
        samples: ``cohen_covid``.
        raw: Folder to write; files that are there already are replaced.

    Returns:
        ``raw``.
    """
    columns = ("image", "group", "view", "finding", "offset_days", "doi", "url", "licence", "lung_mask")
    films = read_table(samples / "metadata.csv", columns).to_dict("records")
    pairs = read_table(samples / "pairs_recommended.csv", ("image", "text", "text_describes_image")).to_dict("records")
    notes = {pair["image"]: pair["text"] for pair in pairs if pair["text_describes_image"] == "1"}
    rows = [
        (film["group"], film["offset_days"], film["finding"], film["view"].strip("?"), "X-ray", "images")
        + (Path(film["image"]).name, film["doi"], film["url"], film["licence"], notes.get(film["image"], ""))
        for film in films
    ]
    _copy((samples / film["image"], raw / "images" / Path(film["image"]).name) for film in films)
    _copy(
        (samples / film["lung_mask"], raw / "lung_masks" / _stem_name(Path(film["image"]).name, ".png"))
        for film in films
        if film["lung_mask"]
    )
    _write_csv(raw / prepare_covid_cxr.TABLE, _COVID_COLUMNS, rows)
    return raw


def showable(studies: Studies) -> Studies:
    """Return the films of the COVID-19 collection that may be shown anywhere with their attribution.

    Raises:
        DatasetError: there is none.
    """
    keep = [may_be_shown(split_source(source).licence) for source in studies.table["source"]]
    return studies.select([row for row, open_ in enumerate(keep) if open_], what="films with an open licence")


def attribution(studies: Studies, rows: Sequence[int]) -> str:
    """Return the attribution of films of the COVID-19 collection, for the caption of a figure that shows them.

    Raises:
        ValueError: a film's licence does not let anyone show it.
    """
    sources = [split_source(studies.table["source"].iat[row]) for row in rows]
    for source in sources:
        if not may_be_shown(source.licence):
            raise ValueError(f"{source.file}: its licence, {source.licence}, does not let everyone show it")
    licences = ", ".join(sorted({source.licence for source in sources}))
    references = sorted({source.reference for source in sources if source.reference})
    named = (f"doi {one}" if one.startswith("10.") else one for one in references)
    listed = ", ".join(f"{_HANNOVER}, {one}" if one == f"doi {_HANNOVER_DOI}" else one for one in named)
    return f"COVID-19 Image Data Collection (J. P. Cohen et al.), resized, {licences}; {listed}"


def _nih_folder(folder: Path) -> Path | None:
    return _first(folder, (NIH_SAMPLES,), "metadata.csv") or _first(folder, _NIH_RELEASES, "Data_Entry_2017*.csv")


def _covid_folder(folder: Path) -> Path | None:
    return _first(folder, (COVID_SAMPLES, *_COVID_RELEASES), prepare_covid_cxr.TABLE)


def _first(folder: Path, patterns: Iterable[str], marker: str) -> Path | None:
    found = (inner for pattern in patterns for inner in sorted(folder.glob(pattern)) if any(inner.glob(marker)))
    return next(found, None)


def _stem_name(name: str, suffix: str) -> str:
    return Path(name).stem + suffix


def _copy(pairs: Iterable[tuple[Path, Path]]) -> None:
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (target.is_file() and target.stat().st_size == source.stat().st_size):
                shutil.copy2(source, target)
        except FileNotFoundError:
            raise DatasetError(f"{source}: no such file, although the table lists it") from None


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
