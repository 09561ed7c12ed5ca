"""Reports of the Indiana University collection (Open-i): one XML file a report, with its images and MeSH terms.

A report has the sections COMPARISON, INDICATION, FINDINGS and IMPRESSION (``AbstractText`` with a ``Label``), the
``parentImage`` elements of its images, each with the caption of the examination, and MeSH terms. The ``major`` terms
were chosen by people, as a heading and its qualifiers ("Opacity/lung/base/left"); the ``automatic`` terms were found
in the text by a program and are not used.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mgca_lib.data.tasks import CHEXPERT_LABELS

NOT_INDEXED = ("no indexing", "technical quality of image unsatisfactory")
"""Terms that say nothing about findings; where a report has no other, its labels are unknown."""

MESH_LABELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("normal", "", ("No Finding",)),
    ("cardiomegaly", "", ("Cardiomegaly",)),
    ("cardiac shadow", "enlarged", ("Cardiomegaly",)),
    ("mediastinum", "enlarged", ("Enlarged Cardiomediastinum",)),
    ("mediastinum", "prominent", ("Enlarged Cardiomediastinum",)),
    ("opacity", "lung", ("Lung Opacity",)),
    ("density", "lung", ("Lung Opacity",)),
    ("infiltrate", "", ("Lung Opacity",)),
    ("airspace disease", "", ("Lung Opacity",)),
    ("nodule", "lung", ("Lung Lesion",)),
    ("mass", "lung", ("Lung Lesion",)),
    ("pulmonary edema", "", ("Edema",)),
    ("pulmonary congestion", "", ("Edema",)),
    ("heart failure", "", ("Edema",)),
    ("consolidation", "", ("Consolidation",)),
    ("pneumonia", "", ("Pneumonia",)),
    ("pulmonary atelectasis", "", ("Atelectasis",)),
    ("pneumothorax", "", ("Pneumothorax",)),
    ("pleural effusion", "", ("Pleural Effusion",)),
    ("hemothorax", "", ("Pleural Effusion",)),
    ("hydropneumothorax", "", ("Pneumothorax", "Pleural Effusion")),
    ("hemopneumothorax", "", ("Pneumothorax", "Pleural Effusion")),
    ("thickening", "pleura", ("Pleural Other",)),
    ("fractures, bone", "", ("Fracture",)),
    ("catheters, indwelling", "", ("Support Devices",)),
    ("tube, inserted", "", ("Support Devices",)),
    ("implanted medical device", "", ("Support Devices",)),
    ("medical device", "", ("Support Devices",)),
)
"""MeSH heading, qualifier that must be there ("" for none), CheXpert labels that the term makes positive.

Which finding counts under which label follows the phrase lists of the CheXpert labeller (congestion and heart failure
are Edema, infiltrate is Lung Opacity). Headings without a CheXpert label, such as "Scoliosis", are not listed.
"""

# Letters that a mark is joined to are part of the removed word: "x-XXXX", "XXXX-year-old", "XXXX's".
_MARK = re.compile(r"[\w'/<>-]*XXXX[\w'/<>-]*")
_FRONTAL = re.compile(r"\b(?:PA|AP|frontal|posteroanterior|anteroposterior)\b", re.IGNORECASE)
_PA = re.compile(r"\b(?:PA|posteroanterior)\b", re.IGNORECASE)
_AP = re.compile(r"\b(?:AP|anteroposterior)\b", re.IGNORECASE)
_LATERAL = re.compile(r"\b(?:lateral|lat)\b", re.IGNORECASE)
_SEVERAL = re.compile(r"XXXX|\band\b|\bviews\b|\b(?:2|two|three|3)\b|\d ?V\b|&|/", re.IGNORECASE)


class ReportError(ValueError):
    """A report cannot be used; the message is "reason: detail".

    Attributes:
        line: Line of the XML file where the problem is, 1 where it has no place.
    """

    def __init__(self, message: str, *, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class ReportImage:
    """An image that a report names.

    Attributes:
        image_id: Its id, for example ``"CXR1_1_IM-0001-3001"``.
        caption: Title of the examination; the same for all images of a report as a rule.
        line: Line of the XML file where it is named.
    """

    image_id: str
    caption: str
    line: int


@dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        uid: Id of the report, for example ``"CXR1"``; each report is of another patient.
        findings: Findings as written, ``""`` when absent.
        impression: Impression as written, ``""`` when absent.
        terms: Major MeSH terms.
        images: The images.
    """

    uid: str
    findings: str
    impression: str
    terms: tuple[str, ...]
    images: tuple[ReportImage, ...]


def parse_report(content: bytes) -> Report:
    """Read a report.

    A document type declaration is refused, and with it every entity that a file could declare: no report of the
    collection has one, and expanding entities lets a small file fill the memory or read other files.

    Args:
        content: The XML file.

    Raises:
        ReportError: it is no XML, declares a document type, or is no Open-i report.
    """
    root, lines = _parse_xml(content)
    if root.tag != "eCitation":
        raise ReportError(f"not an Open-i report: the outermost element is {root.tag}, not eCitation")
    uid = root.find("uId")
    name = (uid.get("id") or "").strip() if uid is not None else ""
    if not name:
        raise ReportError("not an Open-i report: no uId with an id")
    sections: dict[str, list[str]] = {}
    for element in root.iter("AbstractText"):
        label = (element.get("Label") or "").strip().upper()
        sections.setdefault(label, []).append(" ".join("".join(element.itertext()).split()))
    findings, impression = (" ".join(filter(None, sections.get(label, []))) for label in ("FINDINGS", "IMPRESSION"))
    if "FINDINGS" not in sections and "IMPRESSION" not in sections:
        raise ReportError("not an Open-i report: no AbstractText with Label FINDINGS or IMPRESSION")
    images = []
    for element, line in zip(root.iter("parentImage"), lines, strict=True):
        caption = " ".join((element.findtext("caption") or "").split())
        images.append(ReportImage(image_id=(element.get("id") or "").strip(), caption=caption, line=line))
    terms = tuple(text for element in root.iterfind("MeSH/major") if (text := (element.text or "").strip()))
    return Report(uid=name, findings=findings, impression=impression, terms=terms, images=tuple(images))


def remove_marks(text: str) -> str:
    """Remove the marks that stand for removed words, with the letters that they are joined to.

    The collection's de-identification replaced names and dates, and many ordinary words, by ``XXXX``. Nothing tells
    what stood there, and a word "xxxx" in most reports would only be noise to a text encoder.

    >>> remove_marks("Normal chest x-XXXX. No XXXX, (XXXX) of the XXXX-year-old.")
    'Normal chest. No, of the.'
    """
    text = re.sub(r"\(\s*\)", "", _MARK.sub("", text))
    return re.sub(r"\s+([.,;:)])", r"\1", " ".join(text.split()))


def labels_from_terms(terms: Iterable[str]) -> dict[str, float | None]:
    """Map MeSH terms to the 14 CheXpert labels with ``MESH_LABELS``.

    People listed what a report says is there, so a label that no term names is 0. "No Finding" is 1 for the term
    "normal" alone.

    Args:
        terms: Major terms of a report.

    Returns:
        1, 0, or ``None`` for all labels of a report that was not indexed.

    >>> labels = labels_from_terms(["Opacity/lung/base/left", "Scoliosis"])
    >>> [name for name, value in labels.items() if value]
    ['Lung Opacity']
    """
    parts = [[part.strip().lower() for part in term.split("/")] for term in terms]
    parts = [part for part in parts if part[0] not in NOT_INDEXED]
    if not parts:
        return dict.fromkeys(CHEXPERT_LABELS)
    labels: dict[str, float | None] = dict.fromkeys(CHEXPERT_LABELS, 0.0)
    for heading, *qualifiers in parts:
        for known, wanted, names in MESH_LABELS:
            if heading == known and (not wanted or wanted in qualifiers):
                labels |= dict.fromkeys(names, 1.0)
    return labels


def view_from_caption(caption: str) -> str:
    """Return ``"frontal"`` or ``"lateral"`` where a caption names one view alone, else ``""``.

    Most captions name the whole examination ("PA and lateral chest"), and the words of some were removed
    ("XXXX and lateral chest"); neither says which view an image is.

    >>> [view_from_caption(text) for text in ("AP portable chest", "PA and lateral chest", "Lateral view")]
    ['frontal', '', 'lateral']
    """
    frontal, lateral = bool(_FRONTAL.search(caption)), bool(_LATERAL.search(caption))
    if frontal and not lateral:
        return "frontal"
    if lateral and not frontal and not _SEVERAL.search(caption):
        return "lateral"
    return ""


def projection_from_caption(caption: str) -> str:
    """Return the projection of a frontal image, ``"PA"`` or ``"AP"``, where the caption names one; else ``""``.

    >>> [projection_from_caption(text) for text in ("PA and lateral chest", "CHEST 2V FRONTAL/LATERAL", "PA/AP")]
    ['PA', '', '']
    """
    pa, ap = bool(_PA.search(caption)), bool(_AP.search(caption))
    return "" if pa == ap else "PA" if pa else "AP"


def _parse_xml(content: bytes) -> tuple[Element, list[int]]:
    """Return the outermost element, and the lines where the images are named.

    Raises:
        ReportError: the content cannot be parsed, or declares a document type.
    """
    parser = expat.ParserCreate()
    builder = TreeBuilder()
    lines: list[int] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "parentImage":
            lines.append(parser.CurrentLineNumber)
        builder.start(tag, attributes)

    def refuse(*_: object) -> None:
        raise ReportError("report unreadable: it declares a document type", line=parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close(), lines
    except expat.ExpatError as error:
        raise ReportError(f"report unreadable: {expat.errors.messages[error.code]}", line=error.lineno) from None
    except ReportError:
        raise
    except (LookupError, ValueError) as error:  # an encoding that Python does not know, or expat cannot use
        raise ReportError(f"report unreadable: {error}") from None
