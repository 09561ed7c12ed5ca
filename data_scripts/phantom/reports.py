"""The radiologist of the phantom hospitals: a case in, a dictated report out, with word-level ground truth.

A report is drawn from a grammar: a reader (dictation style) decides which findings to mention, how sure to be
of each, in which order to go through the film, and with which of many synonyms and sentences. Every phrase
that names a finding is known by its exact span of words, and so is every phrase that denies one. `labels.py` reads
CheXpert-style labels from those phrases.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_scripts.phantom import consistency, lexicon, templates
from data_scripts.phantom.cases import DEVICES, Case, Finding
from data_scripts.phantom.consistency import Said, fits, fitting

_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{(\w+)\}")
_SEVERITY_RANK = {"mild": 1, "moderate": 2, "severe": 3}
_NEEDS_PRIOR = re.compile(r"\b(?:again|unchanged|stable|interval change)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Phrase:
    r"""A run of words that names a finding, or denies one.

    Attributes:
        section: "findings" or "impression".
        first_word: Index of the first word among the ``\w+`` runs of the section.
        last_word: Index of the last word, inclusive.
        phrase: The words as they stand in the section.
        finding: Index into ``case.findings`` of what the words point at; None for negated phrases.
        name: Name of that finding, or of what is denied.
        negated: True if the words deny the finding; such a phrase points at nothing.
        uncertain: True if the reader hedges ("may represent", "cannot be excluded").
        classes: CheXpert classes that the words speak of. "Superimposed pneumonia cannot be excluded" points at
            an atelectasis (``name``) and speaks of Pneumonia.
    """

    section: str
    first_word: int
    last_word: int
    phrase: str
    finding: int | None
    name: str
    negated: bool
    uncertain: bool
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PhantomReport:
    """One report.

    Attributes:
        text: The whole file as the hospital stores it, with headers and wrapped lines.
        findings: Text of the findings section, whitespace normalised; "" if the reader left it out.
        impression: Text of the impression, likewise.
        phrases: Every phrase that names or denies a finding, impression first, in reading order.
        incidental_classes: CheXpert classes that the report states beside the case's findings: "Fracture" and
            "Pleural Other". Nothing on the film is marked for them, so they have no phrase.
        devices: Devices (names of `cases.DEVICES`, in that order) that a section names as present.
    """

    text: str
    findings: str
    impression: str
    phrases: tuple[Phrase, ...]
    incidental_classes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


class _Mention(NamedTuple):
    name: str
    finding: int | None
    negated: bool
    uncertain: bool
    classes: tuple[str, ...]


class _Words(NamedTuple):
    """A noun phrase ready for a sentence: text, "mass" | "one" | "many", and what it mentions."""

    text: str
    number: str
    mention: _Mention


_Sentence = list[str | _Words]


@dataclass(frozen=True)
class _Reader:
    """Habits of one radiologist, as probabilities from 0 to 1 unless noted."""

    order: tuple[str, ...]
    telegraphic: float
    detail: float
    pairing: float
    numbered: float
    hedging: float
    history_header: str
    blank_line: bool


_READERS = (
    _Reader(("devices", "lungs", "pleura", "heart", "bones"), 0.10, 0.75, 0.15, 0.20, 1.0, "INDICATION", True),
    _Reader(("lungs", "pleura", "heart", "devices", "bones"), 0.55, 0.45, 0.30, 0.55, 0.8, "INDICATION", False),
    _Reader(("heart", "lungs", "pleura", "bones", "devices"), 0.15, 0.95, 0.20, 0.10, 1.3, "INDICATION", True),
    _Reader(("devices", "heart", "pleura", "lungs", "bones"), 0.25, 0.60, 0.40, 0.80, 1.1, "HISTORY", False),
    _Reader(("lungs", "heart", "pleura", "bones", "devices"), 0.05, 0.85, 0.10, 0.35, 0.7, "HISTORY", True),
)


def write_report(case: Case, rng: np.random.Generator, *, previous: Case | None = None) -> PhantomReport:
    r"""Dictate the report of one film.

    A reader is drawn first; then, per finding, where it is mentioned (both sections, one of them, rarely not at
    all) and whether the reader hedges. A finding that is on the film is never denied, even when it goes
    unmentioned, and no sentence about the rest of the film contradicts it (`consistency.CONDITIONS`). Sizes of
    nodules, heights of tubes, views and comparisons are those of the cases.

    Args:
        case: What is on the film.
        rng: Source of every choice; the same state gives the same report.
        previous: The patient's earlier film, for comparison phrases ("unchanged", "has resolved"). Without it
            some readers still compare with an outside study, where nothing has changed.

    Returns:
        The report with the phrases that name or deny findings.

    >>> from data_scripts.phantom.cases import Case, Finding
    >>> case = Case("F", 61, "PA", (Finding("pleural effusion", "left", "basal", "moderate"),))
    >>> report = write_report(case, np.random.default_rng(3))
    >>> words = re.findall(r"\w+", report.impression)
    >>> named = [p for p in report.phrases if p.section == "impression" and not p.negated]
    >>> all(re.findall(r"\w+", p.phrase) == words[p.first_word : p.last_word + 1] for p in named)
    True
    """
    return _Dictation(case, rng, previous).report()


def _pick(rng: np.random.Generator, options: Sequence) -> object:
    return options[int(rng.integers(len(options)))]


def _article(words: _Words) -> str:
    if words.number != "one":
        return ""
    vowel = words.text[0].lower() in "aeiou" or words.text.startswith(("8 ", "11 ", "18 "))
    return "an " if vowel and not words.text.lower().startswith("uni") else "a "


def _size_text(diameter: float, *, decimals: int = 0) -> str:
    """A diameter in cm as readers dictate it: whole millimetres below 3 cm, else centimetres.

    Phrases take no decimals: sentences are split at full stops when reports are cleaned.

    >>> _size_text(1.4), _size_text(5.3), _size_text(5.3, decimals=1)
    ('14 mm', '5 cm', '5.3 cm')
    """
    return f"{10 * diameter:.0f} mm" if diameter < 3.0 else f"{diameter:.{decimals}f} cm"


def _clash(severity: str, head: str) -> bool:
    """True if a word of severity does not go with a noun, or repeats a word of it."""
    words, nouns = set(severity.split()), set(head.split())
    return bool(words & nouns) or any(words & set(bad) and nouns & set(those) for bad, those in lexicon.CLASHES)


def _fill(template: str, first: _Words, second: _Words | None = None, **extra: str) -> _Sentence:
    """Put noun phrases into a sentence; verbs and articles agree with the first."""
    many = first.number == "many"
    strings = {
        "a": _article(first),
        "b": _article(second) if second else "",
        "is": "are" if many else "is",
        "has": "have" if many else "has",
        "t": "",
    } | extra
    if many:
        template = template.replace(" persists ", " persist ")
    sentence: _Sentence = []
    for position, part in enumerate(_FIELD.split(template)):
        if position % 2 == 0:
            sentence.append(part)
        elif part == "p":
            sentence.append(first)
        elif part == "q" and second:
            sentence.append(second)
        else:
            sentence.append(strings[part])
    return sentence


def _assemble(section: str, sentences: Sequence[_Sentence], *, numbered: bool) -> tuple[str, list[Phrase]]:
    """Join sentences to a section and locate each phrase by counting words."""
    text = ""
    phrases = []
    for number, sentence in enumerate(sentences, start=1):
        if text:
            text += " "
        if numbered:
            text += f"{number}. "
        start = True
        for part in sentence:
            piece = part if isinstance(part, str) else part.text
            if not piece:
                continue
            if start:
                piece = piece[0].upper() + piece[1:]
                start = False
            if isinstance(part, _Words):
                first = len(_WORD.findall(text))
                last = first + len(_WORD.findall(piece)) - 1
                phrases.append(Phrase(section, first, last, piece, *_phrase_fields(part.mention)))
            text += piece
    return text, phrases


def _phrase_fields(mention: _Mention) -> tuple[int | None, str, bool, bool, tuple[str, ...]]:
    return mention.finding, mention.name, mention.negated, mention.uncertain, mention.classes


def _comparison(before: Finding, now: Finding) -> str:
    """What became of a finding: "worse", "better", "unchanged", or "" if it moved or changed its kind."""
    roams = now.name in ("edema", "pleural effusion")
    if before.side != now.side or (before.zone != now.zone and not roams):
        return ""
    if before.diameter and now.diameter:
        growth = now.diameter / before.diameter
        return "worse" if growth > 1.2 else "better" if growth < 0.8 else "unchanged"
    step = _SEVERITY_RANK[now.severity] - _SEVERITY_RANK[before.severity]
    if step:
        return "worse" if step > 0 else "better"
    return "unchanged" if before.kind == now.kind or now.name == "pleural effusion" else ""


class _Dictation:
    """State of one report while it is dictated: what the reader decided to say about which finding."""

    def __init__(self, case: Case, rng: np.random.Generator, previous: Case | None) -> None:
        self.case = case
        self.rng = rng
        self.previous = previous
        self.reader: _Reader = self.pick(_READERS)
        self.compares = previous is not None or self.chance(0.45)
        layout = rng.random()
        self.has_findings = layout >= 0.12
        self.has_impression = layout < 0.92
        self.names = {finding.name for finding in case.findings}
        self.incidental_classes: set[str] = set()
        self._decide_mentions()
        self.named_devices: set[str] = set()
        self.change = [self._change(finding) for finding in case.findings]
        self.uncertain = {i for i, finding in enumerate(case.findings) if self.chance(self._doubt(finding))}
        self.severity = [
            self._severity_word(finding, change=change, hedged=i in self.uncertain)
            for i, (finding, change) in enumerate(zip(case.findings, self.change, strict=True))
        ]
        self.differential = self._decide_differential()

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence) -> object:
        return _pick(self.rng, options)

    def pick_text(self, options: Sequence[Said]) -> str:
        """A sentence that fits the film, without words of comparison unless there is something to compare with."""
        usable = fitting(options, self.case)
        return str(self.pick(usable if self.compares else [text for text in usable if not _NEEDS_PRIOR.search(text)]))

    def _decide_mentions(self) -> None:
        self.in_findings: set[int] = set()
        self.in_impression: set[int] = set()
        both = self.has_findings and self.has_impression
        for i, finding in enumerate(self.case.findings):
            draw = self.rng.random() - (0.04 if finding.severity == "severe" else 0.0)
            if draw > 0.93:
                continue
            if self.has_findings and not (both and draw < 0.09):
                self.in_findings.add(i)
            minor = finding.severity == "mild" and finding.name in ("atelectasis", "cardiomegaly")
            if self.has_impression and not (both and draw > (0.55 if minor else 0.78)):
                self.in_impression.add(i)
        if not self.case.findings:
            return
        worst = max(range(len(self.case.findings)), key=lambda i: _SEVERITY_RANK[self.case.findings[i].severity])
        if self.has_impression and not self.in_impression:
            self.in_impression.add(worst)
        if not self.in_findings and not self.in_impression:
            self.in_findings.add(worst)

    def _doubt(self, finding: Finding) -> float:
        if finding.name == "foreign object" or (finding.severity == "severe" and finding.name != "pneumonia"):
            return 0.0
        base = {"pneumonia": 0.32, "consolidation": 0.18, "atelectasis": 0.12, "edema": 0.12}.get(finding.name, 0.08)
        return base * self.reader.hedging * {"mild": 1.5, "moderate": 1.0, "severe": 0.4}[finding.severity]

    def _decide_differential(self) -> int | None:
        """Index of an opacity that the reader takes for possible pneumonia."""
        if "pneumonia" in self.names or "covid-like opacities" in self.names or not self.chance(0.22):
            return None
        spoken = self.in_impression if self.has_impression else self.in_findings
        targets = [i for i in sorted(spoken) if self.case.findings[i].name in templates.DIFFERENTIAL_TARGETS]
        return int(self.pick(targets)) if targets else None

    def _words(self, index: int, *, short: bool = False) -> _Words:
        """A noun phrase for finding ``index``; ``short`` drops details, as impressions do."""
        finding = self.case.findings[index]
        text, number, classes = self._noun_phrase(finding, self.severity[index], short=short)
        return _Words(text, number, _Mention(finding.name, index, False, index in self.uncertain, classes))

    def _severity_word(self, finding: Finding, *, change: str = "", hedged: bool = False) -> str:
        """How bad or how large a finding is; doubt and size go together only for small ones."""
        if hedged and finding.severity == "moderate":
            return ""
        if finding.diameter and not hedged and self.chance(0.42):
            return _size_text(finding.diameter)
        options: Sequence[str] = lexicon.SEVERITY_WORDS[finding.name][finding.severity]
        if finding.name == "nodule" and 0.0 < finding.diameter < 1.0:
            options = lexicon.SUBCENTIMETER_WORDS
        if finding.zone == "diffuse":
            options = [word for word in options if word not in ("large", "rounded", "patchy")]
        if change not in ("", "new"):
            options = [word for word in options if word != "early"]
        return str(self.pick(options))

    def _noun_phrase(
        self, finding: Finding, severity: str, *, short: bool, noun: lexicon.Noun | None = None
    ) -> tuple[str, str, tuple[str, ...]]:
        noun = noun or self._noun(finding, hedged=finding in self._hedged())
        classes = lexicon.CLASSES_OF_FINDING[finding.name] if noun.classes is None else noun.classes
        plural = bool(noun.plural) and (not noun.singular or finding.side == "bilateral" or finding.zone == "diffuse")
        head = noun.plural if plural else noun.singular
        number = "many" if plural else "one" if noun.countable else "mass"
        if self.chance(0.12) or _clash(severity, head):
            severity = ""
        if finding.name in ("foreign object", "cardiomegaly"):
            before, after = "", self._foreign_place(finding) if finding.name == "foreign object" else ""
        else:
            before, after = self._place(finding, short=short)
        if head.startswith(("lung ", "pulmonary ")) and ("lung" in before + after or "lobe" in before + after):
            head = head.split(" ", 1)[1]
        return " ".join(part for part in (severity, before, head, after) if part), number, classes

    def _hedged(self) -> list[Finding]:
        return [self.case.findings[i] for i in self.uncertain]

    def _noun(self, finding: Finding, *, hedged: bool = False, gone: bool = False) -> lexicon.Noun:
        """A noun for a finding; doubt is not over an "opacity" alone, and none is ``gone`` that may leave another."""
        if finding.name == "foreign object":
            return self.pick(lexicon.FOREIGN_NOUNS[finding.kind])
        if finding.kind == "mass":
            return self.pick(lexicon.MASS_NOUNS)
        if finding.kind == "volume loss" and finding.severity != "mild" and self.chance(0.6):
            return self.pick(lexicon.COLLAPSE_NOUNS)
        if finding.kind == "plate-like" and self.chance(0.4):
            return lexicon.Noun(f"{self.pick(('plate-like', 'linear', 'discoid', 'bandlike'))} atelectasis")
        if finding.kind in ("interstitial", "alveolar") and self.chance(0.45):
            return lexicon.Noun(f"{finding.kind} {self.pick(('edema', 'pulmonary edema'))}")
        if finding.kind == "layering" and self.chance(0.4):
            return lexicon.Noun("layering pleural effusion", "layering pleural effusions", True)
        nouns: Sequence[lexicon.Noun] = lexicon.NOUNS[finding.name]
        if consistency.has_volume_loss(finding):
            nouns = [noun for noun in nouns if "subsegmental" not in noun.singular]
        if hedged and finding.name in templates.INTERPRETED:
            nouns = [noun for noun in nouns if noun.classes != ("Lung Opacity",)]
        if gone and finding.name != "covid-like opacities":
            nouns = [noun for noun in nouns if "Lung Opacity" not in (noun.classes or ())]
        return self.pick(nouns)

    def _place(self, finding: Finding, *, short: bool) -> tuple[str, str]:
        """Words of place before and after the noun; one of the two is empty."""
        side, zone = finding.side, finding.zone
        if finding.name == "edema" and self.chance(0.8):
            return "", ""
        if finding.name in ("pleural effusion", "edema"):
            zone = "perihilar" if finding.name == "edema" and zone == "perihilar" else ""
        if finding.name == "pneumothorax" and (finding.severity == "severe" or self.chance(0.4)):
            zone = ""
        fixed = zone in ("diffuse", "retrocardiac") or consistency.has_volume_loss(finding)
        if short and not fixed and self.chance(0.3):
            zone = ""
        bilateral = side == "bilateral"
        if self.chance(0.65):
            table = lexicon.BILATERAL_ADJECTIVES if bilateral else lexicon.ZONE_ADJECTIVES
            return str(self.pick(table[zone])).format(s=side), ""
        table = lexicon.BILATERAL_PLACES if bilateral else lexicon.ZONE_PLACES
        if not zone and not bilateral and finding.name in lexicon.IN_THE_LUNG:
            return "", f"in the {side} lung"
        if not zone and bilateral and finding.name in lexicon.IN_THE_LUNG:
            return "", str(self.pick(("in both lungs", "bilaterally")))
        return "", str(self.pick(table[zone])).format(s=side)

    def _foreign_place(self, finding: Finding) -> str:
        if finding.kind == "necklace":
            return str(self.pick(lexicon.NECKLACE_PLACES))
        return str(self.pick(lexicon.FOREIGN_PLACES[finding.zone])).format(s=finding.side)

    def _change(self, finding: Finding) -> str:
        if not self.compares or finding.name == "foreign object":
            return ""
        if self.previous is None:
            return "unchanged" if self.chance(0.3) else ""
        before = next((old for old in self.previous.findings if old.name == finding.name), None)
        if finding.name == "cardiomegaly":
            return "unchanged" if before == finding else ""
        if before is None:
            return "new"
        return _comparison(before, finding)

    def _tail(self, finding: Finding, phrase: str) -> str:
        """Words after ``phrase`` that fit the finding and the film, or ""."""
        if not self.chance(0.25 * self.reader.detail):
            return ""
        options = [
            tail.text
            for tail in templates.TAILS.get(finding.name, ())
            if finding.severity in tail.severities
            and tail.zone in ("", finding.zone)
            and not set(tail.unless) & set(phrase.split())
            and (finding.diameter or "{size}" not in tail.text)
            and fits(tail.needs, self.case)
        ]
        if not options:
            return ""
        text = str(self.pick(options)).format(size=_size_text(finding.diameter, decimals=1))
        if finding.side == "bilateral":
            text = text.replace("the costophrenic angle", "the costophrenic angles")
            text = text.replace("the hemidiaphragm", "both hemidiaphragms")
            text = text.replace("the hemithorax", "both hemithoraces")
            text = text.replace("the lateral chest wall", "the lateral chest walls")
        return text

    def _statement(self, index: int, *, impression: bool) -> _Sentence:
        """One sentence about one finding."""
        finding = self.case.findings[index]
        if finding.name == "cardiomegaly" and self.chance(0.25 if impression else 0.6):
            return self._heart_clause(index)
        severe = finding.severity == "severe"
        if index in self.uncertain and finding.name in templates.INTERPRETED and (severe or self.chance(0.45)):
            return self._interpretation(index, short=impression)
        words = self._words(index, short=impression)
        if index in self.uncertain:
            return _fill(str(self.pick(templates.UNCERTAIN)), words)
        change = self.change[index] if self.chance(0.7) else ""
        sized = finding.name in templates.SIZED
        worsened, improved = templates.VERBS[sized]
        verbs = {
            "since": str(self.pick(templates.SINCE)),
            "worsened": str(self.pick(worsened)),
            "improved": str(self.pick(improved)),
        }
        changed = {
            "new": templates.NEW,
            "unchanged": templates.UNCHANGED,
            "worse": templates.LARGER if sized else templates.WORSE,
            "better": templates.SMALLER if sized else templates.BETTER,
        }
        if change:
            return _fill(str(self.pick(changed[change])), words, **verbs)
        if impression:
            direct = finding.name in ("foreign object", "nodule") or "Lung Opacity" in words.mention.classes
            options = templates.IMPRESSION_PLAIN[:4] if direct else templates.IMPRESSION_PLAIN
        else:
            options = templates.TELEGRAPHIC if self.chance(self.reader.telegraphic) else templates.PLAIN
        if " " not in words.text:  # a sentence of one word would be dropped when reports are cleaned
            options = templates.PLAIN
        return _fill(str(self.pick(options)), words, t=self._tail(finding, words.text))

    def _interpretation(self, index: int, *, short: bool) -> _Sentence:
        """A certain opacity with an uncertain name: "a left basilar opacity, which may represent pneumonia"."""
        finding = self.case.findings[index]
        opacity = lexicon.Noun("opacity", "opacities", True, ("Lung Opacity",))
        text, number, classes = self._noun_phrase(finding, self.severity[index], short=short, noun=opacity)
        seen = _Words(text, number, _Mention(finding.name, index, False, False, classes))
        classes = lexicon.CLASSES_OF_FINDING[finding.name]
        guess = _Words(finding.name, "mass", _Mention(finding.name, index, False, True, classes))
        infection = finding.name != "atelectasis"
        options = templates.INTERPRETATIONS + (templates.CONCERNS if infection else ())
        return _fill(str(self.pick(options)), seen, guess)

    def _heart_clause(self, index: int) -> _Sentence:
        finding = self.case.findings[index]
        vague = index in self.uncertain and finding.severity != "mild"
        adverb = "" if vague else str(self.pick(lexicon.DEGREE_ADVERBS[finding.severity]))
        subject = str(self.pick(("heart", "cardiac silhouette", "heart")))
        verb = "may be" if index in self.uncertain else "is"
        if verb == "is" and self.change[index] == "unchanged":
            verb = str(self.pick(("remains", "is again", "is still")))
        words = " ".join(word for word in (subject, verb, adverb, "enlarged") if word)
        if self.chance(0.25) and verb in ("is", "may be"):
            words = " ".join(word for word in ("heart size", verb, adverb, "increased") if word)
            lead = ""
        else:
            lead = "The "
        mention = _Mention(finding.name, index, False, index in self.uncertain, ("Cardiomegaly",))
        return _fill(lead + "{p}.", _Words(words, "mass", mention))

    def _statements(self, indices: Sequence[int], *, impression: bool) -> list[_Sentence]:
        """Sentences for some findings; neighbours may share one."""
        sentences = []
        queue = list(indices)
        while queue:
            first = queue.pop(0)
            if queue and self._may_pair(first, queue[0]) and self.chance(self.reader.pairing):
                said = (first, queue.pop(0))
                sentences.append(self._paired(*said, impression=impression))
            else:
                said = (first,)
                sentences.append(self._statement(first, impression=impression))
            if impression or not self.has_impression:
                sentences += [guess for i in said if (guess := self._guess(i))]
        return sentences

    def _paired(self, first: int, second: int, *, impression: bool) -> _Sentence:
        options = templates.IMPRESSION_PAIRED if impression else templates.PAIRED
        one, other = self.case.findings[first], self.case.findings[second]
        near = one.side == other.side or "bilateral" in (one.side, other.side)
        if not near or {one.name, other.name} not in templates.ASSOCIATED:
            options = [text for text in options if "with " not in text]
        pair = (self._words(first, short=impression), self._words(second, short=impression))
        return _fill(str(self.pick(options)), *pair)

    def _may_pair(self, first: int, second: int) -> bool:
        names = (self.case.findings[first].name, self.case.findings[second].name)
        return "foreign object" not in names and not {first, second} & self.uncertain

    def _guess(self, index: int) -> _Sentence | None:
        """A hedged reading of an opacity: infection on top of something else, or a viral pattern."""
        finding = self.case.findings[index]
        if index == self.differential:
            text, template = self.pick(templates.DIFFERENTIALS)
        elif finding.name == "covid-like opacities" and self.chance(0.75):
            text, template = self.pick(templates.VIRAL if finding.side == "bilateral" else templates.VIRAL[:-1])
        else:
            return None
        return _fill(template, _Words(text, "mass", _Mention(finding.name, index, False, True, ("Pneumonia",))))

    def _deniable(self) -> list[str]:
        blocked = set(self.names)
        if self.differential is not None:
            blocked |= {"pneumonia", "consolidation"}
        return [name for name, by in templates.DENIAL_BLOCKED_BY.items() if not by & blocked and name not in blocked]

    def _denial(self, names: Sequence[str]) -> _Sentence:
        """One sentence that denies several things, with one phrase an item."""
        template = str(self.pick(templates.DENIAL_LISTS))
        sized = template.startswith(("No {", "There is no {"))
        items = [self._denied(name, sized=sized and i == 0) for i, name in enumerate(names)]
        head, tail = template.split("{list}")
        sentence: _Sentence = [head]
        comma = ", or " if self.chance(0.6) else " or "
        for i, item in enumerate(items):
            if i:
                last = i == len(items) - 1
                sentence.append(", " if not last else (" or " if len(items) == 2 else comma))
            sentence.append(item)
        sentence.append(tail)
        return sentence

    def _denied(self, name: str, *, sized: bool) -> _Words:
        options = lexicon.NEGATED_NAMES[name]
        if not sized:
            options = tuple(text for text in options if not text.startswith(lexicon.NEGATED_SIZE_WORDS))
        mention = _Mention(name, None, True, False, lexicon.CLASSES_OF_FINDING[name])
        return _Words(str(self.pick(options)), "mass", mention)

    def _one_sided_denial(self, indices: Sequence[int]) -> _Sentence | None:
        """A denial of the other side, for one of the findings that the reader just named."""
        for finding in (self.case.findings[i] for i in indices):
            if finding.name in ("pleural effusion", "pneumothorax") and finding.side in ("left", "right"):
                other = "right" if finding.side == "left" else "left"
                noun = str(self.pick((f"{other} {finding.name}", f"{other}-sided {finding.name}")))
                mention = _Mention(finding.name, None, True, False, lexicon.CLASSES_OF_FINDING[finding.name])
                template = str(self.pick(("No {p}.", "There is no {p}.", "No {p} is seen.")))
                return _fill(template, _Words(noun, "mass", mention))
        return None

    def _resolved(self) -> list[_Sentence]:
        if self.previous is None:
            return []
        sentences = []
        for old in self.previous.findings:
            blocked = templates.DENIAL_BLOCKED_BY.get(old.name, {old.name}) & self.names
            doubtful = self.differential is not None and old.name in ("pneumonia", "consolidation")
            hidden = old.name == "covid-like opacities" and self.names & set(lexicon.IN_THE_LUNG)
            if blocked or doubtful or hidden or old.name in ("foreign object", "cardiomegaly", "nodule"):
                continue
            if self.chance(0.5):
                severity = self._severity_word(old, change="better")
                text, number, classes = self._noun_phrase(old, severity, short=True, noun=self._noun(old, gone=True))
                mention = _Mention(old.name, None, True, False, classes)
                options = templates.CLEARED if old.name in lexicon.IN_THE_LUNG else templates.RESOLVED
                sentences.append(_fill(str(self.pick(options)), _Words(text, number, mention)))
        return sentences

    def _findings_section(self) -> list[_Sentence]:
        by_topic: dict[str, list[int]] = {}
        for i in sorted(self.in_findings, key=lambda i: self.rng.random()):
            by_topic.setdefault(templates.TOPIC[self.case.findings[i].name], []).append(i)
        deny = self._deniable()
        self.rng.shuffle(deny)
        topics = {
            "devices": self._devices_topic(by_topic.get("devices", [])),
            "lungs": self._lungs_topic(by_topic.get("lungs", []), deny),
            "pleura": self._pleura_topic(by_topic.get("pleura", []), deny),
            "heart": self._heart_topic(by_topic.get("heart", []), deny),
            "bones": self._bones_topic(),
        }
        order = list(self.reader.order)
        if self.chance(0.3):
            i = int(self.rng.integers(len(order) - 1))
            order[i], order[i + 1] = order[i + 1], order[i]
        sentences = [sentence for topic in order for sentence in topics[topic]]
        if self.compares and self.chance(0.25):
            alike = self.previous is None or consistency.same_technique(self.case, self.previous)
            sentences.insert(0, [str(self.pick(templates.LEADS[alike]))])
        return sentences

    def _lungs_topic(self, indices: Sequence[int], deny: list[str]) -> list[_Sentence]:
        sentences = []
        clear = self._fits("clear")
        inflated = self.chance(0.45 if self.case.inspiration == "normal" else 0.75)
        volumes = fitting(lexicon.INSPIRATION_SENTENCES[self.case.inspiration], self.case)
        if volumes and inflated and not (clear and self.case.inspiration == "normal"):
            sentences.append([str(self.pick(volumes))])
        sentences += self._statements(indices, impression=False)
        resolved = self._resolved()
        sentences += resolved
        if clear and not resolved and self.chance(0.6):
            sentences.append([self.pick_text(lexicon.LUNGS_CLEAR)])
        for sentence in resolved:
            for part in sentence:
                if isinstance(part, _Words) and part.mention.name in deny:
                    deny.remove(part.mention.name)
        listed = [n for n in ("consolidation", "pleural effusion", "pneumothorax", "edema") if n in deny]
        if listed and self.chance(0.45 + 0.4 * self.reader.detail):
            if len(listed) > 3 or (len(listed) > 1 and self.chance(0.2)):
                listed.pop(int(self.rng.integers(len(listed))))
            self.rng.shuffle(listed)
            for name in listed:
                deny.remove(name)
            sentences.append(self._denial(listed))
        if "nodule" in deny and self.chance(0.15 * self.reader.detail):
            sentences.append(self._denial(["nodule"]))
        return sentences

    def _pleura_topic(self, indices: Sequence[int], deny: list[str]) -> list[_Sentence]:
        sentences = self._statements(indices, impression=False)
        sentences += self._incidental("pleural thickening", lexicon.THICKENING_SENTENCES)
        if indices and self.chance(0.15):
            one_sided = self._one_sided_denial(indices)
            if one_sided:
                sentences.append(one_sided)
        left = [name for name in ("pleural effusion", "pneumothorax") if name in deny]
        if left and self.chance(0.3 + 0.5 * self.reader.detail):
            for name in left:
                deny.remove(name)
            sentences.append(self._denial(left))
        return sentences

    def _heart_topic(self, indices: Sequence[int], deny: list[str]) -> list[_Sentence]:
        sentences = self._statements(indices, impression=False)
        outlined = self._fits("heart border")
        wide = outlined and self._fits("mediastinum") and self.chance(0.4)
        if "cardiomegaly" in deny and self.chance(0.92):
            sentences.append(self._heart_normal(wide=wide) if outlined else [self.pick_text(lexicon.HEART_HIDDEN)])
        if self.chance(0.85 * self.reader.detail):
            usable = self._outlines(wide=wide)
            if usable:
                sentences.append([str(self.pick(usable))])
        if "edema" in deny and self.chance(0.25):
            deny.remove("edema")
            sentences.append(self._denial(["edema"]))
        for name in ("tortuous aorta", "aortic calcification"):
            if name in self.case.incidentals and self.chance(0.6):
                sentences.append([str(self.pick(lexicon.INCIDENTAL_SENTENCES[name]))])
        return sentences

    def _fits(self, condition: str) -> bool:
        return fits((condition,), self.case)

    def _heart_normal(self, *, wide: bool) -> _Sentence:
        """A denial of cardiomegaly and, if ``wide``, of a wide mediastinum."""
        table = lexicon.HEART_NORMAL_PHRASES
        if wide:
            table = lexicon.MEDIASTINUM_NORMAL_PHRASES
            table += lexicon.MEDIASTINUM_UNREMARKABLE_PHRASES if self._fits("no calcified aorta") else ()
        text, template = self.pick(table)
        classes = ("Cardiomegaly", "Enlarged Cardiomediastinum") if wide else ("Cardiomegaly",)
        return _fill(template, _Words(text, "mass", _Mention("cardiomegaly", None, True, False, classes)))

    def _outlines(self, *, wide: bool) -> list[str]:
        """Sentences about hila, mediastinum and trachea that fit; none that repeats a ``wide`` denial."""
        alike = self.compares and (self.previous is None or consistency.same_outline(self.case, self.previous))
        return [
            text
            for text in fitting(lexicon.HILA_NORMAL, self.case)
            if not (wide and "ediastin" in text) and (alike or not _NEEDS_PRIOR.search(text))
        ]

    def _bones_topic(self) -> list[_Sentence]:
        fractured = any(name.endswith("rib fracture") for name in self.case.incidentals)
        sentences = self._incidental("rib fracture", lexicon.FRACTURE_SENTENCES)
        spine = [name for name in ("scoliosis", "degenerative spine") if name in self.case.incidentals]
        for name in spine:
            if self.chance(0.6):
                sentences.append([str(self.pick(lexicon.INCIDENTAL_SENTENCES[name]))])
        if self.chance((0.3 if spine or fractured else 0.9) * self.reader.detail):
            if not fractured and self.chance(0.2):
                template = str(self.pick(lexicon.FRACTURE_NEGATED))
                text = str(self.pick(("rib fracture", "fracture")))
                mention = _Mention("fracture", None, True, False, ("Fracture",))
                sentences.append(_fill(template, _Words(text, "mass", mention)))
            else:
                sentences.append([self.pick_text(lexicon.BONES_NORMAL)])
        below = fitting(lexicon.ABDOMEN_NORMAL, self.case)
        if below and self.chance(0.6 * self.reader.detail):
            sentences.append([str(self.pick(below))])
        return sentences

    def _incidental(self, kind: str, options: Sequence[str]) -> list[_Sentence]:
        """A sentence about an old fracture or thickened pleura; readers pass over some."""
        names = [name for name in self.case.incidentals if name.endswith(kind)]
        if not names or not self.chance(0.85):
            return []
        self.incidental_classes.add(lexicon.INCIDENTAL_CLASSES[kind])
        words = names[0].removesuffix(" fracture")
        text = str(self.pick(options)).format(p=words)
        return [[text[0].upper() + text[1:]]]

    def _devices_topic(self, foreign: Sequence[int]) -> list[_Sentence]:
        sentences: list[_Sentence] = []
        for name in self.case.devices:
            if self.chance(0.4 if name in ("ecg leads", "sternal wires") else 0.9):
                self.named_devices.add(name)
                sentences.append([str(self.pick(self._device_sentences(name))).format(cm=self._tube_height())])
        for name in self._devices_gone():
            if self.chance(0.5):
                sentences.append([str(self.pick(lexicon.DEVICE_GONE[name]))])
        return sentences + self._statements(foreign, impression=False)

    def _device_sentences(self, name: str) -> Sequence[str]:
        """What may be said of a device, given the earlier film if there is one."""
        plain = fitting(lexicon.DEVICE_SENTENCES[name], self.case)
        if name == "endotracheal tube" and self.chance(0.5):
            plain = [text for text in plain if re.search(r"\b(?:low|high)\b", text, re.IGNORECASE)] or plain
        if self.previous is None:
            kept = lexicon.DEVICE_KEPT.get(name, ()) if self.compares else ()
            return kept if kept and self.chance(0.2) else plain
        if name not in self.previous.devices:
            return lexicon.DEVICE_NEW[name] if name in lexicon.DEVICE_NEW and self.chance(0.5) else plain
        kept = lexicon.DEVICE_KEPT.get(name, ())
        if name == "endotracheal tube":
            moved = consistency.tube_rise(self.case, self.previous)
            if abs(moved) >= 1.0:
                kept = lexicon.TUBE_MOVED["higher" if moved > 0 else "lower"]
            elif abs(moved) > 0.3:
                kept = ()
        return kept if kept and self.chance(0.35) else plain

    def _devices_gone(self) -> list[str]:
        before = self.previous.devices if self.previous else ()
        return [name for name in before if name not in self.case.devices and name in lexicon.DEVICE_GONE]

    def _tube_height(self) -> str:
        return f"{self.case.tube_height:.{int(self.chance(0.4))}f}"

    def _impression_section(self) -> list[_Sentence]:
        sentences = []
        if not self.in_impression:
            return self._impression_without_findings()
        order = sorted(
            self.in_impression,
            key=lambda i: (-_SEVERITY_RANK[self.case.findings[i].severity], self.rng.random()),
        )
        sentences += self._statements(order, impression=True)
        deny = [name for name in self._deniable() if name in ("pneumothorax", "pleural effusion", "pneumonia")]
        if self.chance(0.12) and not self.has_findings:
            deny = [name for name in self._deniable() if name in ("edema", "consolidation")] or deny
        if deny and self.chance(0.35 if self.has_findings else 0.8):
            self.rng.shuffle(deny)
            sentences.append(self._denial(deny[: 1 + int(self.chance(0.4))]))
        if not self.has_findings:
            sentences = self._device_summary() + sentences
        follow_up = self._follow_up(order)
        if follow_up and self.chance(0.35):
            sentences.append([follow_up])
        return sentences

    def _follow_up(self, order: Sequence[int]) -> str:
        names = [self.case.findings[i].name for i in order]
        key = next((name for name in names if name in templates.FOLLOW_UPS), "")
        return self.pick_text(templates.FOLLOW_UPS[key])

    def _impression_without_findings(self) -> list[_Sentence]:
        sentences: list[_Sentence] = self._device_summary()
        deny = [name for name in ("pneumonia", "pneumothorax", "edema", "pleural effusion") if name in self._deniable()]
        if deny and self.chance(0.4):
            self.rng.shuffle(deny)
            sentences.append(self._denial(deny[: 1 + int(self.chance(0.35))]))
        if not sentences or self.chance(0.9):
            sentences.append([self.pick_text(templates.IMPRESSION_NORMAL)])
        if self._nothing_changed() and self.chance(0.3):
            sentences.append([str(self.pick(templates.NO_CHANGE))])
        if not self.has_findings:
            sentences += self._heart_topic([], self._deniable())[:2]
        return sentences

    def _nothing_changed(self) -> bool:
        before = self.previous
        if before is None or before.findings or self.case.findings:
            return False
        if "endotracheal tube" in self.case.devices and abs(consistency.tube_rise(self.case, before)) >= 1.0:
            return False
        return before.devices == self.case.devices and before.inspiration == self.case.inspiration

    def _device_summary(self) -> list[_Sentence]:
        named = [name for name in self.case.devices if name in lexicon.DEVICE_NAMES_SHORT]
        if not named or not self.chance(0.4):
            return []
        device = str(self.pick(named))
        self.named_devices.add(device)
        name = str(self.pick(lexicon.DEVICE_NAMES_SHORT[device]))
        if device == "endotracheal tube" and not (self._fits("tube standard") and self.chance(0.5)):
            return [[f"{name} tip {self._tube_height()} cm above the carina."]]
        endings = ("in standard position.", "in appropriate position.", "in satisfactory position.")
        return [[f"{name} {self.pick(endings)}"]]

    def report(self) -> PhantomReport:
        impression, in_impression = "", []
        findings, in_findings = "", []
        if self.has_impression:
            sentences = self._impression_section()
            numbered = len(sentences) > 1 and self.chance(self.reader.numbered)
            impression, in_impression = _assemble("impression", sentences, numbered=numbered)
        if self.has_findings:
            findings, in_findings = _assemble("findings", self._findings_section(), numbered=False)
        text = self._whole_text(findings, impression)
        return PhantomReport(
            text,
            findings,
            impression,
            tuple(in_impression + in_findings),
            tuple(sorted(self.incidental_classes)),
            tuple(name for name in DEVICES if name in self.named_devices),
        )

    def _whole_text(self, findings: str, impression: str) -> str:
        comparisons = ("___", "Chest radiograph ___.", "Comparison is made to ___.", "Prior chest radiograph from ___.")
        sections = [
            ("EXAMINATION", self.pick_text(lexicon.TITLES)),
            (self.reader.history_header, self._indication()),
        ]
        if self.chance(0.75):
            sections.append(("TECHNIQUE", self.pick_text(lexicon.TECHNIQUES)))
        sections.append(("COMPARISON", str(self.pick(comparisons if self.compares else ("None.", "None available.")))))
        sections += [(name, text) for name, text in (("FINDINGS", findings), ("IMPRESSION", impression)) if text]
        lines = [" " * 33 + "FINAL REPORT"]
        for name, text in sections:
            alone = self.reader.blank_line and name in ("FINDINGS", "IMPRESSION")
            body = text if alone else f"{name}:  {text}"
            if alone:
                lines += [f" {name}: ", " "]
            wrapped = textwrap.wrap(body, 78, break_on_hyphens=False, break_long_words=False)
            lines += [f" {line}" for line in wrapped] + [" "]
        return "\n".join(lines).rstrip() + "\n"

    def _indication(self) -> str:
        openings = ["___{sex}", "___ year old {word}", "___-year-old {word}"]
        if self.reader.history_header != "HISTORY":
            openings.append("History: ___{sex}")
        person = str(self.pick(openings)).format(sex=self.case.sex, word="woman" if self.case.sex == "F" else "man")
        text = f"{person} with {self.pick(lexicon.COMPLAINTS)}"
        if self.chance(0.4):
            text = f"{person} with {self.pick(lexicon.HISTORIES)} and {self.pick(lexicon.COMPLAINTS)}"
        return f"{text}  // {self.pick_text(lexicon.QUESTIONS)}" if self.chance(0.7) else f"{text}."
