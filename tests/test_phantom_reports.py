"""The phantom reports: exact spans, words that never contradict the film, readable English, and labels."""

import math
import re
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from data_scripts.phantom.cases import DEVICES, FINDINGS, Case, Finding, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.labels import chexpert_labels, expert_labels
from data_scripts.phantom.lexicon import CHEXPERT_CLASSES
from data_scripts.phantom.reports import PhantomReport, Phrase, write_report

# Words of which a phrase must hold one, written down apart from the generator's own tables.
KEYWORDS = {
    "atelectasis": ("atelect", "collapse", "volume loss", "opacit", "pneumonia", "infection"),
    "cardiomegaly": ("cardiomegaly", "enlarge", "heart", "cardi"),
    "consolidation": ("consolidati", "opacit", "pneumonia", "infection"),
    "edema": ("edema",),
    "pleural effusion": ("effusion", "pleural fluid"),
    "pneumothorax": ("pneumothora",),
    "pneumonia": ("pneumoni", "opacit"),
    "nodule": ("nodul", "mass"),
    "covid-like opacities": ("opacit", "pneumonia", "infection"),
    "foreign object": (
        "metallic",
        "coin",
        "button",
        "necklace",
        "chain",
        "pin",
        "clip",
        "earring",
        "key",
    ),
    "fracture": ("fracture",),
}
ZONE_WORDS = {
    "upper": ("upper",),
    "middle": ("mid",),
    "lower": ("lower", "base", "basilar", "basal", "bibas"),
    "apical": ("apical", "apex", "apices", "supraclavicular", "neck"),
    "basal": ("basilar", "basal", "base", "bases", "bibas", "lower"),
    "perihilar": ("perihilar",),
    "peripheral": ("peripher",),
    "retrocardiac": ("retrocardiac", "behind the heart"),
    "diffuse": ("diffuse", "throughout"),
    "": (),
}
IN_THE_LUNG = {"atelectasis", "consolidation", "edema", "pneumonia", "nodule", "covid-like opacities"}


def dictate(seed: int, *, previous: bool = False) -> tuple[Case, Case | None, PhantomReport]:
    rng = np.random.default_rng([7, seed])
    before = sample_case(rng, HOSPITALS["mimic_cxr"]) if previous else None
    case = sample_case(rng, HOSPITALS["mimic_cxr"])
    return case, before, write_report(case, rng, previous=before)


@pytest.fixture(scope="module")
def dictated() -> list[tuple[Case, Case | None, PhantomReport]]:
    return [dictate(seed, previous=seed % 3 == 0) for seed in range(600)]


@pytest.fixture(scope="module")
def phrases(dictated) -> list[tuple[Case, PhantomReport, Phrase]]:
    return [(case, report, phrase) for case, _, report in dictated for phrase in report.phrases]


def test_span_holds_exactly_the_words_of_the_phrase(phrases):
    for _, report, phrase in phrases:
        section = {"findings": report.findings, "impression": report.impression}[phrase.section]
        starts = []  # slow oracle: walk over the characters and note where a word begins
        inside = False
        for position, character in enumerate(section):
            word = character.isalnum() or character == "_"
            if word and not inside:
                starts.append(position)
            inside = word
        begin = starts[phrase.first_word]
        assert section[begin : begin + len(phrase.phrase)] == phrase.phrase
        assert sum(begin <= start < begin + len(phrase.phrase) for start in starts) == (
            phrase.last_word - phrase.first_word + 1
        )


def test_phrases_are_complete_words_of_their_finding(phrases):
    for _, _, phrase in phrases:
        assert any(word in phrase.phrase.lower() for word in KEYWORDS[phrase.name]), phrase
        assert "." not in phrase.phrase
        assert ":" not in phrase.phrase


def test_side_and_zone_words_agree_with_the_finding(phrases):
    sided = 0
    for case, _, phrase in phrases:
        if phrase.finding is None:
            continue
        finding = case.findings[phrase.finding]
        words = set(re.findall(r"\w+", phrase.phrase.lower()))
        for side, other in (("left", "right"), ("right", "left")):
            if side in words:
                sided += 1
                assert finding.side == side, phrase
                assert other not in words
        if {"bilateral", "bilaterally", "both", "bibasilar", "bibasal"} & words:
            assert finding.side == "bilateral", phrase
        for zone, names in ZONE_WORDS.items():
            if zone in ("upper", "perihilar", "peripheral", "retrocardiac") and finding.name != "foreign object":
                named = any(name in phrase.phrase.lower() for name in names)
                assert not named or finding.zone == zone, phrase
    assert sided > 100


def test_a_negated_phrase_points_at_nothing_and_every_other_phrase_at_its_finding(phrases):
    assert sum(phrase.negated for _, _, phrase in phrases) > 500
    for case, _, phrase in phrases:
        if phrase.negated:
            assert phrase.finding is None
            assert not phrase.uncertain
        else:
            assert case.findings[phrase.finding].name == phrase.name


def test_what_is_on_the_film_is_never_denied(phrases):
    for case, _, phrase in phrases:
        if phrase.negated:
            present = {finding.name: finding.side for finding in case.findings}
            other = {"left": "right", "right": "left"}.get(present.get(phrase.name, ""), "nothing")
            assert phrase.name not in present or phrase.phrase.startswith(other), (case, phrase)
            if phrase.name in ("pneumonia", "consolidation"):
                assert not {"pneumonia", "consolidation", "covid-like opacities"} & set(present)


def test_the_lungs_are_clear_only_when_they_are(dictated):
    clear = 0
    for case, _, report in dictated:
        if re.search(r"lungs[\w ]* clear|No focal lung abnormality", report.findings):
            clear += 1
            assert not IN_THE_LUNG & {finding.name for finding in case.findings}
    assert clear > 50


def test_a_normal_impression_needs_a_film_without_findings(dictated):
    normal = [
        case for case, _, r in dictated if re.search(r"No acute (cardio|intra)|Normal chest|Unremark", r.impression)
    ]
    assert len(normal) > 30
    assert all(not case.findings for case in normal)


@pytest.mark.parametrize(
    "slip",
    [
        r"\ba [aeio]",
        r"\ban [bcdfghjklmnpqrstvwxyz]",
        r"\b(\w+) \1\b",
        r"\s[,.]",
        r"\.\.|,\.|  |[{}]",
        r"(?<!\d)\. [a-z]",
        r"\b(?:is|has|was) (?:\w+ )*(?:opacities|effusions|nodules|changes) (?:noted|seen|present)",
        r"\b(?:a|an) (?:(?!and )[\w-]+ )*?(?:effusions|opacities|consolidations|pneumothoraces|changes)\b",
        r"(?:opacities|effusions|changes|consolidations) (?:is|has|was)\b",
        r"(?:edema|atelectasis|cardiomegaly|effusion|nodule|mass) (?:are|have|were)\b",
        r"\bThere are (?:a|an) ",
        r"\bThe (?:a|an) ",
        r"\b[Ff]ocal (?:bilateral|diffuse)",
    ],
)
def test_english_slips(dictated, slip):
    for _, _, report in dictated:
        for text in (report.findings, report.impression):
            for match in re.finditer(slip, text):
                # A series of phrases may end in a plural: "mild edema and left opacities are present".
                assert "are" in match.group(), text
                assert " and " in text[max(0, match.start() - 120) : match.end()], text


def test_sections_start_with_a_capital_and_end_with_a_full_stop(dictated):
    for _, _, report in dictated:
        for text in (report.findings, report.impression):
            assert not text or re.match(r"[A-Z\d]", text)
            assert not text or text.endswith(".")
            assert text == " ".join(text.split())
            assert text.isascii()


def test_file_has_the_headers_and_the_sections_wrapped(dictated):
    for _, _, report in dictated:
        lines = report.text.splitlines()
        assert lines[0].strip() == "FINAL REPORT"
        assert all(len(line) <= 80 for line in lines)
        headers = re.findall(r"^ ([A-Z]+):", report.text, re.MULTILINE)
        assert headers[0] == "EXAMINATION"
        assert headers[1] in ("INDICATION", "HISTORY")
        assert "COMPARISON" in headers
        assert ("FINDINGS" in headers) == bool(report.findings)
        assert ("IMPRESSION" in headers) == bool(report.impression)
        flat = " ".join(report.text.split())
        if report.impression:
            assert flat.endswith(f"IMPRESSION: {report.impression}")
        if report.findings:
            end = " IMPRESSION:" if report.impression else ""
            assert f"FINDINGS: {report.findings}{end}" in flat
        assert "___" in report.text


def test_reports_are_distinct_and_as_long_as_real_ones():
    texts = [f"{report.impression} {report.findings}" for _, _, report in (dictate(s) for s in range(1000, 1500))]
    assert len(set(texts)) > 0.95 * len(texts)
    lengths = [len(text.split()) for text in texts]
    assert 42 <= median(lengths) <= 75
    assert np.mean([15 <= length <= 120 for length in lengths]) > 0.93
    assert len({sentence for text in texts for sentence in text.split(". ")}) > 1500


def test_readers_omit_hedge_and_skip_sections(dictated):
    told = [
        (report, index)
        for case, _, report in dictated
        for index in range(len(case.findings))
        if any(phrase.finding == index for phrase in report.phrases)
    ]
    all_findings = sum(len(case.findings) for case, _, _ in dictated)
    assert 0.01 < 1 - len(told) / all_findings < 0.12
    only_impression = [
        1
        for report, i in told
        if {p.section for p in report.phrases if p.finding == i} == {"impression"} and report.findings
    ]
    assert len(only_impression) > 20
    doubts = [p for _, _, report in dictated for p in report.phrases if p.uncertain]
    assert 0.05 < len(doubts) / sum(not p.negated for _, _, r in dictated for p in r.phrases) < 0.35
    without_findings = np.mean([not report.findings for _, _, report in dictated])
    without_impression = np.mean([not report.impression for _, _, report in dictated])
    assert 0.05 < without_findings < 0.20
    assert 0.04 < without_impression < 0.14
    assert all(report.findings or report.impression for _, _, report in dictated)


def test_every_finding_is_named_in_many_ways(phrases):
    for name in FINDINGS:
        texts = {phrase.phrase.lower() for _, _, phrase in phrases if phrase.name == name and not phrase.negated}
        assert len(texts) >= 8, name


def test_nothing_is_compared_without_a_prior_study(dictated):
    alone = [report for _, _, report in dictated if re.search(r"COMPARISON:  None", report.text)]
    assert len(alone) > 50
    for report in alone:
        words = f"{report.findings} {report.impression}"
        assert not re.search(r"\b(unchanged|again|interval|stable|prior study|worse|improved|resolved)\b", words, re.I)


@pytest.mark.parametrize(
    ("before", "now", "expected", "forbidden"),
    [
        ("mild", "severe", r"increase|enlarge|larger|[Ww]orse", r"decrease|mprov|nchanged|less|smaller"),
        ("severe", "mild", r"decrease|mprov|smaller", r"increase|orse|nchanged|larger|progression"),
        (
            "moderate",
            "moderate",
            r"nchanged|[Aa]gain|[Ss]table|ersistent|edemonstrated|o significant",
            r"orse|mprov|New",
        ),
        (None, "moderate", r"new|New|development|developed|now|not present on", r"orse|mprov|nchanged|ersistent"),
        ("moderate", None, r"resolved|resolution|no longer|cleared", r"orse|mprov|increased"),
    ],
)
def test_comparison_words_tell_what_changed(before, now, expected, forbidden):
    def case(severity):
        found = (Finding("pleural effusion", "left", "basal", severity),) if severity else ()
        return Case("F", 70, "PA", found)

    texts = []
    for seed in range(60):
        report = write_report(case(now), np.random.default_rng(seed), previous=case(before))
        sentences = re.split(r"(?<=\.) ", f"{report.impression} {report.findings}")
        texts.append(" ".join(s for s in sentences if re.search("effusion|fluid", s)))
    assert np.mean([bool(re.search(expected, text)) for text in texts]) > 0.3
    assert not [text for text in texts if re.search(forbidden, text)]


def test_same_generator_same_report_and_other_generator_another():
    assert dictate(3, previous=True) == dictate(3, previous=True)
    assert dictate(3)[2].text != dictate(4)[2].text


def phrase(name: str, *, classes: tuple[str, ...], negated: bool = False, uncertain: bool = False) -> Phrase:
    return Phrase("findings", 0, 0, name, None if negated else 0, name, negated, uncertain, classes)


def labels_of(*mentions: Phrase, devices: tuple[str, ...] = ()) -> dict[str, float]:
    labels = chexpert_labels(PhantomReport("", "x", "", mentions, devices=devices))
    assert tuple(labels) == CHEXPERT_CLASSES
    return {name: value for name, value in labels.items() if not math.isnan(value)}


def test_labels_read_from_a_report():
    effusion = ("Pleural Effusion",)
    present = phrase("effusion", classes=effusion)
    doubtful = phrase("effusion", classes=effusion, uncertain=True)
    denied = phrase("effusion", classes=effusion, negated=True)
    assert labels_of() == {"No Finding": 1.0}
    assert labels_of(denied) == {"No Finding": 1.0, "Pleural Effusion": 0.0}
    assert labels_of(doubtful) == {"Pleural Effusion": -1.0}
    assert labels_of(denied, doubtful, present) == {"Pleural Effusion": 1.0}
    assert labels_of(present, doubtful, denied) == {"Pleural Effusion": 1.0}
    assert labels_of(doubtful, denied) == {"Pleural Effusion": -1.0}
    assert labels_of(devices=("pacemaker",)) == {"No Finding": 1.0, "Support Devices": 1.0}
    assert labels_of(phrase("coin", classes=())) == {"No Finding": 1.0}


def test_lung_opacity_comes_from_words_of_opacity_alone():
    assert labels_of(phrase("nodule", classes=("Lung Lesion",))) == {"Lung Lesion": 1.0}
    doubt = phrase("pneumonia", classes=("Pneumonia",), uncertain=True)
    assert labels_of(doubt) == {"Pneumonia": -1.0}
    opacity = phrase("opacity", classes=("Lung Opacity",))
    assert labels_of(doubt, opacity) == {"Pneumonia": -1.0, "Lung Opacity": 1.0}
    denied = phrase("edema", classes=("Edema",), negated=True)
    assert labels_of(denied) == {"Edema": 0.0, "No Finding": 1.0}


def test_every_phrase_that_says_opacity_or_infiltrate_states_lung_opacity(phrases, followed):
    spoken = [p for _, _, p in phrases] + [p for _, _, report in followed for p in report.phrases]
    said = [p for p in spoken if re.search("opacit|infiltrat", p.phrase, re.IGNORECASE)]
    assert {p.name for p in said if len(p.classes) == 2} == {"atelectasis", "consolidation", "pneumonia", "nodule"}
    assert any("infiltrat" in p.phrase for p in said)
    assert [p for p in spoken if "Lung Opacity" in p.classes] == said
    gone = [p for p in said if p.negated]
    assert {p.name for p in gone} == {"covid-like opacities"}


@pytest.mark.parametrize(
    ("names", "devices", "positive"),
    [
        ((), (), {"No Finding"}),
        ((), ("ecg leads",), {"No Finding", "Support Devices"}),
        (("foreign object",), (), {"No Finding"}),
        (("cardiomegaly",), (), {"Cardiomegaly", "Enlarged Cardiomediastinum"}),
        (("nodule",), (), {"Lung Lesion", "Lung Opacity"}),
        (("covid-like opacities",), (), {"Pneumonia", "Lung Opacity"}),
        (
            ("pleural effusion", "pneumothorax"),
            ("chest tube",),
            {"Pleural Effusion", "Pneumothorax", "Support Devices"},
        ),
        (("edema", "pneumonia"), (), {"Edema", "Pneumonia", "Lung Opacity"}),
    ],
)
def test_labels_of_an_expert(names, devices, positive):
    labels = expert_labels(Case("F", 40, "PA", tuple(Finding(n, "left", "", "mild") for n in names), devices))
    assert {name for name, value in labels.items() if value == 1.0} == positive
    assert set(labels.values()) <= {0.0, 1.0}


def test_labels_of_whole_reports_agree_with_the_film(dictated):
    for case, _, report in dictated:
        truth = expert_labels(case)
        for name, value in chexpert_labels(report).items():
            if value == 1.0 and name != "No Finding":
                assert truth[name] == 1.0 or (name == "Consolidation" and truth["Pneumonia"] == 1.0), (name, report)
            if value == 0.0:
                assert truth[name] == 0.0, (name, report)


@pytest.mark.parametrize(
    ("name", "kind", "label", "words"),
    [
        ("left sixth rib fracture", "rib fracture", "Fracture", "fracture .*left sixth rib"),
        ("biapical pleural thickening", "pleural thickening", "Pleural Other", "biapical pleural thickening"),
    ],
)
def test_old_fractures_and_thick_pleura_are_named_and_labelled(name, kind, label, words):
    case = Case("F", 70, "PA", incidentals=(name,))
    assert expert_labels(case)[label] == 1.0
    assert expert_labels(case)["No Finding"] == 0.0
    named = 0
    for seed in range(60):
        report = write_report(case, np.random.default_rng(seed))
        said = bool(re.search(words, report.findings, re.IGNORECASE))
        named += said
        labels = chexpert_labels(report)
        assert (labels[label] == 1.0) == said
        assert (labels["No Finding"] == 1.0) == (not said)
        assert not any(label in phrase.classes for phrase in report.phrases)
        assert "ormal chest radiograph" not in report.impression
    assert named > 30


# Names of devices, written down apart from the generator's own tables.
DEVICE_NAMES = {
    "endotracheal tube": r"endotracheal tube|ET tube|is intubated|been intubated",
    "nasogastric tube": r"nasogastric|NG tube|enteric tube",
    "central venous catheter": r"central (?:venous|line)",
    "chest tube": r"chest tube|pleural drain|thoracostomy",
    "pacemaker": r"pacemaker|pacing device|pacer",
    "sternal wires": r"sternotomy|sternal wires",
    "ecg leads": r"(?:ECG|EKG|monitoring) leads",
}
GONE = r"been removed|removal of|extubat"
LINES = {"endotracheal tube", "nasogastric tube", "central venous catheter", "chest tube"}
KEPT = r"unchanged|\bagain\b|remains|stable"
FRESH = r"\bnew\b|placement|been (?:placed|intubated)"


def sentences_of(report: PhantomReport) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z\d])", f"{report.findings} {report.impression}".strip())


def names_device(device: str, sentence: str) -> bool:
    return bool(re.search(DEVICE_NAMES[device], sentence, re.IGNORECASE)) and not re.search(GONE, sentence)


@pytest.fixture(scope="module")
def followed() -> list[tuple[Case, Case | None, PhantomReport]]:
    """Films of every hospital, most with an earlier film that shares some findings, devices and the technique."""
    told = []
    for seed in range(2400):
        rng = np.random.default_rng([11, seed])
        hospital = HOSPITALS[tuple(HOSPITALS)[seed % len(HOSPITALS)]] if seed % 4 == 0 else HOSPITALS["mimic_cxr"]
        case = sample_case(rng, hospital)
        case = replace(case, lateral=case.view == "PA" and bool(rng.random() < 0.5))
        before = sample_case(rng, hospital) if seed % 3 else None
        if before and seed % 3 == 1:
            devices = before.devices if seed % 2 else case.devices
            lateral = case.lateral and before.view == "PA"
            case = replace(case, view=before.view, supine=before.supine, lateral=lateral, devices=devices)
            case = replace(case, findings=before.findings)
        told.append((case, before, write_report(case, rng, previous=before)))
    return told


def found(case: Case, name: str, *severities: str) -> bool:
    return any(f.name == name and f.severity in severities for f in case.findings)


def lost_volume(case: Case) -> bool:
    return any(f.name == "atelectasis" and (f.kind == "volume loss" or f.severity == "severe") for f in case.findings)


def squeezed(case: Case) -> bool:
    much = ("moderate", "severe")
    return lost_volume(case) or found(case, "pleural effusion", *much) or found(case, "pneumothorax", *much)


def shifted(case: Case) -> bool:
    return found(case, "pleural effusion", "severe") or found(case, "pneumothorax", "severe")


def drowned(case: Case) -> bool:
    """The left heart border lies in fluid or in a collapsed base."""
    return any(
        f.side in ("left", "bilateral") and f.severity == "severe" and f.name in ("pleural effusion", "atelectasis")
        for f in case.findings
    )


CONTRADICTIONS = {
    "expanded lungs": (
        r"well (?:expanded|inflated)|[Ll]ung volumes are normal|adequate inspiration",
        lambda case: squeezed(case) or case.inspiration != "normal",
    ),
    "hyperinflated lungs": (
        r"hyper(?:inflat|expand)|volumes are large",
        lambda case: squeezed(case) or case.inspiration != "hyperinflated",
    ),
    "low volumes": (r"volumes are low|Low lung volumes|effort is poor", lambda case: case.inspiration != "low"),
    "clear lungs": (
        r"[Ll]ungs (?:are|appear) clear|and clear\.|No focal lung abnormality",
        lambda case: squeezed(case) or bool(IN_THE_LUNG & {f.name for f in case.findings}),
    ),
    "normal film": (
        r"Normal chest radiograph|Unremarkable chest",
        lambda case: bool(case.findings or case.incidentals or case.devices) or case.inspiration != "normal",
    ),
    "nothing acute": (r"No (?:\w+ )*acute (?:cardio|intra|findings)", lambda case: bool(case.findings)),
    "normal mediastinum": (
        r"(?i)mediastin\w+ (?:and hilar contours|contours|silhouettes?) (?:are|is) (?:unrem|normal|within)"
        r"|normal cardiomediastinal|not widened",
        lambda case: "tortuous aorta" in case.incidentals or shifted(case),
    ),
    "unremarkable mediastinum": (
        r"(?i)mediastin\w+ [\w ]*unremarkable|aortic knob is well",
        lambda case: bool({"tortuous aorta", "aortic calcification"} & set(case.incidentals)),
    ),
    "normal hila": (
        r"(?i)hil(?:a|ar)\b[\w ]* (?:unremarkable|normal)",
        lambda case: (
            found(case, "edema", "mild", "moderate", "severe") or any(f.zone == "perihilar" for f in case.findings)
        ),
    ),
    "midline trachea": (
        r"trachea is midline",
        lambda case: shifted(case) or "scoliosis" in case.incidentals or abs(case.rotation) > 5,
    ),
    "normal heart": (
        r"(?i)heart (?:size )?is (?:normal|within|not enl)|normal heart size|normal cardiomediastinal"
        r"|silhouettes? (?:is|are) (?:normal|not enl|within|unrem)",
        lambda case: found(case, "cardiomegaly", "mild", "moderate", "severe") or drowned(case),
    ),
    "hidden heart": (
        r"difficult to assess|border is obscured|heart size is limited|silhouette is limited",
        lambda case: not drowned(case),
    ),
    "hidden heart border": (
        r"border is obscured",
        lambda case: (
            not drowned(
                replace(case, findings=tuple(f for f in case.findings if f.zone != "retrocardiac")),
            )
        ),
    ),
    "normal bones": (
        r"bones are unremarkable|(?:[Oo]sseous|bony) \w+ (?:are|is) (?:\w+ )?(?:unremarkable|intact)",
        lambda case: (
            "sternal wires" in case.devices
            or any(n in ("scoliosis", "degenerative spine") or "fracture" in n for n in case.incidentals)
        ),
    ),
    "no fracture": (
        r"[Nn]o (?:acute |displaced )?(?:rib )?fracture",
        lambda case: any("fracture" in n for n in case.incidentals),
    ),
    "free air on a supine film": (r"[Nn]o (?:\w+ )*free", lambda case: case.supine),
    "normal abdomen": (r"abdomen is", lambda case: "nasogastric tube" in case.devices),
    "standard tube": (
        r"(?i)(?:ET|endotracheal) tube (?:is )?in (?:standard|appropriate|satisfactory)",
        lambda case: not 3 <= case.tube_height <= 6,
    ),
    "low tube": (r"tube is low\b|Low position of", lambda case: case.tube_height >= 2.5),
    "high tube": (r"tube is high\b", lambda case: case.tube_height <= 6),
    "a tube of another film": (r"(?i)line placement", lambda case: not LINES & set(case.devices)),
    "upright words": (r"(?i)upright|erect", lambda case: case.supine),
    "supine words": (r"(?i)supine|posteriorly", lambda case: not case.supine),
    "odd words": (
        r"(?i)air collection|fluid collection|borderline|neck base|lingula|left middle lobe|left hilum"
        r"|(?:minor|horizontal) fissure|out of view|not imaged|flattening|descending aorta|open safety"
        r"|associated volume loss",
        lambda case: True,
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_nothing_said_contradicts_the_film(followed, kind):
    words, wrong = CONTRADICTIONS[kind]
    said = [(case, " ".join(report.text.split())) for case, _, report in followed]
    said = [(case, text) for case, text in said if re.search(words, text)]
    assert kind == "odd words" or len(said) >= 5
    assert not [text for case, text in said if wrong(case)]


def outline(case: Case) -> set[tuple[str, ...]]:
    """What covers or moves the heart, the hila and the mediastinum."""
    return {
        (f.name, f.side, f.zone, f.severity)
        for f in case.findings
        if f.name in ("cardiomegaly", "edema")
        or f.zone in ("perihilar", "diffuse")
        or (f.name in ("pleural effusion", "pneumothorax") and f.severity == "severe")
    } | {("aorta",) for name in case.incidentals if name == "tortuous aorta"}


def technique(case: Case) -> tuple[str, bool]:
    return case.view, case.supine


def unlike(case: Case, before: Case) -> bool:
    """Something differs that a reader would call an interval change, or findings are on either film."""
    moved = "endotracheal tube" in case.devices and abs(case.tube_height - before.tube_height) > 0.99
    differs = (case.devices, case.inspiration) != (before.devices, before.inspiration)
    return moved or differs or bool(case.findings or before.findings)


# Words, and whether they contradict the film and the earlier one; without one, whether they may be said at all.
COMPARISONS = {
    "same technique": (
        r"positioning is similar|technique is similar",
        lambda case, before: technique(case) != technique(before),
        True,
    ),
    "other technique": (
        r"technique differs|differences in positioning",
        lambda case, before: technique(case) == technique(before),
        False,
    ),
    "no change": (r"No significant interval change\.|No relevant change", unlike, False),
    "stable contours": (r"contours are stable", lambda case, before: outline(case) != outline(before), True),
}


@pytest.mark.parametrize("kind", COMPARISONS)
def test_nothing_said_contradicts_the_earlier_film(followed, kind):
    words, wrong, alone = COMPARISONS[kind]
    told = [(case, before) for case, before, r in followed if re.search(words, f"{r.findings} {r.impression}")]
    assert sum(before is not None for _, before in told) >= 5
    assert not [(case, before) for case, before in told if before and wrong(case, before)]
    assert alone or all(before for _, before in told)


@pytest.mark.parametrize(("height", "said"), [(4.9, True), (5.0, False)])
def test_a_tube_that_moved_is_an_interval_change(height, said):
    films = [Case("F", 60, "AP", devices=("endotracheal tube",), tube_height=h) for h in (4.0, height)]
    texts = [write_report(films[1], np.random.default_rng(s), previous=films[0]).impression for s in range(80)]
    assert any(re.search(r"No significant interval|No relevant change", text) for text in texts) == said


@pytest.mark.parametrize(("zone", "said"), [("diffuse", False), ("upper", True)])
def test_contours_that_come_out_of_an_opacity_are_not_stable(zone, said):
    before = Case("F", 60, "PA", (Finding("pneumonia", "bilateral", zone, "moderate"),))
    texts = [write_report(Case("F", 60, "PA"), np.random.default_rng(s), previous=before).findings for s in range(200)]
    assert any("contours are stable" in text for text in texts) == said


def test_the_other_side_is_denied_only_where_the_first_was_named():
    other = {"left": "right", "right": "left"}
    denied = 0
    for seed in range(1500):
        rng = np.random.default_rng([17, seed])
        case = sample_case(rng, HOSPITALS["mimic_cxr"], findings=["pleural effusion", "pneumothorax"])
        in_findings = [p for p in write_report(case, rng).phrases if p.section == "findings"]
        named = {p.name for p in in_findings if not p.negated}
        for p in in_findings:
            if p.negated and p.phrase.startswith(tuple(other)):
                denied += 1
                assert p.name in named
    assert denied > 20


@pytest.mark.parametrize(("effusion", "said"), [("mild", True), ("severe", False)])
def test_no_shift_is_claimed_beside_a_massive_effusion(effusion, said):
    findings = (
        Finding("pleural effusion", "left", "basal", effusion),
        Finding("pneumothorax", "right", "apical", "mild"),
    )
    texts = [write_report(Case("M", 50, "PA", findings), np.random.default_rng(s)).text for s in range(200)]
    assert any(re.search(r"mediastinal shift|of tension|displacement of", " ".join(t.split())) for t in texts) == said


def test_devices_of_a_report_are_those_it_names(followed):
    counts = dict.fromkeys(DEVICES, 0)
    for case, _, report in followed:
        named = tuple(d for d in DEVICES if any(names_device(d, sentence) for sentence in sentences_of(report)))
        assert report.devices == named, report.text
        assert set(named) <= set(case.devices)
        for device in named:
            counts[device] += 1
    assert min(counts.values()) > 20
    assert any(set(case.devices) - set(report.devices) for case, _, report in followed)


def test_devices_are_compared_with_the_earlier_film(followed):
    kept, fresh, gone = 0, 0, 0
    for case, before, report in followed:
        for sentence in sentences_of(report):
            for device in DEVICES:
                if not re.search(DEVICE_NAMES[device], sentence, re.IGNORECASE) and not (
                    device == "endotracheal tube" and "xtubat" in sentence
                ):
                    continue
                if re.search(KEPT, sentence, re.IGNORECASE):
                    kept += before is not None
                    assert before is None or device in before.devices, sentence
                if re.search(FRESH, sentence, re.IGNORECASE):
                    fresh += 1
                    assert before is not None, sentence
                    assert device not in before.devices, sentence
                if re.search(GONE, sentence):
                    gone += 1
                    assert before is not None, sentence
                    assert device in before.devices, sentence
                    assert device not in case.devices, sentence
    assert min(kept, fresh, gone) > 40


@pytest.mark.parametrize(("before", "now", "word"), [(2.0, 5.0, "retracted|higher"), (5.5, 3.0, "advanced|lower")])
def test_a_tube_that_moved_is_not_unchanged(before, now, word):
    films = [Case("F", 60, "AP", devices=("endotracheal tube",), tube_height=height) for height in (before, now)]
    texts = [write_report(films[1], np.random.default_rng(s), previous=films[0]).findings for s in range(80)]
    tubes = [text for text in texts if re.search(DEVICE_NAMES["endotracheal tube"], text)]
    assert len(tubes) > 40
    assert sum(bool(re.search(word, text)) for text in tubes) > 5
    assert not [text for text in tubes if re.search(rf"tube[\w ]* (?:{KEPT})|[Uu]nchanged", text)]


def test_heights_of_tubes_are_those_of_the_film(followed):
    heights = 0
    for case, _, report in followed:
        for text in re.findall(r"([\d.]+) cm (?:above|from) the carina", f"{report.findings} {report.impression}"):
            heights += 1
            assert abs(float(text) - case.tube_height) <= (0.051 if "." in text else 0.5), report.text
    assert heights > 100


def test_a_lateral_view_is_named_if_and_only_if_there_is_one(followed):
    seen = {True: 0, False: 0}
    for case, _, report in followed:
        header = report.text.split("FINDINGS:")[0].split("IMPRESSION:")[0]
        seen[case.lateral] += 1
        assert bool(re.search(r"LAT|lateral", header)) == case.lateral, header
        assert bool(re.search(r"PORTABLE", header)) == (case.view == "AP")
        assert not re.search(r"\bPA\b" if case.view == "AP" else r"\bAP\b|[Pp]ortable|PORTABLE", header)
    assert min(seen.values()) > 300


def test_sizes_of_nodules_are_those_of_the_film():
    told, numeric = 0, 0
    for seed in range(900):
        rng = np.random.default_rng([13, seed])
        case = sample_case(rng, HOSPITALS["mimic_cxr"], findings=["nodule"])
        finding = case.findings[0]
        report = write_report(case, rng)
        text = re.sub(r"[\d.]+ cm (?:above|from) the carina", "", f"{report.findings} {report.impression}")
        named = any(phrase.finding == 0 for phrase in report.phrases)
        sizes = re.findall(r"(\d+(?:\.\d)?) (mm|cm)\b", text)
        told += named
        numeric += named and bool(sizes)
        for number, unit in sizes:
            assert unit == ("mm" if finding.diameter < 3 else "cm")
            exact = float(number) / (10 if unit == "mm" else 1)
            assert abs(exact - finding.diameter) <= (0.5 if unit == "cm" and "." not in number else 0.051), text
        assert finding.diameter < 1.0 or not re.search(r"tiny|subcentimeter", text, re.IGNORECASE)
    assert 0.3 < numeric / told < 0.55


def test_no_number_is_dictated_where_no_size_is_known():
    case = Case("F", 60, "PA", (Finding("nodule", "left", "upper", "mild", "nodule"),))
    for seed in range(200):
        report = write_report(case, np.random.default_rng(seed))
        assert not re.search(
            r"\d (?:mm|cm)|tiny|subcentimeter", f"{report.findings} {report.impression}", re.IGNORECASE
        )


def test_what_is_massive_is_not_in_doubt(followed):
    doubts = 0
    for case, _, report in followed:
        for phrase in report.phrases:
            if not phrase.uncertain:
                continue
            doubts += 1
            finding = case.findings[phrase.finding]
            assert not re.search(r"massive|\blarge|marked|florid|extensive|dense|severe", phrase.phrase), report.text
            # A severe opacity is certain; only its reading as infection is open.
            assert finding.severity != "severe" or phrase.classes == ("Pneumonia",), report.text
            if finding.severity == "severe":
                same = [p for p in report.phrases if p.finding == phrase.finding and p.section == phrase.section]
                assert any(not p.uncertain for p in same), report.text
    assert doubts > 200


def test_only_what_stayed_in_its_place_is_compared():
    def films(zone):
        return Case("F", 60, "PA", (Finding("consolidation", "right", zone, "moderate"),))

    words = r"nchanged|[Aa]gain|table|ersist|orse|mprov|\b[Nn]ew\b|Redemon|o significant"
    for zone, compared in (("upper", True), ("lower", False)):
        texts = [write_report(films("upper"), np.random.default_rng(s), previous=films(zone)) for s in range(60)]
        told = [s for r in texts for s in sentences_of(r) if re.search("consolid|airspace|opacit", s)]
        told = [s for s in told if not re.search("prior study from|contours", s)]
        assert any(re.search(words, s) for s in told) == compared


def test_peripheral_pneumonia_is_placed_in_the_periphery():
    case = Case("M", 60, "PA", (Finding("pneumonia", "right", "peripheral", "moderate"),))
    phrases = [p for s in range(60) for p in write_report(case, np.random.default_rng(s)).phrases if p.finding == 0]
    assert np.mean(["peripher" in p.phrase for p in phrases]) > 0.4
