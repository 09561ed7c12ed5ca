"""Words of chest radiology: how the readers of the phantom hospitals name findings, places and devices.

Everything here is a plain table, written for this project. `reports.py` puts the words together.
"""

from __future__ import annotations

from typing import NamedTuple

CHEXPERT_CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 CheXpert classes in the column order of CheXpert-v1.0."""

CLASSES_OF_FINDING: dict[str, tuple[str, ...]] = {
    "atelectasis": ("Atelectasis",),
    "cardiomegaly": ("Cardiomegaly",),
    "consolidation": ("Consolidation",),
    "edema": ("Edema",),
    "pleural effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "pneumonia": ("Pneumonia",),
    "nodule": ("Lung Lesion",),
    "covid-like opacities": ("Lung Opacity",),
    "foreign object": (),
}
"""CheXpert classes that a plain naming of the finding states."""

OPACITY_CLASSES = ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
"""Children of Lung Opacity in the CheXpert hierarchy."""

SUPPORT_DEVICES = (
    "endotracheal tube",
    "nasogastric tube",
    "central venous catheter",
    "chest tube",
    "pacemaker",
    "sternal wires",
    "ecg leads",
)
"""Devices that count as CheXpert Support Devices."""

IN_THE_LUNG = (
    "atelectasis",
    "consolidation",
    "edema",
    "pneumonia",
    "nodule",
    "covid-like opacities",
)
"""Findings that forbid the words "the lungs are clear"."""


class Noun(NamedTuple):
    """A noun that names a finding.

    Attributes:
        singular: "" where only the plural is used.
        plural: "" for mass nouns and nouns without plural.
        countable: True if the singular takes an article.
        classes: CheXpert classes it states; None means those of the finding.
    """

    singular: str
    plural: str = ""
    countable: bool = False
    classes: tuple[str, ...] | None = None


_OPACITY = ("Lung Opacity",)

NOUNS: dict[str, tuple[Noun, ...]] = {
    "atelectasis": (
        Noun("atelectasis"),
        Noun("atelectasis"),
        Noun("", "atelectatic changes"),
        Noun("subsegmental atelectasis"),
        Noun("atelectatic opacity", "atelectatic opacities", True),
    ),
    "cardiomegaly": (
        Noun("cardiomegaly"),
        Noun("cardiomegaly"),
        Noun("cardiac enlargement"),
        Noun("enlargement of the cardiac silhouette"),
        Noun("enlargement of the heart"),
    ),
    "consolidation": (
        Noun("consolidation", "consolidations", True),
        Noun("consolidation"),
        Noun("airspace consolidation"),
        Noun("parenchymal consolidation"),
        Noun("consolidative opacity", "consolidative opacities", True),
        Noun("airspace opacity", "airspace opacities", True, _OPACITY),
    ),
    "edema": (
        Noun("pulmonary edema"),
        Noun("pulmonary edema"),
        Noun("edema"),
        Noun("cardiogenic pulmonary edema"),
    ),
    "pleural effusion": (
        Noun("pleural effusion", "pleural effusions", True),
        Noun("pleural effusion", "pleural effusions", True),
        Noun("effusion", "effusions", True),
        Noun("pleural fluid collection", "pleural fluid collections", True),
    ),
    "pneumothorax": (
        Noun("pneumothorax", "pneumothoraces", True),
        Noun("pneumothorax", "pneumothoraces", True),
        Noun("pneumothorax", "pneumothoraces", True),
        Noun("pleural air collection", "pleural air collections", True),
    ),
    "pneumonia": (
        Noun("pneumonia"),
        Noun("pneumonia"),
        Noun("bronchopneumonia"),
        Noun("pneumonic consolidation", "pneumonic consolidations", True, ("Pneumonia", "Consolidation")),
        Noun("pneumonic infiltrate", "pneumonic infiltrates", True),
        Noun("airspace opacity", "airspace opacities", True, _OPACITY),
        Noun("opacity", "opacities", True, _OPACITY),
    ),
    "nodule": (
        Noun("pulmonary nodule", "pulmonary nodules", True),
        Noun("lung nodule", "lung nodules", True),
        Noun("nodule", "nodules", True),
        Noun("nodular opacity", "nodular opacities", True),
        Noun("nodular density", "nodular densities", True),
    ),
    "covid-like opacities": (
        Noun("", "ground-glass opacities"),
        Noun("", "airspace opacities"),
        Noun("", "hazy opacities"),
        Noun("", "patchy opacities"),
        Noun("", "ill-defined opacities"),
    ),
}

MASS_NOUNS = (
    Noun("mass", "masses", True),
    Noun("lung mass", "lung masses", True),
    Noun("pulmonary mass", "pulmonary masses", True),
    Noun("mass-like opacity", "mass-like opacities", True),
)
"""A nodule of kind "mass"."""

COLLAPSE_NOUNS = (
    Noun("atelectasis"),
    Noun("collapse"),
    Noun("volume loss"),
    Noun("atelectatic collapse"),
)
"""Atelectasis of kind "volume loss"."""

FOREIGN_NOUNS: dict[str, tuple[Noun, ...]] = {
    "coin": (
        Noun("round metallic density", "", True),
        Noun("coin", "", True),
        Noun("coin-shaped metallic foreign body", "", True),
    ),
    "button": (
        Noun("button", "", True),
        Noun("round button artifact", "", True),
        Noun("clothing button", "", True),
    ),
    "necklace": (
        Noun("necklace", "", True),
        Noun("metallic chain", "", True),
        Noun("neck chain", "", True),
    ),
    "safety pin": (
        Noun("safety pin", "", True),
        Noun("open metallic pin", "", True),
        Noun("pin-shaped metallic density", "", True),
    ),
    "hair clip": (
        Noun("hair clip", "", True),
        Noun("metallic hair clip", "", True),
        Noun("clip-like metallic artifact", "", True),
    ),
    "earring": (
        Noun("earring", "", True),
        Noun("metallic earring", "", True),
        Noun("ring-shaped metallic density", "", True),
    ),
    "key": (
        Noun("key", "", True),
        Noun("key-shaped metallic density", "", True),
        Noun("metallic key", "", True),
    ),
}

SEVERITY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "atelectasis": {
        "mild": ("mild", "minimal", "minor", "subtle", "slight"),
        "moderate": ("moderate", "", "patchy", "moderate"),
        "severe": ("severe", "marked", "extensive", "substantial"),
    },
    "cardiomegaly": {
        "mild": ("mild", "mild", "slight", "borderline to mild"),
        "moderate": ("moderate", "moderate", ""),
        "severe": ("severe", "marked", "massive"),
    },
    "consolidation": {
        "mild": ("subtle", "faint", "mild", "patchy"),
        "moderate": ("moderate", "", "patchy", "moderate"),
        "severe": ("dense", "extensive", "large", "confluent"),
    },
    "edema": {
        "mild": ("mild", "mild", "minimal", "slight", "early"),
        "moderate": ("moderate", "moderate", ""),
        "severe": ("severe", "marked", "florid", "extensive"),
    },
    "pleural effusion": {
        "mild": ("small", "small", "trace", "tiny", "minimal"),
        "moderate": ("moderate", "moderate-sized", "moderate"),
        "severe": ("large", "large", "very large", "massive"),
    },
    "pneumothorax": {
        "mild": ("small", "tiny", "small", "minimal"),
        "moderate": ("moderate", "moderate-sized"),
        "severe": ("large", "very large", "sizable"),
    },
    "pneumonia": {
        "mild": ("mild", "subtle", "early", "patchy"),
        "moderate": ("moderate", "", "patchy"),
        "severe": ("extensive", "dense", "severe", "confluent"),
    },
    "nodule": {
        "mild": ("small", "tiny", "subcentimeter", "6 mm", "8 mm", "7 mm"),
        "moderate": ("", "rounded", "well-circumscribed", "14 mm", "18 mm", "solitary"),
        "severe": ("large", "rounded", "lobulated", "5 cm", "4 cm", "well-defined"),
    },
    "covid-like opacities": {
        "mild": ("mild", "faint", "subtle", "scattered"),
        "moderate": ("moderate", "multifocal", ""),
        "severe": ("extensive", "severe", "confluent", "widespread"),
    },
    "foreign object": {"mild": ("",), "moderate": ("",), "severe": ("",)},
}

DEGREE_ADVERBS = {
    "mild": ("mildly", "slightly", "mildly"),
    "moderate": ("moderately", "moderately", ""),
    "severe": ("severely", "markedly", "grossly"),
}
"""Adverbs for "the heart is ... enlarged"."""

ZONE_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "upper": ("{s} upper lobe", "{s} upper lung", "{s} upper zone"),
    "middle": ("{s} mid lung", "{s} midlung", "{s} mid zone"),
    "lower": ("{s} lower lobe", "{s} lower lung", "{s} lower zone"),
    "apical": ("{s} apical",),
    "basal": ("{s} basilar", "{s} basal", "{s} lower lung"),
    "perihilar": ("{s} perihilar",),
    "peripheral": ("{s} peripheral", "peripheral {s}"),
    "retrocardiac": ("{s} retrocardiac", "retrocardiac"),
    "diffuse": ("diffuse {s}",),
    "": ("{s}", "{s}", "{s}-sided"),
}
"""Adjectives of place; ``{s}`` is the side."""

BILATERAL_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "upper": ("bilateral upper lobe", "bilateral upper lung"),
    "middle": ("bilateral mid lung", "bilateral mid zone"),
    "lower": ("bilateral lower lobe", "bibasilar", "bilateral lower lung"),
    "apical": ("biapical",),
    "basal": ("bibasilar", "bibasal", "bilateral basilar"),
    "perihilar": ("bilateral perihilar", "perihilar"),
    "peripheral": ("bilateral peripheral", "peripheral bilateral"),
    "retrocardiac": ("retrocardiac",),
    "diffuse": ("diffuse bilateral", "diffuse", "bilateral diffuse"),
    "": ("bilateral", "bilateral"),
}

ZONE_PLACES: dict[str, tuple[str, ...]] = {
    "upper": ("in the {s} upper lobe", "in the {s} upper lung", "in the {s} upper lung zone"),
    "middle": ("in the {s} mid lung", "in the {s} mid lung zone", "in the {s} midlung"),
    "lower": ("in the {s} lower lobe", "in the {s} lower lung", "in the {s} lower lung zone"),
    "apical": ("at the {s} apex", "at the {s} lung apex"),
    "basal": ("at the {s} lung base", "at the {s} base"),
    "perihilar": ("in the {s} perihilar region",),
    "peripheral": ("in the {s} lung periphery", "in the periphery of the {s} lung"),
    "retrocardiac": ("in the {s} retrocardiac region", "behind the heart"),
    "diffuse": ("throughout the {s} lung",),
    "": ("on the {s}", "on the {s} side"),
}
"""Places after the noun; ``{s}`` is the side."""

BILATERAL_PLACES: dict[str, tuple[str, ...]] = {
    "upper": ("in both upper lobes", "in the upper lungs bilaterally"),
    "middle": ("in both mid lungs", "in the mid lungs bilaterally"),
    "lower": ("in both lower lobes", "in the lower lungs bilaterally", "at both lung bases"),
    "apical": ("at both apices", "at both lung apices"),
    "basal": ("at both lung bases", "at the lung bases", "at the bases bilaterally"),
    "perihilar": ("in both perihilar regions", "in the perihilar regions"),
    "peripheral": ("in the periphery of both lungs", "in the lung periphery bilaterally"),
    "retrocardiac": ("in the retrocardiac region",),
    "diffuse": ("throughout both lungs", "diffusely in both lungs"),
    "": ("on both sides", "bilaterally"),
}

FOREIGN_PLACES: dict[str, tuple[str, ...]] = {
    "upper": (
        "projecting over the {s} upper lung",
        "overlying the {s} upper chest",
        "projected over the {s} upper hemithorax",
    ),
    "middle": (
        "projecting over the {s} mid lung",
        "overlying the {s} mid chest",
        "projected over the {s} mid hemithorax",
    ),
    "lower": (
        "projecting over the {s} lower lung",
        "overlying the {s} lower chest",
        "projected over the {s} lower hemithorax",
    ),
    "apical": (
        "projecting over the {s} lung apex",
        "overlying the {s} supraclavicular region",
        "projecting over the {s} side of the neck base",
    ),
}

NECKLACE_PLACES = (
    "projecting over the upper mediastinum",
    "overlying the upper chest",
    "projecting over the lower neck and upper chest",
)

NEGATED_NAMES: dict[str, tuple[str, ...]] = {
    "consolidation": (
        "focal consolidation",
        "consolidation",
        "focal airspace consolidation",
        "lobar consolidation",
        "confluent consolidation",
    ),
    "pleural effusion": (
        "pleural effusion",
        "effusion",
        "large pleural effusion",
        "pleural fluid",
        "sizable pleural effusion",
    ),
    "pneumothorax": ("pneumothorax", "pneumothorax", "definite pneumothorax", "appreciable pneumothorax"),
    "edema": ("pulmonary edema", "overt pulmonary edema", "edema", "frank pulmonary edema"),
    "pneumonia": ("pneumonia", "acute pneumonia", "focal pneumonia", "lobar pneumonia"),
    "nodule": ("suspicious nodule", "pulmonary nodule", "discrete nodule", "pulmonary mass"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "atelectasis": ("atelectasis", "lobar collapse"),
}
"""What a reader says is absent."""

NEGATED_SIZE_WORDS = ("large", "sizable", "confluent", "definite", "appreciable", "overt", "frank", "lobar")
"""A negation that begins so leaves room for a lesser finding."""

HEART_NORMAL_PHRASES = (
    ("heart is normal in size", "The {p}."),
    ("heart is normal in size", "The {p} and configuration."),
    ("heart size is normal", "{p}."),
    ("heart size is within normal limits", "{p}."),
    ("cardiac silhouette is normal in size", "The {p}."),
    ("cardiac silhouette is not enlarged", "The {p}."),
    ("heart is not enlarged", "The {p}."),
    ("normal heart size", "{p}."),
)
"""(phrase, sentence) pairs that deny cardiomegaly."""

MEDIASTINUM_NORMAL_PHRASES = (
    ("cardiomediastinal silhouette is normal", "The {p}."),
    ("cardiomediastinal silhouette is within normal limits", "The {p}."),
    ("cardiomediastinal silhouette is unremarkable", "The {p}."),
    ("cardiomediastinal contours are normal", "The {p}."),
    ("cardiac and mediastinal silhouettes are unremarkable", "The {p}."),
    ("normal cardiomediastinal contours", "{p}."),
)
"""(phrase, sentence) pairs that deny cardiomegaly and a wide mediastinum."""

HILA_NORMAL = (
    "Mediastinal and hilar contours are unremarkable.",
    "The hilar contours are normal.",
    "The mediastinal contours are within normal limits.",
    "Hilar and mediastinal contours are stable.",
    "The hila are unremarkable.",
    "The aortic knob is well defined.",
    "The trachea is midline.",
)

LUNGS_CLEAR = (
    "The lungs are clear.",
    "Lungs are clear bilaterally.",
    "The lungs are well expanded and clear.",
    "Both lungs are clear.",
    "The lungs are clear without focal abnormality.",
    "The lungs appear clear.",
    "Lungs are well inflated and clear.",
)
LUNGS_CLEAR_NOT_INFLATED = ("The lungs are clear.", "No focal lung abnormality is seen.", "Both lungs are clear.")

INSPIRATION_SENTENCES: dict[str, tuple[str, ...]] = {
    "low": (
        "Lung volumes are low.",
        "The lung volumes are low, with crowding of the bronchovascular structures.",
        "Inspiratory effort is poor.",
        "Low lung volumes accentuate the bronchovascular markings.",
    ),
    "normal": (
        "Lung volumes are normal.",
        "The lungs are well expanded.",
        "There is adequate inspiration.",
        "The lungs are well inflated.",
    ),
    "hyperinflated": (
        "The lungs are hyperinflated.",
        "Lung volumes are large with flattening of the diaphragms.",
        "Hyperexpanded lungs suggest underlying emphysema.",
        "The lungs are hyperexpanded.",
    ),
}

BONES_NORMAL = (
    "The osseous structures are unremarkable.",
    "No acute osseous abnormality is seen.",
    "Osseous structures are intact.",
    "The visualized bones are unremarkable.",
    "No acute bony abnormality.",
    "Imaged osseous structures are without an acute abnormality.",
    "The bony thorax is grossly intact.",
)
FRACTURE_NEGATED = (
    "No displaced {p} is identified.",
    "There is no acute {p}.",
    "No displaced {p} is seen.",
)

ABDOMEN_NORMAL = (
    "The imaged upper abdomen is unremarkable.",
    "There is no free air beneath the diaphragm.",
    "No free intraperitoneal air is identified.",
    "No subdiaphragmatic free air is seen.",
    "The visualized upper abdomen is within normal limits.",
    "The soft tissues are unremarkable.",
)

INCIDENTAL_SENTENCES: dict[str, tuple[str, ...]] = {
    "tortuous aorta": (
        "The aorta is tortuous.",
        "The thoracic aorta is mildly tortuous.",
        "There is tortuosity of the descending aorta.",
        "The aorta is unfolded and tortuous.",
    ),
    "aortic calcification": (
        "Aortic knob calcifications are noted.",
        "There is calcification of the aortic arch.",
        "Atherosclerotic calcifications are seen at the aortic knob.",
        "The aortic arch is calcified.",
    ),
    "scoliosis": (
        "There is scoliosis of the thoracic spine.",
        "Mild thoracic scoliosis is noted.",
        "Curvature of the thoracic spine is seen.",
    ),
    "degenerative spine": (
        "Degenerative changes are seen in the thoracic spine.",
        "There are multilevel degenerative changes of the spine.",
        "Spondylotic changes of the thoracic spine are present.",
        "Mild degenerative change is noted along the thoracic spine.",
    ),
}

# Incidentals that are CheXpert classes of their own; {p} is what and where.
INCIDENTAL_CLASSES: dict[str, str] = {"rib fracture": "Fracture", "pleural thickening": "Pleural Other"}
FRACTURE_SENTENCES = (
    "There is an old healed fracture of the {p}.",
    "A healed fracture of the {p} is noted.",
    "Old fracture deformity of the {p} is seen.",
    "A remote healed fracture of the {p} is present.",
)
THICKENING_SENTENCES = (
    "There is {p}.",
    "Mild {p} is noted.",
    "Chronic {p} is seen.",
    "{p} is present.",
)

DEVICE_SENTENCES: dict[str, tuple[str, ...]] = {
    "endotracheal tube": (
        "The endotracheal tube terminates {cm} cm above the carina.",
        "Endotracheal tube tip lies approximately {cm} cm from the carina.",
        "The tip of the endotracheal tube is {cm} cm above the carina.",
        "The patient is intubated, with the tube tip {cm} cm above the carina.",
        "ET tube is in standard position.",
    ),
    "nasogastric tube": (
        "The nasogastric tube courses below the diaphragm, with the tip out of view.",
        "Enteric tube extends into the stomach.",
        "A nasogastric tube passes below the diaphragm into the left upper quadrant.",
        "The enteric tube courses inferiorly, the tip is not imaged.",
        "NG tube is seen in the expected position of the stomach.",
    ),
    "central venous catheter": (
        "A central venous catheter terminates in the mid SVC.",
        "The central line ends in the low SVC.",
        "The tip of the central venous catheter projects over the cavoatrial junction.",
        "Central venous catheter is in unchanged position, ending in the SVC.",
        "A central venous line is present with its tip in the superior vena cava.",
    ),
    "chest tube": (
        "A chest tube is in place.",
        "A pleural drainage catheter is present.",
        "There is an indwelling chest tube.",
        "A thoracostomy tube is again noted.",
    ),
    "pacemaker": (
        "A pacemaker is in place with leads in unchanged position.",
        "Pacemaker leads terminate in the expected locations.",
        "A cardiac pacing device is noted, with its leads intact.",
        "Pacer generator projects over the chest wall, with leads in standard position.",
    ),
    "sternal wires": (
        "Median sternotomy wires are intact.",
        "The patient is status post median sternotomy.",
        "Sternotomy wires are noted and appear aligned.",
        "Intact midline sternal wires are seen.",
    ),
    "ecg leads": (
        "Overlying ECG leads are noted.",
        "Monitoring leads project over the chest.",
        "External monitoring leads overlie the thorax.",
        "Multiple EKG leads project over the chest wall.",
    ),
}

DEVICE_NAMES_SHORT = {
    "endotracheal tube": ("endotracheal tube", "ET tube"),
    "nasogastric tube": ("nasogastric tube", "enteric tube", "NG tube"),
    "central venous catheter": ("central venous catheter", "central line"),
    "chest tube": ("chest tube", "pleural drain"),
    "pacemaker": ("pacemaker", "pacing device"),
}

COMPLAINTS = (
    "cough",
    "fever",
    "cough and fever",
    "dyspnea",
    "shortness of breath",
    "chest pain",
    "hypoxia",
    "altered mental status",
    "weakness",
    "sepsis",
    "recent surgery",
    "syncope",
    "leukocytosis",
    "tachycardia",
    "productive cough",
    "fall",
)
HISTORIES = (
    "CHF",
    "COPD",
    "end stage renal disease",
    "cirrhosis",
    "lung cancer",
    "coronary disease",
    "hypertension",
    "HIV",
    "diabetes",
    "lymphoma",
)
QUESTIONS = (
    "evaluate for pneumonia",
    "eval for acute process",
    "assess for infiltrate",
    "please evaluate for effusion",
    "rule out pneumothorax",
    "interval change",
    "assess volume status",
    "evaluate line placement",
    "acute cardiopulmonary process",
)
