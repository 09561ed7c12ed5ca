"""`pyproject.toml`, `requirements.lock` and `environment.yml` must agree; each check is shown to fail."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("linux", "darwin", "win32")
# torchvision's own requirement on torch; since 0.29 a lower bound (2.14) only.
TORCHVISION = {"2.12": "0.27", "2.13": "0.28", "2.14": "0.29", "2.15": "0.29"}


def read_lock(text: str) -> dict[str, list[Requirement]]:
    """Parse the lock: names and their pins, one per environment marker."""
    pins: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "--")):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def declared(project: dict) -> list[Requirement]:
    """Return all direct dependencies, those of the tests included."""
    extras = project["project"]["optional-dependencies"].values()
    return [Requirement(text) for group in (project["project"]["dependencies"], *extras) for text in group]


def active(pins: list[Requirement], environment: dict[str, str]) -> list[Requirement]:
    """Return the pins that apply in an environment."""
    return [pin for pin in pins if pin.marker is None or Marker(str(pin.marker)).evaluate(environment)]


def lock_problems(lock: str, project: dict) -> list[str]:
    """Return what is wrong with a lock, one line each."""
    problems = []
    pins = read_lock(lock)
    for name, requirements in pins.items():
        for pin in requirements:
            if [item.operator for item in pin.specifier] != ["=="] or pin.url or "+" in str(pin.specifier):
                problems.append(f"{name}: not an exact public version")
        for python in PYTHONS:
            for platform in PLATFORMS:
                environment = {"python_full_version": f"{python}.9", "python_version": python, "sys_platform": platform}
                if len(active(requirements, environment)) > 1:
                    problems.append(f"{name}: pinned twice for Python {python} on {platform}")
    for requirement in declared(project):
        pinned = pins.get(canonicalize_name(requirement.name))
        if not pinned:
            problems.append(f"{requirement.name}: not in the lock")
            continue
        version = next(iter(pinned[0].specifier)).version
        if not requirement.specifier.contains(version):
            problems.append(f"{requirement.name}: locked {version} is outside {requirement.specifier}")
        if pinned[0].marker:
            problems.append(f"{requirement.name}: locked for some environments only")
    torch, vision = (Version(next(iter(pins[name][0].specifier)).version) for name in ("torch", "torchvision"))
    if TORCHVISION.get(f"{torch.major}.{torch.minor}") != f"{vision.major}.{vision.minor}":
        problems.append(f"torch {torch} and torchvision {vision} are not built for each other")
    if re.search(r"https?://|index-url|find-links", lock, flags=re.MULTILINE):
        problems.append("the lock names an address")
    return problems


def environment_problems(environment: dict, project: dict) -> list[str]:
    """Return what is wrong with the conda environment, one line each."""
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next((item["pip"] for item in environment["dependencies"] if isinstance(item, dict)), [])
    problems = []
    if pip != ["-r requirements.lock", "-e ."]:
        problems.append(f"pip section {pip}: everything must come from requirements.lock and this folder")
    python = next((item.removeprefix("python") for item in conda if item.startswith("python")), "")
    if SpecifierSet(python) != SpecifierSet(project["project"]["requires-python"]):
        problems.append(f"python {python} is not {project['project']['requires-python']}")
    if extra := sorted({re.split(r"[<>=]", item)[0] for item in conda} - {"python", "pip"}):
        problems.append(f"{extra[0]}: comes from conda, the other roads take it from the lock")
    return problems


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    """The parsed pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lock(repository: Path) -> str:
    """The text of the lock."""
    return (repository / "requirements.lock").read_text(encoding="utf-8")


@pytest.fixture
def environment(repository: Path) -> dict:
    """The parsed environment.yml."""
    return yaml.safe_load((repository / "environment.yml").read_text(encoding="utf-8"))


def test_lock_agrees_with_pyproject(lock: str, project: dict) -> None:
    assert lock_problems(lock, project) == []


def test_environment_agrees_with_pyproject(environment: dict, project: dict) -> None:
    assert environment_problems(environment, project) == []


def test_supported_versions(project: dict) -> None:
    python = SpecifierSet(project["project"]["requires-python"])
    assert [python.contains(version) for version in ("3.10.9", "3.11.0", "3.12.5", "3.13.9", "3.14.0")] == [
        False,
        True,
        True,
        True,
        False,
    ]
    bounds = {item.name: item.specifier for item in declared(project)}
    assert all(bounds["torch"].contains(f"{minor}.0") for minor in TORCHVISION)
    assert all(bounds["torchvision"].contains(f"{minor}.0") for minor in TORCHVISION.values())
    assert not bounds["torch"].contains("2.10.9")
    assert not bounds["torch"].contains("2.16.0")
    assert bounds["transformers"].contains("5.0.0")
    assert not bounds["transformers"].contains("6.0.0")
    assert bounds["timm"].contains("1.0.31")


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"(?m)^timm==.*$", "", "timm: not in the lock"),
        (r"(?m)^timm==.*$", "timm==1.0.3", "timm: locked 1.0.3 is outside"),
        (r"(?m)^timm==.*$", "timm>=1.0.31", "timm: not an exact public version"),
        (r"(?m)^torch==.*$", "torch==2.13.0+cpu", "torch: not an exact public version"),
        (r"(?m)^torch==.*$", "torch==2.14.0", "not built for each other"),
        (r"(?m)^timm==.*$", "timm==1.0.31\ntimm==1.0.32", "timm: pinned twice"),
        (r"(?m)^timm==.*$", "timm==1.0.31 ; sys_platform == 'linux'", "timm: locked for some environments only"),
        (r"\A", "--extra-index-url https://example.org\n", "names an address"),
        (r"\A", "--find-links wheels\n", "names an address"),
    ],
)
def test_lock_check_can_fail(lock: str, project: dict, pattern: str, replacement: str, problem: str) -> None:
    broken = re.sub(pattern, replacement, lock)
    assert broken != lock
    assert any(problem in line for line in lock_problems(broken, project))


def test_environment_check_can_fail(environment: dict, project: dict) -> None:
    environment["dependencies"][0] = "python>=3.10"
    environment["dependencies"].insert(1, "numpy=2.4")
    environment["dependencies"][-1]["pip"] = ["-e ."]
    problems = environment_problems(environment, project)
    assert [problem.split()[0] for problem in problems] == ["pip", "python", "numpy:"]
