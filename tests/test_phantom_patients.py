"""Films of one patient show one patient: body, bones, vessels, implants and nodules stay, the pose changes."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest

from data_scripts.phantom import render
from data_scripts.phantom.anatomy import Body, build_anatomy, sample_body
from data_scripts.phantom.cases import Case, Finding, nodule_diameter, sample_case
from data_scripts.phantom.devices import device_metal
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.pathology import Scene
from data_scripts.phantom.projection import Frame
from data_scripts.phantom.render import Rendered, render_case

MIMIC = HOSPITALS["mimic_cxr"]
FRAME = Frame(size=96, field_of_view=36.0, centre=(0.0, 14.0), tilt=0.0, bend=(0.0, 0.0, 0.0, 0.0))
CASE = Case("M", 66, "PA", (Finding("nodule", "right", "upper", "moderate", "nodule"),), ("pacemaker",))
POSE = {"dome", "floor", "height", "heart", "carina", "arm_angle", "shoulder", "scapula"}


def film(case: Case, seed: int, *, study: int | None = None) -> Rendered:
    return render_case(case, MIMIC, np.random.default_rng(seed), size=96, study=study)


def body(patient: int, pose: int, case: Case = CASE) -> Body:
    return sample_body(case, np.random.default_rng(patient), np.random.default_rng(pose))


def centre(mask: np.ndarray, rendered: Rendered) -> np.ndarray:
    """Row and column of the middle of a mask, in cm."""
    return np.array([places.mean() for places in np.nonzero(mask)]) * rendered.pixel


def test_the_pose_moves_what_moves_and_leaves_the_rest():
    one, same, other = body(1, 1), body(1, 2), body(2, 1)
    for measure in fields(Body):
        values = [np.ravel(getattr(measures, measure.name)) for measures in (one, same, other)]
        if measure.name in POSE - {"heart"}:
            assert not np.array_equal(values[0], values[1]), measure.name
        else:
            assert np.array_equal(values[0], values[1]), measure.name
        if measure.name not in ("turn", "arm_angle"):
            assert not np.array_equal(values[0], values[2]), measure.name


def test_ribs_keep_their_distance_however_deep_the_breath():
    breaths = [body(1, 1, replace(CASE, inspiration=name)) for name in ("low", "normal", "hyperinflated")]
    assert len({measures.rib_spacing for measures in breaths}) == 1
    assert breaths[0].dome < breaths[1].dome < breaths[2].dome


def test_bones_and_vessels_are_the_patients():
    x, y = FRAME.grid()
    one, same, other = (
        build_anatomy(CASE, body(1, 1), FRAME, x, y, np.random.default_rng(patient), np.random.default_rng(pose))
        for patient, pose in ((3, 4), (3, 5), (6, 4))
    )
    for part in ("bone", "vessels"):
        np.testing.assert_array_equal(getattr(one, part), getattr(same, part))
        assert not np.array_equal(getattr(one, part), getattr(other, part))
    assert not np.array_equal(one.airway, same.airway)  # gas in the bowel passes


def test_a_shallower_breath_grows_the_same_vessels():
    x, y = FRAME.grid()
    deep = body(1, 1)
    shallow = replace(deep, dome=(deep.dome[0] - 0.4, deep.dome[1] - 0.4))
    one, same, other = (
        build_anatomy(CASE, measures, FRAME, x, y, np.random.default_rng(seed), np.random.default_rng(9)).vessels
        for measures, seed in ((deep, 3), (shallow, 3), (deep, 4))
    )
    upper = y < deep.carina + 4.0
    assert np.corrcoef(one[upper], same[upper])[0, 1] > 0.85
    assert np.corrcoef(one[upper], other[upper])[0, 1] < 0.75


def test_a_pacemaker_keeps_its_side():
    def sides(patient: int | None) -> list[bool]:
        films = (film(replace(CASE, patient=patient, findings=()), seed) for seed in range(8))
        return [bool(np.nonzero(one.device_masks["pacemaker"])[1].mean() < 48) for one in films]

    sides_of = [sides(patient) for patient in range(8)]
    assert all(len(set(of_one)) == 1 for of_one in sides_of)
    assert {of_one[0] for of_one in sides_of} == {True, False}
    assert len(set(sides(None))) == 2


@pytest.fixture
def upright(monkeypatch):
    """Every film is taken with the detector in one place, so that places on films are places in the body."""
    monkeypatch.setattr(render, "_place_detector", lambda *_: FRAME)


@pytest.mark.parametrize(("patient", "stays"), [(7, True), (None, False)])
def test_a_nodule_stays_where_it_is(upright, patient, stays):
    films = [film(replace(CASE, patient=patient), seed) for seed in range(5)]
    places = [centre(one.finding_masks[0], one) for one in films]
    moves = [float(np.linalg.norm(one - other)) for one, other in itertools.combinations(places, 2)]
    assert (max(moves) < 0.8) == stays
    areas = [one.finding_masks[0].sum() for one in films]
    assert max(areas) < 1.5 * min(areas)


def test_two_films_of_a_study_show_the_findings_and_lines_in_one_place(upright):
    case = replace(CASE, findings=(Finding("consolidation", "left", "middle", "moderate"),), patient=3)
    case = replace(case, devices=("central venous catheter",))
    one, same, other = (film(case, seed, study=study) for seed, study in ((1, 5), (2, 5), (3, 6)))
    assert not np.array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.finding_masks[0], same.finding_masks[0])
    assert not np.array_equal(one.finding_masks[0], other.finding_masks[0])
    line = "central venous catheter"
    np.testing.assert_array_equal(one.device_masks[line], same.device_masks[line])
    assert not np.array_equal(one.device_masks[line], other.device_masks[line])


def test_two_films_of_a_study_have_one_field_of_view_and_their_own_place_in_it():
    case = replace(CASE, patient=3)
    one, same, other = (film(case, seed, study=study) for seed, study in ((1, 5), (2, 5), (3, 6)))
    assert one.pixel == same.pixel != other.pixel
    assert not np.array_equal(one.lung_mask, same.lung_mask)


def test_findings_change_nothing_else_of_a_patient():
    ill = replace(CASE, patient=4, findings=(*CASE.findings, Finding("pleural effusion", "left", "basal", "mild")))
    one, other = film(ill, 1), film(replace(ill, findings=ill.findings[:1]), 1)
    np.testing.assert_array_equal(one.finding_masks[0], other.finding_masks[0])
    np.testing.assert_array_equal(one.device_masks["pacemaker"], other.device_masks["pacemaker"])
    np.testing.assert_array_equal(one.lung_mask, other.lung_mask)


def test_a_breathing_tube_ends_at_its_height():
    measures = body(1, 1)
    x, y = FRAME.grid()
    anatomy = build_anatomy(CASE, measures, FRAME, x, y, np.random.default_rng(1), np.random.default_rng(2))
    for height in (2.0, 6.5):
        scene = Scene(replace(CASE, tube_height=height), measures, anatomy, FRAME, x, y)
        metal = device_metal("endotracheal tube", scene, np.random.default_rng(3))
        assert y[metal > 0.05].max() == pytest.approx(measures.carina - height, abs=1.2 * FRAME.pixel)
    heights = [sample_case(np.random.default_rng(seed), MIMIC).tube_height for seed in range(40)]
    assert 2.0 <= min(heights) < 3.0
    assert 5.5 < max(heights) <= 6.5


def test_nodules_have_the_diameter_of_their_kind():
    drawn = [sample_case(np.random.default_rng(seed), MIMIC, findings=["nodule", "edema"]) for seed in range(60)]
    for case in drawn:
        edema, nodule = case.findings
        assert edema.diameter == 0.0
        low, high = {"mild": (0.8, 1.6), "moderate": (1.6, 2.9), "severe": (3.2, 6.5)}[nodule.severity]
        assert low <= nodule.diameter == nodule_diameter(nodule) <= high
        assert (nodule.kind == "mass") == (nodule.diameter > 3.0)
    assert len({case.findings[1].diameter for case in drawn}) > 20
    assert nodule_diameter(Finding("nodule", "left", "upper", "moderate", "nodule")) == 2.25
