"""Which candidates stay: splits by patient, patients in one split only, no id twice, the limit."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from data_scripts.candidates import Candidate
from data_scripts.ledger import Ledger
from mgca_lib.data.studies import DatasetError

PUBLISHED_SEED = 0


def split_patients(patients: Iterable[str], sizes: Sequence[int], *, seed: int) -> list[set[str]]:
    """Draw disjoint groups of patients.

    Args:
        patients: Patient ids; order and repetition do not matter.
        sizes: Size of each group.
        seed: Seed of the draw.

    Returns:
        One set per size, and last the patients that are left.
    """
    names = sorted(set(patients))
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    groups, start = [], 0
    for size in sizes:
        groups.append(set(order[start : start + size]))
        start += size
    return [*groups, set(order[start:])]


def split_patients_as_published(patients: Sequence[str]) -> dict[str, str]:
    """Split patients 70/15/15 with scikit-learn and seed 0, as upstream splits RSNA.

    Args:
        patients: Distinct patients, in order of appearance in the label table.

    Returns:
        Patient -> split. Fewer than 4 patients are all training patients.

    >>> sizes = list(split_patients_as_published([str(number) for number in range(26684)]).values())
    >>> [sizes.count(split) for split in ("train", "valid", "test")]
    [18678, 4003, 4003]
    """
    if len(patients) < 4:
        return dict.fromkeys(patients, "train")
    train, held_out = train_test_split(list(patients), test_size=0.3, random_state=PUBLISHED_SEED)
    valid, test = train_test_split(held_out, test_size=0.5, random_state=PUBLISHED_SEED)
    return dict.fromkeys(train, "train") | dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")


def draw_splits(patients: Iterable[str], *, valid: float, test: float, seed: int) -> dict[str, str]:
    """Split patients at random.

    Args:
        patients: Patient ids; order and repetition do not matter.
        valid: Share of the patients for validation, from 0 to below 1.
        test: Share of the patients for the test, from 0 to below 1; with ``valid`` below 1.
        seed: Seed of the draw.

    Returns:
        Patient -> split. A share above 0 is at least one patient, as long as one is left for training.

    Raises:
        DatasetError: a share or the seed makes no sense.

    >>> splits = list(draw_splits("abcdefghij", valid=0.1, test=0.2, seed=0).values())
    >>> [splits.count(split) for split in ("train", "valid", "test")]
    [7, 1, 2]
    """
    if seed < 0:
        raise DatasetError(f"--seed {seed}: use 0 or more")
    for name, share in (("valid", valid), ("test", test)):
        if not 0 <= share < 1:
            raise DatasetError(f"--{name}-fraction {share}: use a share from 0 to below 1")
    if valid + test >= 1:
        raise DatasetError(f"--valid-fraction {valid} and --test-fraction {test}: nothing is left for training")
    names = sorted(set(patients))
    sizes: list[int] = []
    for share in (test, valid):
        wanted = max(1, round(share * len(names))) if share > 0 else 0
        sizes.append(max(0, min(wanted, len(names) - 1 - sum(sizes))))
    groups = split_patients(names, sizes, seed=seed)
    return {name: split for split, group in zip(("test", "valid", "train"), groups, strict=True) for name in group}


def separate_patients(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Drop images whose patient is also in a split that matters more: test before valid before train."""
    rank = {"test": 0, "valid": 1, "train": 2}
    best: dict[str, str] = {}
    for candidate in candidates:
        held = best.setdefault(candidate.patient_id, candidate.split)
        if rank[candidate.split] < rank[held]:
            best[candidate.patient_id] = candidate.split
    kept = []
    for candidate in candidates:
        if candidate.split == best[candidate.patient_id]:
            kept.append(candidate)
        else:
            other = best[candidate.patient_id]
            ledger.drop_candidate(
                candidate, "patient is also in a held-out split", f"patient {candidate.patient_id} is in {other}"
            )
    return kept


def apply_limit(candidates: Sequence[Candidate], ledger: Ledger, limit: int | None) -> list[Candidate]:
    """Keep the first ``limit`` images of each split."""
    if limit is None:
        return list(candidates)
    counts: Counter[str] = Counter()
    kept = []
    for candidate in candidates:
        counts[candidate.split] += 1
        if counts[candidate.split] <= limit:
            kept.append(candidate)
        else:
            ledger.drop_candidate(candidate, "beyond --limit", faulty=False)
    return kept


def drop_duplicates(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Drop images whose id, or whose stored file on a file system that ignores case, was there before."""
    seen: dict[str, Candidate] = {}
    kept = []
    for candidate in candidates:
        for key in (candidate.image_id, candidate.stored.lower()):
            if key in seen:
                first = seen[key]
                ledger.drop_candidate(candidate, "duplicate id", f"first in {first.file}, row {first.rows[0]}")
                break
        else:
            seen[candidate.image_id] = seen[candidate.stored.lower()] = candidate
            kept.append(candidate)
    return kept
