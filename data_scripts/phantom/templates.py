"""Sentences of chest radiology: templates into which `reports.py` puts the words of `lexicon.py`.

Fields: ``{p}`` the phrase and ``{q}`` a second one, ``{a}`` and ``{b}`` their articles, ``{is}``, ``{has}`` and
``{was}`` verbs that agree with ``{p}``, ``{t}`` a tail, ``{since}`` a comparison.
"""

TOPIC = {
    "atelectasis": "lungs",
    "consolidation": "lungs",
    "edema": "lungs",
    "pneumonia": "lungs",
    "nodule": "lungs",
    "covid-like opacities": "lungs",
    "pleural effusion": "pleura",
    "pneumothorax": "pleura",
    "cardiomegaly": "heart",
    "foreign object": "devices",
}

# What must not be denied while another finding is on the film: the words would contradict the image.
DENIAL_BLOCKED_BY = {
    "consolidation": {"consolidation", "pneumonia", "covid-like opacities"},
    "pneumonia": {"pneumonia", "consolidation", "covid-like opacities"},
    "pleural effusion": {"pleural effusion"},
    "pneumothorax": {"pneumothorax"},
    "edema": {"edema", "covid-like opacities"},
    "nodule": {"nodule"},
    "cardiomegaly": {"cardiomegaly"},
    "atelectasis": {"atelectasis"},
}

PLAIN = (
    "There {is} {a}{p}{t}.",
    "There {is} {a}{p}{t}.",
    "{a}{p} {is} present{t}.",
    "{a}{p} {is} noted{t}.",
    "{a}{p} {is} seen{t}.",
    "{a}{p} {is} demonstrated{t}.",
    "Note is made of {a}{p}{t}.",
    "There is evidence of {a}{p}{t}.",
    "{a}{p} {is} identified{t}.",
)
TELEGRAPHIC = ("{p}{t}.", "{p}{t}.", "{p} noted.", "{p} seen.")
UNCERTAIN = (
    "Possible {p}.",
    "{a}{p} cannot be excluded.",
    "There may be {a}{p}.",
    "{a}{p} {is} suspected.",
    "Questionable {p}.",
    "Suspected {p}.",
    "{a}{p} would be difficult to exclude.",
    "Cannot rule out {a}{p}.",
    "There is suggestion of {a}{p}.",
    "{a}{p} {is} not excluded.",
    "Appearances may represent {a}{p}.",
    "{a}{p} {is} possible.",
    "Findings could reflect {a}{p}.",
)
NEW = (
    "Interval development of {a}{p}.",
    "{a}{p} {is} new {since}.",
    "New {p}.",
    "There {is} now {a}{p}.",
    "{a}{p} {has} developed in the interval.",
    "{a}{p} {was} not seen on the prior study.",
)
UNCHANGED = (
    "The {p} {is} unchanged {since}.",
    "Unchanged {p}.",
    "Again seen {is} {a}{p}.",
    "The {p} {is} stable {since}.",
    "Persistent {p}.",
    "Stable {p}.",
    "Redemonstrated {is} {a}{p}, not significantly changed.",
    "{a}{p} {is} again noted and similar to the prior exam.",
    "No significant change in the {p}.",
)
WORSE = (
    "The {p} {has} {worsened} {since}.",
    "Interval worsening of the {p}.",
    "The {p} {has} {worsened} in the interval.",
    "Worsening {p}.",
    "{a}{p} {is} worse {since}.",
    "Slight interval progression of the {p}.",
)
BETTER = (
    "The {p} {has} {improved} {since}.",
    "Interval improvement of the {p}.",
    "The {p} {has} {improved} in the interval.",
    "Improving {p}.",
    "{a}{p} {is} less pronounced {since}.",
    "{a}{p} persists but {has} {improved}.",
)
RESOLVED = (
    "Previously seen {p} {has} resolved.",
    "The previous {p} {has} resolved.",
    "Interval resolution of the {p}.",
    "The {p} {is} no longer seen.",
    "Prior {p} {has} cleared.",
)
SINCE = (
    "since the prior study",
    "compared to the prior study",
    "compared with the prior radiograph",
    "from the prior exam",
    "as compared to ___",
    "since ___",
    "when compared to the previous examination",
    "compared to the study of ___",
)
PAIRED = (
    "There {is} {a}{p} and {b}{q}.",
    "There {is} {a}{p} with {b}{q}.",
    "{a}{p} and {b}{q} are present.",
    "{a}{p} and {b}{q} are noted.",
    "{a}{p}, along with {b}{q}, {is} seen.",
)
IMPRESSION_PAIRED = (
    "{p} and {q}.",
    "{p} with {q}.",
    "{p}, with {q}.",
    "{p} as well as {q}.",
    "{a}{p} and {b}{q}.",
)
INTERPRETED = ("pneumonia", "consolidation", "atelectasis")
INTERPRETATIONS = (
    "{a}{p}, which may represent {q}.",
    "{a}{p} may represent {q}.",
    "{a}{p} could reflect {q}.",
    "{a}{p}, possibly {q}.",
    "{a}{p} {is} seen, and {q} cannot be excluded.",
    "{a}{p} {is} concerning for possible {q}.",
    "There {is} {a}{p}, question of {q}.",
)
IMPRESSION_PLAIN = (
    "{p}.",
    "{p}.",
    "{p}{t}.",
    "{a}{p}.",
    "Findings consistent with {a}{p}.",
    "Radiographic findings in keeping with {a}{p}.",
    "Findings compatible with {a}{p}.",
)
DENIAL_LISTS = (
    "There is no {list}.",
    "No {list}.",
    "No {list} is seen.",
    "There is no evidence of {list}.",
    "No {list} is identified.",
    "No evidence of {list}.",
    "Negative for {list}.",
    "There is no radiographic evidence of {list}.",
)
TAILS: dict[str, tuple[str, ...]] = {
    "consolidation": (" with air bronchograms", ", without associated volume loss", ", with ill-defined margins"),
    "edema": (
        " with cephalization of the pulmonary vessels",
        ", with indistinct vascular markings",
        " and vascular engorgement",
    ),
    "pleural effusion": (
        " with blunting of the costophrenic angle",
        ", partially obscuring the hemidiaphragm",
        ", tracking along the lateral chest wall",
    ),
    "pneumothorax": (
        " without mediastinal shift",
        ", without evidence of tension",
        ", with a visible pleural line",
        " without displacement of the mediastinum",
    ),
    "pneumonia": (" in the appropriate clinical setting", ", with air bronchograms"),
    "nodule": (", not clearly calcified", " with smooth margins", ", of uncertain etiology"),
    "covid-like opacities": (", with relative sparing of the perihilar regions", ", in a subpleural distribution"),
    "foreign object": (", likely external to the patient", ", presumably outside the patient"),
}
SIZED = ("pleural effusion", "pneumothorax", "nodule")
VERBS = {
    True: (("increased", "increased in size", "enlarged"), ("decreased", "decreased in size")),
    False: (("worsened", "progressed", "increased"), ("improved", "decreased", "slightly improved")),
}
DIFFERENTIALS = (
    ("pneumonia", "Superimposed {p} cannot be excluded."),
    ("superimposed pneumonia", "{p} is not excluded."),
    ("pneumonia", "In the appropriate clinical setting, {p} could be considered."),
    ("infection", "Underlying {p} is difficult to exclude."),
    ("early pneumonia", "Early consolidation or {p} may have this appearance."),
)
DIFFERENTIAL_TARGETS = ("atelectasis", "consolidation")
VIRAL = (
    ("viral pneumonia", "The pattern is suspicious for {p}."),
    ("COVID-19 pneumonia", "Findings may represent {p}."),
    ("atypical infection", "This may reflect {p}."),
    ("atypical pneumonia", "The distribution raises concern for {p}."),
    ("multifocal viral pneumonia", "Findings are concerning for {p}."),
)
IMPRESSION_NORMAL = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No radiographic evidence of acute cardiopulmonary disease.",
    "Normal chest radiograph.",
    "No acute intrathoracic process.",
    "No acute cardiopulmonary findings.",
    "Unremarkable chest radiographic examination.",
    "No evidence of acute cardiopulmonary process.",
    "No acute findings in the chest.",
)
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "nodule": (
        "Chest CT is recommended for further evaluation.",
        "Recommend nonemergent CT of the chest for characterization.",
        "Comparison with prior imaging or chest CT is advised.",
    ),
    "pneumonia": (
        "Follow up radiographs after treatment are recommended to ensure resolution.",
        "Recommend follow-up in ___ weeks to document clearing.",
        "Repeat radiographs after therapy are suggested.",
    ),
    "consolidation": (
        "Follow up to resolution is recommended.",
        "Dedicated PA and lateral views would be helpful.",
    ),
    "pneumothorax": (
        "Findings were communicated to ___ by telephone at ___ on ___.",
        "These findings were discussed with ___ at the time of discovery.",
        "Attention on follow-up radiographs is advised.",
    ),
    "foreign object": ("Correlate with direct inspection.", "Clinical correlation is advised."),
    "edema": ("Correlate with volume status.", "Recommend repeat after diuresis."),
    "": ("Clinical correlation is recommended.", "Attention on follow-up is advised."),
}
