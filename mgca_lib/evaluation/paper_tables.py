"""The numbers that the MGCA paper prints in its tables, to lay beside one's own."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

CSV_FILE = Path(__file__).with_name("paper_tables.csv")
PROBE_DATASETS = {"CheXpert": "chexpert", "RSNA": "rsna", "COVIDx": "covidx"}
"""The datasets of table 1, as the paper and as this course write them."""


def paper_table(number: int) -> pd.DataFrame:
    """Return one table of the paper (arXiv 2210.06044), one row a printed number.

    Args:
        number: 1 linear classification, 2 object detection, 3 segmentation, 4 ablation, 5 models trained on
            natural images.

    Returns:
        Columns ``metric``, ``dataset``, ``fraction`` (``"1%"``, ``"10%"``, ``"100%"``), ``method``,
        ``pretrained_on``, ``printed`` (the text in the paper) and ``value`` in percent, NaN where the paper
        prints no number ("-" or "<1").

    Raises:
        ValueError: the paper has no table of that number.

    >>> table = paper_table(1)
    >>> table[(table.dataset == "RSNA") & (table.fraction == "1%") & (table.method == "MGCA (ViT-B/16)")].value.item()
    89.1
    """
    content = pd.read_csv(CSV_FILE, dtype=str, keep_default_na=False)
    rows = content[content["table"].str.split(" ").str[0] == str(number)]
    if rows.empty:
        numbers = sorted({name.split(" ")[0] for name in content["table"]})
        raise ValueError(f"the paper's tables are {', '.join(numbers)}; found {number!r}")
    rows = rows.rename(columns={"metric_percent": "metric", "train_fraction": "fraction", "value": "printed"})
    rows = rows.drop(columns="table").reset_index(drop=True)
    return rows.assign(value=pd.to_numeric(rows["printed"], errors="coerce"))


def published_probes(methods: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return published linear probes of table 1 in the form that `mgca_lib.figures.probe_bars` draws.

    Args:
        methods: Own name of a method -> its name in the paper.

    Returns:
        ``[dataset][fraction][own name]``, a share between 0 and 1; numbers that the paper leaves out are absent.

    Raises:
        ValueError: table 1 has no method of that name.

    >>> published_probes({"mgca": "MGCA (ViT-B/16)"})["covidx"]["100%"]
    {'mgca': 0.923}
    """
    table = paper_table(1)
    for name in methods.values():
        if name not in set(table["method"]):
            raise ValueError(f"table 1 has no method {name!r}; it has {', '.join(table['method'].unique())}")
    result: dict[str, dict[str, dict[str, float]]] = {}
    for own, name in methods.items():
        for row in table[(table["method"] == name) & table["value"].notna()].itertuples():
            shares = result.setdefault(PROBE_DATASETS[row.dataset], {})
            shares.setdefault(row.fraction, {})[own] = round(row.value / 100, 4)
    return result
