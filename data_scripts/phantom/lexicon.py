"""Words of chest radiology: how the readers of the phantom hospitals name findings, places and devices.

Everything here is a plain table, written for this project. `reports.py` puts the words together.
"""

from __future__ import annotations

from typing import NamedTuple

from data_scripts.phantom.consistency import Said

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

IN_THE_LUNG = (
    "atelectasis",
    "consolidation",
    "edema",
    "pneumonia",
    "nodule",
    "covid-like opacities",
)
"""Findings of the lung itself, said to lie "in the left lung" and, once gone, to have cleared."""


class Noun(NamedTuple):
    """A noun that names a finding.

    Attributes:
        singular: "" where only the plural is used.
        plural: "" for mass nouns and nouns without plural.
        countable: True if the singular takes an article.
        classes: CheXpert classes it states; None means those of the finding. A noun that says "opacity" or
            "infiltrate" states Lung Opacity, alone or beside the class of the finding.
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
        Noun("atelectatic opacity", "atelectatic opacities", True, ("Atelectasis", *_OPACITY)),
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
        Noun("consolidative opacity", "consolidative opacities", True, ("Consolidation", *_OPACITY)),
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
    ),
    "pneumothorax": (Noun("pneumothorax", "pneumothoraces", True),),
    "pneumonia": (
        Noun("pneumonia"),
        Noun("pneumonia"),
        Noun("bronchopneumonia"),
        Noun("pneumonic consolidation", "pneumonic consolidations", True, ("Pneumonia", "Consolidation")),
        Noun("pneumonic infiltrate", "pneumonic infiltrates", True, ("Pneumonia", *_OPACITY)),
        Noun("airspace opacity", "airspace opacities", True, _OPACITY),
        Noun("opacity", "opacities", True, _OPACITY),
    ),
    "nodule": (
        Noun("pulmonary nodule", "pulmonary nodules", True),
        Noun("lung nodule", "lung nodules", True),
        Noun("nodule", "nodules", True),
        Noun("nodular opacity", "nodular opacities", True, ("Lung Lesion", *_OPACITY)),
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
    Noun("mass-like opacity", "mass-like opacities", True, ("Lung Lesion", *_OPACITY)),
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
        "mild": ("mild", "mild", "slight", "minimal"),
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
        "mild": ("small", "small", "rounded", "solitary"),
        "moderate": ("", "rounded", "well-circumscribed", "solitary"),
        "severe": ("large", "rounded", "lobulated", "well-defined"),
    },
    "covid-like opacities": {
        "mild": ("mild", "faint", "subtle", "scattered"),
        "moderate": ("moderate", "multifocal", ""),
        "severe": ("extensive", "extensive", "confluent", "widespread"),
    },
    "foreign object": {"mild": ("",), "moderate": ("",), "severe": ("",)},
}

SUBCENTIMETER_WORDS = ("small", "tiny", "subcentimeter")
"""Words for a nodule below one centimetre."""

CLASHES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("severe", "early"), ("opacity", "opacities", "infiltrate", "infiltrates", "density", "densities")),
    (("dense",), ("bronchopneumonia", "infiltrate", "infiltrates")),
    (("patchy",), ("collapse", "loss", "plate-like", "linear", "discoid", "bandlike")),
    (("rounded",), ("nodular", "mass-like")),
    (("lobulated", "well-defined"), ("mass-like",)),
)
"""(words of severity, words of a noun) that do not go together."""

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
    "peripheral": ("{s} peripheral", "{s} peripheral lung"),
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
    "peripheral": ("bilateral peripheral", "bilateral peripheral lung"),
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
        "projecting over the base of the neck on the {s}",
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
    ("cardiomediastinal contours are normal", "The {p}."),
    ("normal cardiomediastinal contours", "{p}."),
    ("cardiomediastinal silhouette is not enlarged", "The {p}."),
)
"""(phrase, sentence) pairs that deny cardiomegaly and a wide mediastinum."""

MEDIASTINUM_UNREMARKABLE_PHRASES = (
    ("cardiomediastinal silhouette is unremarkable", "The {p}."),
    ("cardiac and mediastinal silhouettes are unremarkable", "The {p}."),
    ("cardiac and mediastinal contours are unremarkable", "The {p}."),
)
"""The same for an aorta without calcification."""

HEART_HIDDEN = (
    Said("Heart size is difficult to assess."),
    Said("The left heart border is obscured.", ("left border hidden",)),
    Said("Evaluation of the heart size is limited."),
    Said("Assessment of the cardiac silhouette is limited."),
)
"""Said instead where fluid or collapse hides the heart's outline."""

HILA_NORMAL = (
    Said("Mediastinal and hilar contours are unremarkable.", ("mediastinum", "hila", "no calcified aorta")),
    Said("The mediastinal and hilar contours are normal.", ("mediastinum", "hila")),
    Said("The hilar contours are normal.", ("hila",)),
    Said("The mediastinal contours are within normal limits.", ("mediastinum",)),
    Said("Hilar and mediastinal contours are stable.", ("hila",)),
    Said("The hila are unremarkable.", ("hila",)),
    Said("The aortic knob is well defined.", ("aortic knob",)),
    Said("The trachea is midline.", ("trachea",)),
    Said("The mediastinum is not widened.", ("mediastinum",)),
)

LUNGS_CLEAR = (
    Said("The lungs are clear."),
    Said("Lungs are clear bilaterally."),
    Said("The lungs are well expanded and clear.", ("expanded",)),
    Said("Both lungs are clear."),
    Said("The lungs are clear without focal abnormality."),
    Said("The lungs appear clear."),
    Said("Lungs are well inflated and clear.", ("expanded",)),
    Said("No focal lung abnormality is seen."),
)

INSPIRATION_SENTENCES: dict[str, tuple[Said, ...]] = {
    "low": (
        Said("Lung volumes are low."),
        Said("The lung volumes are low, with crowding of the bronchovascular structures."),
        Said("Inspiratory effort is poor."),
        Said("Low lung volumes accentuate the bronchovascular markings."),
    ),
    "normal": (
        Said("Lung volumes are normal.", ("expanded",)),
        Said("The lungs are well expanded.", ("expanded",)),
        Said("There is adequate inspiration.", ("expanded",)),
        Said("The lungs are well inflated.", ("expanded",)),
    ),
    "hyperinflated": (
        Said("The lungs are hyperinflated.", ("unhindered",)),
        Said("Lung volumes are large.", ("unhindered",)),
        Said("Hyperexpanded lungs suggest underlying emphysema.", ("unhindered",)),
        Said("The lungs are hyperexpanded.", ("unhindered",)),
    ),
}

BONES_NORMAL = (
    Said("The osseous structures are unremarkable.", ("bones",)),
    Said("No acute osseous abnormality is seen."),
    Said("Osseous structures are intact.", ("bones",)),
    Said("The visualized bones are unremarkable.", ("bones",)),
    Said("No acute bony abnormality."),
    Said("Imaged osseous structures are without an acute abnormality."),
    Said("The bony thorax is grossly intact.", ("bones",)),
)
FRACTURE_NEGATED = (
    "No displaced {p} is identified.",
    "There is no acute {p}.",
    "No displaced {p} is seen.",
)

ABDOMEN_NORMAL = (
    Said("The imaged upper abdomen is unremarkable.", ("abdomen",)),
    Said("There is no free air beneath the diaphragm.", ("upright",)),
    Said("No free intraperitoneal air is identified.", ("upright",)),
    Said("No subdiaphragmatic free air is seen.", ("upright",)),
    Said("The visualized upper abdomen is within normal limits.", ("abdomen",)),
    Said("The soft tissues are unremarkable.", ("soft tissues",)),
)

INCIDENTAL_SENTENCES: dict[str, tuple[str, ...]] = {
    "tortuous aorta": (
        "The aorta is tortuous.",
        "The thoracic aorta is mildly tortuous.",
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

DEVICE_SENTENCES: dict[str, tuple[Said, ...]] = {
    "endotracheal tube": (
        Said("The endotracheal tube terminates {cm} cm above the carina."),
        Said("Endotracheal tube tip lies approximately {cm} cm from the carina."),
        Said("The tip of the endotracheal tube is {cm} cm above the carina."),
        Said("The patient is intubated, with the tube tip {cm} cm above the carina."),
        Said("ET tube is in standard position.", ("tube standard",)),
        Said("ET tube is in standard position, {cm} cm above the carina.", ("tube standard",)),
        Said("The endotracheal tube is low, with its tip {cm} cm above the carina.", ("tube low",)),
        Said("Low position of the ET tube, {cm} cm above the carina.", ("tube low",)),
        Said("The endotracheal tube is high, with its tip {cm} cm above the carina.", ("tube high",)),
    ),
    "nasogastric tube": (
        Said("The nasogastric tube courses below the diaphragm."),
        Said("Enteric tube extends into the stomach."),
        Said("A nasogastric tube passes below the diaphragm into the left upper quadrant."),
        Said("The enteric tube is seen to course below the diaphragm."),
        Said("NG tube is seen in the expected position of the stomach."),
    ),
    "central venous catheter": (
        Said("A central venous catheter terminates in the mid to low SVC."),
        Said("The central line ends in the SVC."),
        Said("The tip of the central venous catheter projects over the SVC."),
        Said("A central venous line is present with its tip in the superior vena cava."),
    ),
    "chest tube": (
        Said("A chest tube is in place."),
        Said("A pleural drainage catheter is present."),
        Said("There is an indwelling chest tube."),
        Said("A thoracostomy tube is in place."),
    ),
    "pacemaker": (
        Said("A pacemaker is in place with leads in the expected position."),
        Said("Pacemaker leads terminate in the expected locations."),
        Said("A cardiac pacing device is noted, with its leads intact."),
        Said("Pacer generator projects over the chest wall, with leads in standard position."),
    ),
    "sternal wires": (
        Said("Median sternotomy wires are intact."),
        Said("The patient is status post median sternotomy with intact wires."),
        Said("Sternotomy wires are noted and appear aligned."),
        Said("Intact midline sternal wires are seen."),
    ),
    "ecg leads": (
        Said("Overlying ECG leads are noted."),
        Said("Monitoring leads project over the chest."),
        Said("External monitoring leads overlie the thorax."),
        Said("Multiple EKG leads project over the chest wall."),
    ),
}
"""Sentences that hold with or without an earlier film; ``{cm}`` is the height of the tube's tip."""

DEVICE_KEPT: dict[str, tuple[str, ...]] = {
    "endotracheal tube": (
        "The endotracheal tube is unchanged, {cm} cm above the carina.",
        "Unchanged position of the ET tube, {cm} cm above the carina.",
        "The endotracheal tube is again seen, ending {cm} cm above the carina.",
    ),
    "nasogastric tube": (
        "The nasogastric tube is again seen coursing below the diaphragm.",
        "The enteric tube remains in place.",
        "Unchanged NG tube.",
    ),
    "central venous catheter": (
        "Central venous catheter is in unchanged position, ending in the SVC.",
        "The central line is again noted, with its tip in the SVC.",
        "The central venous catheter remains in place.",
    ),
    "chest tube": (
        "A thoracostomy tube is again noted.",
        "The chest tube remains in place.",
        "The pleural drainage catheter is again seen.",
    ),
    "pacemaker": (
        "A pacemaker is in place with leads in unchanged position.",
        "The pacemaker is again noted, with its leads intact.",
        "Unchanged pacing device and leads.",
    ),
    "sternal wires": (
        "Median sternotomy wires are again noted.",
        "Sternotomy wires are unchanged and appear aligned.",
    ),
}
"""Devices that were on the earlier film, too."""

DEVICE_NEW: dict[str, tuple[str, ...]] = {
    "endotracheal tube": (
        "Interval placement of an endotracheal tube, with its tip {cm} cm above the carina.",
        "The patient has been intubated, with the tube tip {cm} cm above the carina.",
        "New ET tube ends {cm} cm above the carina.",
    ),
    "nasogastric tube": (
        "Interval placement of a nasogastric tube, which extends into the stomach.",
        "A new enteric tube courses below the diaphragm.",
        "An NG tube has been placed, extending into the stomach.",
    ),
    "central venous catheter": (
        "Interval placement of a central venous catheter, with its tip in the SVC.",
        "A new central line ends in the SVC.",
        "A central venous catheter has been placed, terminating in the SVC.",
    ),
    "chest tube": (
        "Interval placement of a chest tube.",
        "A chest tube is new since the prior study.",
        "A pleural drainage catheter has been placed in the interval.",
    ),
}
"""Devices that were not on the earlier film. Implants are on every film of a patient."""

DEVICE_GONE: dict[str, tuple[str, ...]] = {
    "endotracheal tube": (
        "The endotracheal tube has been removed.",
        "The patient has been extubated.",
        "Interval extubation.",
    ),
    "nasogastric tube": ("The enteric tube has been removed.", "Interval removal of the nasogastric tube."),
    "central venous catheter": (
        "The central venous catheter has been removed.",
        "Interval removal of the central line.",
    ),
    "chest tube": ("The chest tube has been removed.", "Interval removal of the chest tube."),
}
"""Devices of the earlier film that are gone. Implants stay, and nobody speaks of electrodes that are gone."""

TUBE_MOVED = {
    "lower": (
        "The endotracheal tube has been advanced, now {cm} cm above the carina.",
        "ET tube is lower than before, now {cm} cm above the carina.",
    ),
    "higher": (
        "The endotracheal tube has been retracted, now {cm} cm above the carina.",
        "ET tube is higher than before, now {cm} cm above the carina.",
    ),
}
"""Said where the tip moved by a centimetre or more between the films."""

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
    Said("evaluate for pneumonia"),
    Said("eval for acute process"),
    Said("assess for infiltrate"),
    Said("please evaluate for effusion"),
    Said("rule out pneumothorax"),
    Said("interval change"),
    Said("assess volume status"),
    Said("evaluate line placement", ("lines",)),
    Said("acute cardiopulmonary process"),
)
TITLES = (
    Said("CHEST (PORTABLE AP)", ("bedside",)),
    Said("PORTABLE CHEST RADIOGRAPH", ("bedside",)),
    Said("CHEST (PA AND LAT)", ("lateral",)),
    Said("CHEST (PA AND LATERAL)", ("lateral",)),
    Said("CHEST (PA)", ("frontal only",)),
    Said("CHEST RADIOGRAPH (PA)", ("frontal only",)),
)
TECHNIQUES = (
    Said("Portable AP chest", ("bedside",)),
    Said("Single portable view of the chest", ("bedside",)),
    Said("Chest AP", ("bedside",)),
    Said("Semi-upright AP view", ("bedside", "upright")),
    Said("Supine AP view", ("bedside", "supine")),
    Said("Portable supine view of the chest", ("bedside", "supine")),
    Said("Chest PA and lateral", ("lateral",)),
    Said("PA and lateral views of the chest", ("lateral",)),
    Said("Frontal view of the chest", ("frontal only",)),
    Said("PA view of the chest", ("frontal only",)),
)
