"""The phantom hospitals: who comes there, and how their films look.

Each hospital stands for one public dataset. They differ in prevalence, in the share of bedside (AP)
films and in the imaging chain (contrast curve, noise, sharpness, borders, marker), so that moving from
one to another is a real transfer. The imaging chain is drawn independently of the findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Hospital:
    """Population and imaging chain of one phantom hospital.

    Attributes:
        name: Key in `HOSPITALS`.
        prevalence: Finding name -> probability that a case has it; names as in `cases.FINDINGS`.
        ap_fraction: Share of AP (bedside) films, 0 to 1.
        female_fraction: Share of women, 0 to 1.
        age: Mean and standard deviation of the age in years.
        device_probability: Probability that an AP case carries any tube or line; a quarter for PA.
        gamma: Exponent of the display curve; above 1 darkens the lungs.
        contrast: Slope of the display curve; 1 maps the usual range of attenuation onto 0 to 1.
        exposure: Standard deviation of the brightness offset, in display units.
        noise: Quantum noise, relative standard deviation behind an average chest.
        blur: Standard deviation of the detector blur in centimetres.
        sharpening: Strength of the vendor's unsharp mask; 0 is none.
        equalisation: Strength of the vendor's local contrast equalisation, 0 to 1.
        scatter: Scatter-to-primary ratio behind an average chest.
        border_probability: Probability that collimator blades show as borders.
        marker: Side marker: "letter", "boxed", "disc" or "none".
        label_probability: Probability of burnt-in text such as "PORTABLE".
        field_of_view: Side of the square image in centimetres.
    """

    name: str
    prevalence: Mapping[str, float]
    ap_fraction: float
    female_fraction: float
    age: tuple[float, float]
    device_probability: float
    gamma: Range
    contrast: Range
    exposure: float
    noise: Range
    blur: Range
    sharpening: Range
    equalisation: Range
    scatter: Range
    border_probability: float
    marker: str
    label_probability: float
    field_of_view: Range


HOSPITALS: dict[str, Hospital] = {
    "mimic_cxr": Hospital(
        name="mimic_cxr",
        prevalence={
            "atelectasis": 0.20,
            "cardiomegaly": 0.20,
            "consolidation": 0.09,
            "edema": 0.14,
            "pleural effusion": 0.22,
            "pneumothorax": 0.08,
            "pneumonia": 0.11,
            "nodule": 0.07,
            "covid-like opacities": 0.05,
            "foreign object": 0.04,
        },
        ap_fraction=0.55,
        female_fraction=0.47,
        age=(62.0, 16.0),
        device_probability=0.45,
        gamma=(0.90, 1.25),
        contrast=(0.66, 1.02),
        exposure=0.055,
        noise=(0.007, 0.022),
        blur=(0.04, 0.09),
        sharpening=(0.2, 0.8),
        equalisation=(0.15, 0.45),
        scatter=(0.25, 0.60),
        border_probability=0.15,
        marker="letter",
        label_probability=0.25,
        field_of_view=(33.0, 41.0),
    ),
    "chexpert": Hospital(
        name="chexpert",
        prevalence={
            "atelectasis": 0.24,
            "cardiomegaly": 0.22,
            "consolidation": 0.13,
            "edema": 0.24,
            "pleural effusion": 0.32,
            "pneumothorax": 0.10,
            "pneumonia": 0.08,
            "nodule": 0.06,
            "covid-like opacities": 0.0,
            "foreign object": 0.03,
        },
        ap_fraction=0.80,
        female_fraction=0.42,
        age=(60.0, 17.0),
        device_probability=0.60,
        gamma=(0.75, 1.05),
        contrast=(0.80, 1.15),
        exposure=0.070,
        noise=(0.010, 0.028),
        blur=(0.05, 0.11),
        sharpening=(0.5, 1.6),
        equalisation=(0.40, 0.80),
        scatter=(0.30, 0.70),
        border_probability=0.35,
        marker="boxed",
        label_probability=0.55,
        field_of_view=(32.0, 39.0),
    ),
    "rsna": Hospital(
        name="rsna",
        prevalence={
            "atelectasis": 0.12,
            "cardiomegaly": 0.12,
            "consolidation": 0.08,
            "edema": 0.06,
            "pleural effusion": 0.14,
            "pneumothorax": 0.06,
            "pneumonia": 0.25,
            "nodule": 0.10,
            "covid-like opacities": 0.0,
            "foreign object": 0.03,
        },
        ap_fraction=0.45,
        female_fraction=0.43,
        age=(47.0, 17.0),
        device_probability=0.30,
        gamma=(1.05, 1.45),
        contrast=(0.66, 0.98),
        exposure=0.055,
        noise=(0.004, 0.012),
        blur=(0.03, 0.08),
        sharpening=(0.0, 0.6),
        equalisation=(0.0, 0.25),
        scatter=(0.20, 0.45),
        border_probability=0.05,
        marker="disc",
        label_probability=0.10,
        field_of_view=(32.0, 38.0),
    ),
    "covidx": Hospital(
        name="covidx",
        prevalence={
            "atelectasis": 0.08,
            "cardiomegaly": 0.10,
            "consolidation": 0.06,
            "edema": 0.05,
            "pleural effusion": 0.10,
            "pneumothorax": 0.02,
            "pneumonia": 0.30,
            "nodule": 0.03,
            "covid-like opacities": 0.33,
            "foreign object": 0.02,
        },
        ap_fraction=0.60,
        female_fraction=0.44,
        age=(58.0, 17.0),
        device_probability=0.35,
        gamma=(0.80, 1.30),
        contrast=(0.50, 1.05),
        exposure=0.080,
        noise=(0.008, 0.032),
        blur=(0.05, 0.14),
        sharpening=(0.0, 1.0),
        equalisation=(0.0, 0.60),
        scatter=(0.25, 0.75),
        border_probability=0.30,
        marker="letter",
        label_probability=0.30,
        field_of_view=(30.0, 41.0),
    ),
    "siim": Hospital(
        name="siim",
        prevalence={
            "atelectasis": 0.10,
            "cardiomegaly": 0.07,
            "consolidation": 0.05,
            "edema": 0.03,
            "pleural effusion": 0.12,
            "pneumothorax": 0.35,
            "pneumonia": 0.05,
            "nodule": 0.08,
            "covid-like opacities": 0.0,
            "foreign object": 0.03,
        },
        ap_fraction=0.40,
        female_fraction=0.45,
        age=(47.0, 17.0),
        device_probability=0.35,
        gamma=(0.95, 1.35),
        contrast=(0.66, 1.00),
        exposure=0.055,
        noise=(0.005, 0.015),
        blur=(0.03, 0.08),
        sharpening=(0.0, 0.8),
        equalisation=(0.05, 0.35),
        scatter=(0.20, 0.50),
        border_probability=0.10,
        marker="disc",
        label_probability=0.10,
        field_of_view=(32.0, 38.0),
    ),
    "object_cxr": Hospital(
        name="object_cxr",
        prevalence={
            "atelectasis": 0.04,
            "cardiomegaly": 0.06,
            "consolidation": 0.03,
            "edema": 0.02,
            "pleural effusion": 0.05,
            "pneumothorax": 0.01,
            "pneumonia": 0.06,
            "nodule": 0.05,
            "covid-like opacities": 0.0,
            "foreign object": 0.50,
        },
        ap_fraction=0.04,
        female_fraction=0.52,
        age=(49.0, 17.0),
        device_probability=0.05,
        gamma=(0.85, 1.25),
        contrast=(0.70, 1.05),
        exposure=0.070,
        noise=(0.008, 0.024),
        blur=(0.04, 0.10),
        sharpening=(0.2, 1.2),
        equalisation=(0.20, 0.60),
        scatter=(0.25, 0.60),
        border_probability=0.25,
        marker="letter",
        label_probability=0.0,
        field_of_view=(33.0, 41.0),
    ),
}
