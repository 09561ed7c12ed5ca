r"""Radiology reports: from the text file to sections, and from sections to cleaned words.

Cleaning follows upstream MGCA: the impression comes before the findings, text is cut into pieces at list markers
("1.") and at full stops, lower-cased, reduced to runs of word characters (``\w+``), and pieces of one word are
dropped. Known consequences, kept on purpose: the whole part of a decimal number is taken for a list marker
("3.5 cm" leaves "5 cm"), commas and hyphens vanish, and the de-identification mark ``___`` stays a word.

Differences from upstream: the two sections never share a piece, digits inside a word ("t12.") are no list marker,
and every word remembers where it stood, so that a word can be pointed at in the original text.
"""

import re
from dataclasses import dataclass

MIN_PIECE_WORDS = 2

_WORD = re.compile(r"\w+")
_BOTH = r"FINDINGS? *(?:AND|/|&) *IMPRESSIONS?|IMPRESSIONS? *(?:AND|/|&) *FINDINGS?"
_MAIN = rf"{_BOTH}|FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|COMPARISONS?"
_KNOWN = rf"{_MAIN}|INDICATIONS?|TECHNIQUE|EXAMINATION|HISTORY"
# A line that starts with a header: capitals up to a colon (times such as 5:31 may occur inside), or a known
# header in any case, or a known header alone on its line.
_LINE_HEADER = re.compile(
    r"^[ \t]*(?:(?P<capitals>[A-Z](?:[A-Z0-9 ,.()/&#'_+-]|(?<=\d):(?=\d)){1,90}):(?!\d)"
    rf"|(?P<known>(?i:{_KNOWN})) *:"
    rf"|(?P<alone>{_MAIN})[ \t.-]*$"
    r"|(?P<body>(?:FINAL|PRELIMINARY|INTERIM) (?:REPORT|ADDENDUM))[ \t:.]*$)",
    re.MULTILINE,
)
_INLINE_HEADER = re.compile(rf"(?<=[\s.])(?P<inline>{_KNOWN}):(?!\d)")
_RULE_LINE = re.compile(r"^[ \t]*[_=*-]{5,}[ \t]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_OTHER = re.compile(
    r"\b(INDICATIONS?|HISTORY|HISTORIES|REASON|TECHNIQUES?|EXAMS?|EXAMINATIONS?|STUDY|STUDIES|PROCEDURES?|WET ?READ|"
    r"NOTIFICATIONS?|RECOMMENDATIONS?|ADDENDUM|ADDENDA|CLINICAL|DATES?|CONTRAST|DOSE|DIAGNOSIS|DIAGNOSES|ATTENDING|"
    r"DICTATED|SIGNED|INFORMATION|QUESTION|PATIENT|TYPE OF|REFERENCE|PROVIDER)\b"
)
_EXAM_TITLE = re.compile(
    r"\b(CHEST|RADIOGRAPHS?|X-?RAYS?|VIEWS?|FRONTAL|LATERAL|PORTABLE|UPRIGHT|SUPINE|AP|PA|CXR|BEDSIDE|FILMS?)\b"
)


@dataclass(frozen=True)
class Sections:
    """Sections of one report, white space normalised to single spaces; ``""`` where there is none.

    Attributes:
        findings: What the radiologist describes.
        impression: The conclusion.
        last_paragraph: Last paragraph of the report's last part, header removed; for reports without headers.
        comparison: What the study was compared with.
    """

    findings: str
    impression: str
    last_paragraph: str
    comparison: str


@dataclass(frozen=True)
class ReportWord:
    r"""A cleaned word and where it stood.

    Attributes:
        text: Lower-case ASCII word.
        section: ``"impression"`` or ``"findings"``.
        index: Position among all ``\w+`` runs of its white-space-normalised section.
        sentence: Number of its sentence in the cleaned report, counted from 0.
    """

    text: str
    section: str
    index: int
    sentence: int


def split_sections(text: str) -> Sections:
    r"""Find the sections of a MIMIC-CXR report.

    Headers are lines that begin in capitals and end in a colon; "Findings:" and its like count in any case, and in
    capitals also inside a line. "CONCLUSION" is an impression, "FINDINGS AND IMPRESSION" and the like are findings
    (never both, so that no word counts twice). The title of an examination ("CHEST, PA AND LATERAL:") opens the
    findings of a report that has no findings header. Headers of organs ("LUNGS:") stay part of their section.
    A section that occurs several times is joined in order.

    Args:
        text: The report as stored.

    Returns:
        The sections.

    >>> split_sections("FINDINGS:\n Clear lungs,\n no effusion.\n\n IMPRESSION: Normal.")
    Sections(findings='Clear lungs, no effusion.', impression='Normal.', last_paragraph='Normal.', comparison='')
    """
    text = _RULE_LINE.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", ""))
    found: dict[str, list[str]] = {"findings": [], "impression": [], "comparison": [], "title": []}
    last_part = ""
    for kind, part in _parts(text):
        if kind in found:
            found[kind].append(part)
        if part.strip():
            last_part = part
    joined = {kind: " ".join(" ".join(parts).split()) for kind, parts in found.items()}
    findings = joined["findings"]
    if not findings and _count_words(joined["title"]) >= MIN_PIECE_WORDS:
        findings = joined["title"]
    paragraphs = [" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(last_part)]
    last_paragraph = next((paragraph for paragraph in reversed(paragraphs) if paragraph), "")
    return Sections(findings, joined["impression"], last_paragraph, joined["comparison"])


def report_words(*, findings: str, impression: str) -> list[ReportWord]:
    r"""Clean a report to words, impression first.

    Args:
        findings: Findings section, ``""`` when absent.
        impression: Impression section, ``""`` when absent.

    Returns:
        The words in reading order.

    >>> words = report_words(findings="", impression="1. No  effusion.\n2. Clear.")
    >>> [(word.text, word.index, word.sentence) for word in words]
    [('no', 1, 0), ('effusion', 2, 0)]
    """
    words: list[ReportWord] = []
    sentence = 0
    for section, text in (("impression", impression), ("findings", findings)):
        for piece in _pieces(text):
            words.extend(ReportWord(word, section, index, sentence) for word, index in piece)
            sentence += 1
    return words


def clean_sentences(*, findings: str, impression: str) -> list[str]:
    """Return the words of :func:`report_words`, joined by spaces sentence by sentence.

    >>> clean_sentences(findings="Heart size is normal. The lungs are clear.", impression="No acute process.")
    ['no acute process', 'heart size is normal', 'the lungs are clear']
    """
    sentences: list[list[str]] = []
    for word in report_words(findings=findings, impression=impression):
        if word.sentence == len(sentences):
            sentences.append([])
        sentences[word.sentence].append(word.text)
    return [" ".join(sentence) for sentence in sentences]


def _pieces(text: str) -> list[list[tuple[str, int]]]:
    """Cut one section into pieces of at least two words, each word with its index."""
    text = " ".join(text.split())
    pieces: list[list[tuple[str, int]]] = [[]]
    end = 0
    for index, match in enumerate(_WORD.finditer(text)):
        if "." in text[end : match.start()]:
            pieces.append([])
        end = match.end()
        run = match.group()
        if run.isascii() and run.isdigit() and text[end : end + 1] == ".":
            continue  # a list marker; the full stop behind it starts the next piece
        word = run.lower().encode("ascii", "ignore").decode("ascii")
        if word:
            pieces[-1].append((word, index))
    return [piece for piece in pieces if len(piece) >= MIN_PIECE_WORDS]


def _parts(text: str) -> list[tuple[str, str]]:
    """Cut a report at its headers into (kind, text); text before the first header has kind ``"body"``."""
    headers = [*_LINE_HEADER.finditer(text), *_INLINE_HEADER.finditer(text)]
    headers.sort(key=lambda match: match.start())
    parts: list[tuple[str, str]] = []
    kind, start = "body", 0
    for match in headers:
        new = _kind(match, inside=kind)
        if new is None or match.start() < start:
            continue
        parts.append((kind, text[start : match.start()]))
        kind, start = new, match.end()
    return [*parts, (kind, text[start:])]


def _kind(header: re.Match[str], *, inside: str) -> str | None:
    """Say which section a header opens, or ``None`` when it is text of its section."""
    if header.lastgroup == "body":
        return "body"
    name = " ".join(header[header.lastgroup].upper().split())
    if re.search(r"\bFINDINGS?\b", name):
        return "findings"
    if re.search(r"\b(IMPRESSIONS?|CONCLUSIONS?|OPINION)\b", name):
        return "impression"
    if re.search(r"\b(COMPARISONS?|COMPARED)\b", name):
        return "comparison"
    if _OTHER.search(name):
        return "other"
    if _EXAM_TITLE.search(name) and inside not in ("findings", "impression"):
        return "title"
    return None


def _count_words(text: str) -> int:
    return sum(len(piece) for piece in _pieces(text))
