"""The phantom reports: exact spans, words that never contradict the film, readable English, and labels."""

import math
import re
from statistics import median

import numpy as np
import pytest

from data_scripts.phantom.cases import FINDINGS, Case, Finding, sample_case
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
    "pneumothorax": ("pneumothora", "pleural air"),
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
        r"\b(?:a|an) (?:[\w-]+ )*?(?:effusions|opacities|consolidations|pneumothoraces|changes)\b",
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
        ("mild", "severe", r"increased|enlarged|[Ww]orse|[Ww]orsening|progression", r"decreased|mprov|nchanged|less"),
        ("severe", "mild", r"decreased|mprov|less pronounced", r"increased|orse|nchanged|progression"),
        (
            "moderate",
            "moderate",
            r"nchanged|[Aa]gain|[Ss]table|ersistent|edemonstrated|o significant",
            r"orse|mprov|New",
        ),
        (None, "moderate", r"new|New|development|developed|now|not seen on", r"orse|mprov|nchanged|ersistent"),
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
    labels = chexpert_labels(PhantomReport("", "x", "", mentions), devices)
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


def test_lung_opacity_is_the_parent_of_what_is_in_the_lung():
    assert labels_of(phrase("nodule", classes=("Lung Lesion",))) == {"Lung Lesion": 1.0, "Lung Opacity": 1.0}
    doubt = phrase("pneumonia", classes=("Pneumonia",), uncertain=True)
    assert labels_of(doubt) == {"Pneumonia": -1.0, "Lung Opacity": -1.0}
    opacity = phrase("opacity", classes=("Lung Opacity",))
    assert labels_of(doubt, opacity) == {"Pneumonia": -1.0, "Lung Opacity": 1.0}
    denied = phrase("edema", classes=("Edema",), negated=True)
    assert labels_of(denied) == {"Edema": 0.0, "No Finding": 1.0}


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
        for name, value in chexpert_labels(report, case.devices).items():
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
