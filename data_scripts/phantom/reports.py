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

from data_scripts.phantom import lexicon, templates
from data_scripts.phantom.cases import Case, Finding

_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{(\w+)\}")
_SEVERITY_RANK = {"mild": 1, "moderate": 2, "severe": 3}
_NEEDS_PRIOR = re.compile(r"\b(?:again|unchanged|stable)\b", re.IGNORECASE)


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
    """

    text: str
    findings: str
    impression: str
    phrases: tuple[Phrase, ...]
    incidental_classes: tuple[str, ...] = ()


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
    unmentioned; what is said of the lungs' inflation may not fit it (``LIMITS.md``).

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
    vowel = words.text[0].lower() in "aeiou" or words.text.startswith(("8 ", "18 "))
    return "an " if vowel and not words.text.lower().startswith("uni") else "a "


def _fill(template: str, first: _Words, second: _Words | None = None, **extra: str) -> _Sentence:
    """Put noun phrases into a sentence; verbs and articles agree with the first."""
    many = first.number == "many"
    strings = {
        "a": _article(first),
        "b": _article(second) if second else "",
        "is": "are" if many else "is",
        "has": "have" if many else "has",
        "was": "were" if many else "was",
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
        self.severity = [self._severity_word(finding) for finding in case.findings]
        self.change = [self._change(finding) for finding in case.findings]
        self.uncertain = {i for i, finding in enumerate(case.findings) if self.chance(self._doubt(finding))}
        self.differential = self._decide_differential()

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence) -> object:
        return _pick(self.rng, options)

    def pick_text(self, options: Sequence[str]) -> str:
        """A sentence without words of comparison, unless there is something to compare with."""
        usable = options if self.compares else [text for text in options if not _NEEDS_PRIOR.search(text)]
        return str(self.pick(usable))

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
        base = {"pneumonia": 0.32, "consolidation": 0.18, "atelectasis": 0.12, "edema": 0.12}.get(finding.name, 0.08)
        if finding.name == "foreign object":
            return 0.0
        return base * self.reader.hedging * {"mild": 1.5, "moderate": 1.0, "severe": 0.4}[finding.severity]

    def _decide_differential(self) -> int | None:
        """Index of an opacity that the reader takes for possible pneumonia."""
        if "pneumonia" in self.names or "covid-like opacities" in self.names or not self.chance(0.22):
            return None
        spoken = self.in_impression if self.has_impression else self.in_findings
        targets = [i for i in sorted(spoken) if self.case.findings[i].name in templates.DIFFERENTIAL_TARGETS]
        return int(self.pick(targets)) if targets else None

    def _words(self, index: int, *, short: bool = False, certain: bool = False) -> _Words:
        """A noun phrase for finding ``index``; ``short`` drops details, as impressions do."""
        finding = self.case.findings[index]
        uncertain = index in self.uncertain and not certain
        text, number, classes = self._noun_phrase(finding, self.severity[index], short=short)
        return _Words(text, number, _Mention(finding.name, index, False, uncertain, classes))

    def _severity_word(self, finding: Finding) -> str:
        options = lexicon.SEVERITY_WORDS[finding.name][finding.severity]
        if finding.zone == "diffuse":
            options = [word for word in options if word not in ("large", "rounded", "patchy")]
        return str(self.pick(options))

    def _noun_phrase(
        self, finding: Finding, severity: str, *, short: bool, noun: lexicon.Noun | None = None
    ) -> tuple[str, str, tuple[str, ...]]:
        noun = noun or self._noun(finding, hedged=finding in self._hedged())
        classes = lexicon.CLASSES_OF_FINDING[finding.name] if noun.classes is None else noun.classes
        plural = bool(noun.plural) and (not noun.singular or finding.side == "bilateral" or finding.zone == "diffuse")
        head = noun.plural if plural else noun.singular
        number = "many" if plural else "one" if noun.countable else "mass"
        if self.chance(0.12) or set(severity.split()) & set(head.split()):
            severity = ""
        if finding.name in ("foreign object", "cardiomegaly"):
            before, after = "", self._foreign_place(finding) if finding.name == "foreign object" else ""
        else:
            before, after = self._place(finding, short=short)
        if severity == "patchy" and noun in lexicon.COLLAPSE_NOUNS:
            severity = ""
        if head.startswith(("lung ", "pulmonary ")) and ("lung" in before + after or "lobe" in before + after):
            head = head.split(" ", 1)[1]
        return " ".join(part for part in (severity, before, head, after) if part), number, classes

    def _hedged(self) -> list[Finding]:
        return [self.case.findings[i] for i in self.uncertain]

    def _noun(self, finding: Finding, *, hedged: bool) -> lexicon.Noun:
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
        nouns = lexicon.NOUNS[finding.name]
        if hedged and finding.name in templates.INTERPRETED:
            nouns = [noun for noun in nouns if noun.classes != ("Lung Opacity",)]
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
        if short and zone not in ("diffuse", "retrocardiac") and self.chance(0.3):
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
        if before.side != finding.side:
            return ""
        step = _SEVERITY_RANK[finding.severity] - _SEVERITY_RANK[before.severity]
        return "worse" if step > 0 else "better" if step < 0 else "unchanged"

    def _tail(self, finding: Finding) -> str:
        options = templates.TAILS.get(finding.name, ())
        if not options or not self.chance(0.25 * self.reader.detail):
            return ""
        if finding.name == "pneumothorax" and finding.severity == "severe":
            return ""
        tail = str(self.pick(options))
        if finding.side == "bilateral":
            tail = tail.replace("the costophrenic angle", "the costophrenic angles")
            tail = tail.replace("the hemidiaphragm", "both hemidiaphragms")
            tail = tail.replace("the lateral chest wall", "the lateral chest walls")
        return tail

    def _statement(self, index: int, *, impression: bool) -> _Sentence:
        """One sentence about one finding."""
        finding = self.case.findings[index]
        if finding.name == "cardiomegaly" and self.chance(0.25 if impression else 0.6):
            return self._heart_clause(index)
        if index in self.uncertain and finding.name in templates.INTERPRETED and self.chance(0.45):
            return self._interpretation(index, short=impression)
        words = self._words(index, short=impression)
        if index in self.uncertain:
            return _fill(str(self.pick(templates.UNCERTAIN)), words)
        change = self.change[index] if self.chance(0.7) else ""
        worsened, improved = templates.VERBS[finding.name in templates.SIZED]
        verbs = {
            "since": str(self.pick(templates.SINCE)),
            "worsened": str(self.pick(worsened)),
            "improved": str(self.pick(improved)),
        }
        changed = {
            "new": templates.NEW,
            "unchanged": templates.UNCHANGED,
            "worse": templates.WORSE,
            "better": templates.BETTER,
        }
        if change:
            return _fill(str(self.pick(changed[change])), words, **verbs)
        if impression:
            direct = finding.name in ("foreign object", "nodule") or words.mention.classes == ("Lung Opacity",)
            options = templates.IMPRESSION_PLAIN[:4] if direct else templates.IMPRESSION_PLAIN
        else:
            options = templates.TELEGRAPHIC if self.chance(self.reader.telegraphic) else templates.PLAIN
        if " " not in words.text:  # a sentence of one word would be dropped when reports are cleaned
            options = templates.PLAIN
        return _fill(str(self.pick(options)), words, t=self._tail(finding))

    def _interpretation(self, index: int, *, short: bool) -> _Sentence:
        """A certain opacity with an uncertain name: "a left basilar opacity, which may represent pneumonia"."""
        finding = self.case.findings[index]
        opacity = lexicon.Noun("opacity", "opacities", True, ("Lung Opacity",))
        text, number, classes = self._noun_phrase(finding, self.severity[index], short=short, noun=opacity)
        seen = _Words(text, number, _Mention(finding.name, index, False, False, classes))
        classes = lexicon.CLASSES_OF_FINDING[finding.name]
        guess = _Words(finding.name, "mass", _Mention(finding.name, index, False, True, classes))
        return _fill(str(self.pick(templates.INTERPRETATIONS)), seen, guess)

    def _heart_clause(self, index: int) -> _Sentence:
        finding = self.case.findings[index]
        adverb = str(self.pick(lexicon.DEGREE_ADVERBS[finding.severity]))
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
        if {self.case.findings[i].name for i in (first, second)} & {"cardiomegaly", "nodule"}:
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
            options = [d for d in templates.DIFFERENTIALS if finding.name not in d[1]]
            text, template = self.pick(options)
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

    def _one_sided_denial(self) -> _Sentence | None:
        for finding in self.case.findings:
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
            if blocked or doubtful or old.name in ("foreign object", "cardiomegaly", "nodule"):
                continue
            if self.chance(0.5):
                text, number, classes = self._noun_phrase(old, self._severity_word(old), short=True)
                mention = _Mention(old.name, None, True, False, classes)
                sentences.append(_fill(str(self.pick(templates.RESOLVED)), _Words(text, number, mention)))
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
            lead = (
                "Comparison is made to the prior study from ___.",
                "Compared to the previous radiograph of ___, patient positioning is similar.",
                "In comparison with the study of ___, the technique is similar.",
            )
            sentences.insert(0, [str(self.pick(lead))])
        return sentences

    def _lungs_topic(self, indices: Sequence[int], deny: list[str]) -> list[_Sentence]:
        sentences = []
        clear = all(
            finding.name in ("cardiomegaly", "foreign object")
            or (finding.name in ("pleural effusion", "pneumothorax") and finding.severity == "mild")
            for finding in self.case.findings
        )
        inflated = self.chance(0.45 if self.case.inspiration == "normal" else 0.75)
        if inflated and not (clear and self.case.inspiration == "normal"):
            sentences.append([str(self.pick(lexicon.INSPIRATION_SENTENCES[self.case.inspiration]))])
        sentences += self._statements(indices, impression=False)
        resolved = self._resolved()
        sentences += resolved
        if clear and not resolved and self.chance(0.6):
            normal = self.case.inspiration == "normal"
            sentences.append([str(self.pick(lexicon.LUNGS_CLEAR if normal else lexicon.LUNGS_CLEAR_NOT_INFLATED))])
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
            one_sided = self._one_sided_denial()
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
        wide = self.chance(0.4)
        if "cardiomegaly" in deny and self.chance(0.92):
            table = lexicon.MEDIASTINUM_NORMAL_PHRASES if wide else lexicon.HEART_NORMAL_PHRASES
            text, template = self.pick(table)
            classes = ("Cardiomegaly", "Enlarged Cardiomediastinum") if wide else ("Cardiomegaly",)
            sentences.append(
                _fill(template, _Words(text, "mass", _Mention("cardiomegaly", None, True, False, classes)))
            )
        if self.chance(0.85 * self.reader.detail):
            said = ("aortic",) if self.case.incidentals else ()
            said += ("ediastinal",) if wide else ()
            usable = [text for text in lexicon.HILA_NORMAL if not any(word in text for word in said)]
            sentences.append([self.pick_text(usable)])
        if "edema" in deny and self.chance(0.25):
            deny.remove("edema")
            sentences.append(self._denial(["edema"]))
        for name in ("tortuous aorta", "aortic calcification"):
            if name in self.case.incidentals and self.chance(0.6):
                sentences.append([str(self.pick(lexicon.INCIDENTAL_SENTENCES[name]))])
        return sentences

    def _bones_topic(self) -> list[_Sentence]:
        fractured = any(name.endswith("rib fracture") for name in self.case.incidentals)
        sentences = self._incidental("rib fracture", lexicon.FRACTURE_SENTENCES)
        spine = [name for name in ("scoliosis", "degenerative spine") if name in self.case.incidentals]
        for name in spine:
            if self.chance(0.6):
                sentences.append([str(self.pick(lexicon.INCIDENTAL_SENTENCES[name]))])
        if not spine and not fractured and self.chance(0.9 * self.reader.detail):
            if self.chance(0.2):
                template = str(self.pick(lexicon.FRACTURE_NEGATED))
                text = str(self.pick(("rib fracture", "fracture")))
                mention = _Mention("fracture", None, True, False, ("Fracture",))
                sentences.append(_fill(template, _Words(text, "mass", mention)))
            else:
                sentences.append([str(self.pick(lexicon.BONES_NORMAL))])
        if self.chance(0.6 * self.reader.detail):
            sentences.append([str(self.pick(lexicon.ABDOMEN_NORMAL))])
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
        sentences = []
        for name in self.case.devices:
            if self.chance(0.4 if name in ("ecg leads", "sternal wires") else 0.9):
                sentences.append([self.pick_text(lexicon.DEVICE_SENTENCES[name]).format(cm=self._tube_height())])
        return sentences + self._statements(foreign, impression=False)

    def _tube_height(self) -> str:
        whole = int(self.rng.integers(2, 7))
        return f"{whole}.{int(self.rng.integers(1, 10))}" if self.chance(0.4) else str(whole)

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
        return str(self.pick(templates.FOLLOW_UPS[key]))

    def _impression_without_findings(self) -> list[_Sentence]:
        sentences: list[_Sentence] = self._device_summary()
        deny = [name for name in ("pneumonia", "pneumothorax", "edema", "pleural effusion") if name in self._deniable()]
        if deny and self.chance(0.4):
            self.rng.shuffle(deny)
            sentences.append(self._denial(deny[: 1 + int(self.chance(0.35))]))
        if not sentences or self.chance(0.9):
            kinds = tuple(lexicon.INCIDENTAL_CLASSES)
            marked = self.case.devices or any(name.endswith(kinds) for name in self.case.incidentals)
            normal = [t for t in templates.IMPRESSION_NORMAL if not (marked and t.startswith(("Normal", "Unrem")))]
            sentences.append([str(self.pick(normal))])
        if self.previous is not None and not self.previous.findings and self.chance(0.3):
            sentences.append(
                [str(self.pick(("No significant interval change.", "No relevant change from the prior study.")))]
            )
        if not self.has_findings:
            sentences += self._heart_topic([], self._deniable())[:2]
        return sentences

    def _device_summary(self) -> list[_Sentence]:
        named = [name for name in self.case.devices if name in lexicon.DEVICE_NAMES_SHORT]
        if not named or not self.chance(0.4):
            return []
        name = str(self.pick(lexicon.DEVICE_NAMES_SHORT[str(self.pick(named))]))
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
        )

    def _whole_text(self, findings: str, impression: str) -> str:
        bedside = self.case.view == "AP"
        titles = (
            ("CHEST (PORTABLE AP)", "PORTABLE CHEST RADIOGRAPH") if bedside else ("CHEST (PA AND LAT)", "CHEST (PA)")
        )
        techniques = (
            ("Portable AP chest", "Single portable view of the chest", "Chest AP", "Semi-upright AP view")
            if bedside
            else ("Chest PA and lateral", "Frontal view of the chest", "PA view of the chest")
        )
        comparisons = ("___", "Chest radiograph ___.", "Comparison is made to ___.", "Prior chest radiograph from ___.")
        sections = [
            ("EXAMINATION", str(self.pick(titles))),
            (self.reader.history_header, self._indication()),
        ]
        if self.chance(0.75):
            sections.append(("TECHNIQUE", str(self.pick(techniques))))
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
        return f"{text}  // {self.pick(lexicon.QUESTIONS)}" if self.chance(0.7) else f"{text}."
