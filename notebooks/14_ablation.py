# ---
# jupyter:
#   jupytext:
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · What does each alignment add?
#
# **After this notebook you can** (1) say why variants are compared *within* a seed, and compute such a comparison on
# paper, (2) read an ablation table with intervals and put it into words that the numbers carry, (3) tell a term that does
# not help from one that is not put well, (4) tell how many seeds a difference of a given size would take, and (5) find the
# sentence in an ablation that no number supports.
#
# - **First read** [06 Pretraining](06_pretraining.ipynb), [07 Linear probe](07_linear_probe.ipynb).
# - **Time** `smoke` and `demo` about 10 s: the trainings come from the grid, which is run separately (`make grid`).
# - **Data** the results of the grid, trained and measured on phantoms like those of notebook 01; section 3 tells whether
#   they are the very same.
# - **Departures from the paper** several seeds and intervals instead of one number a cell; a row more; a third of the
#   epochs of notebook 06; phantoms.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project
GRID_DIR = ""  # cells of your own; empty: outputs/PROFILE/grid in the project

# %%
from mgca_lib.run import start_run

run = start_run("14_ablation", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %%
import math

import numpy as np
import pandas as pd
from scipy import stats

from mgca_lib import figures
from mgca_lib.evaluation.intervals import t_interval
from mgca_lib.evaluation.paper_tables import paper_table
from mgca_lib.grid import STATED
from mgca_lib.grid_results import committed_cells, load_grid, over_seeds, paired_differences, verdict
from mgca_lib.variants import VARIANTS

pd.set_option("display.max_colwidth", None)  # sentences stand in tables below

# %% [markdown]
# ## 1. Guess first
#
# Table 4 of the paper takes MGCA apart. Each row is one training on MIMIC-CXR, measured by linear probes.

# %%
published = paper_table(4)
published["probe"] = published["dataset"] + " " + published["fraction"]
published.pivot_table(index="method", columns="probe", values="value", sort=False)

# %% [markdown]
# Every number of the last row is above the first, and the usual summary is that *each term helps*. Go through the rows between,
# though: prototypes without tokens lower two of the six columns. And look at the sizes. From ITA to all three, the largest
# step of any column is little more than one point of AUROC. There is one training a row, and no interval.
#
# Before you go on, write down two guesses. If the same training were repeated with another seed, how far would one of
# these numbers move? And how many of the steps in the table are larger than that?
#
# ## 2. Three seeds on paper
#
# Say that a variant scores .690, .780 and .880 with three seeds, and the full model .700, .800 and .900 with the same
# three. The seeds differ by a lot. Does the full model win?
#
# Comparing the two means, we divide by the scatter of the *scores*, which is about .1, and can say nothing. But a seed is
# not only noise: it fixes the initial weights, the order of the pairs and the labels drawn for the probe, and both
# variants share those. So take the difference within each seed: .010, .020, .020. Their mean is .0167 and their standard
# deviation $s$ is .0058. Student's interval is the mean $\pm\, t \cdot s / \sqrt{3}$, with $t = 4.303$ for two degrees of
# freedom.
#
# Before you run the next cell, compute both ends.

# %%
full, variant = np.array([0.700, 0.800, 0.900]), np.array([0.690, 0.780, 0.880])
paired = t_interval((full - variant).tolist())
unpaired = stats.ttest_ind(full, variant).confidence_interval()
print(f"within seeds: {paired}")
print(f"two means:    {full.mean() - variant.mean():.3f} ({unpaired.low:.3f} to {unpaired.high:.3f})")
assert abs(paired.low - (0.05 / 3 - 4.303 * 0.005774 / math.sqrt(3))) < 1e-4, "mean minus t times s over root 3"

# %% [markdown]
# Same six numbers, and only one of the two ways finds the difference. It is not a trick: it asks a narrower question,
# *on the same draw, which is better?*, and that is the question of an ablation.
#
# ## 3. The grid
#
# `make grid` trains every variant with every seed, each through the same notebook
# (the form is `notebooks/grid/one_cell.py`, filled in by papermill and driven by
# Snakemake), and measures all of them with the yardsticks of notebooks 03, 04, 07 and 08. That takes longer than the
# whole course, so its results come with the project. Cells that you have run yourself take their place.

# %%
order = ["ita", "ita+cta", "ita+cpa", "all"]
trained = load_grid(run.root, run.profile, GRID_DIR, kind="terms")
grid = trained[trained["variant"].isin(order)]
written = {name: "ita+cta+cpa" if name == "all" else name for name in order}  # as in the paper
seeds = grid.groupby(["variant", "source"])["seed"].agg(lambda own: ", ".join(map(str, sorted(set(own)))))
pd.DataFrame({"what it trains": {name: VARIANTS[name].changes for name in order}}).join(
    seeds.rename("seeds").reset_index("source")
)

# %% [markdown]
# Numbers that come from somewhere else deserve a question. Which data, which machine, how long? The same profile, seed and
# version of the phantoms make the same table, byte for byte, and so the same hash. The cell holds the hash of the table that
# the committed cells were trained on against that of the table which *you* made in notebook 01.

# %%
cells = committed_cells(run.root, "terms")
precisions = sorted(set(cells["precision"]) - {""})
own_hash = run.studies("mimic_cxr").card.table_sha256
same = set(cells["data"]) == {own_hash}
seconds = cells["training_seconds"]
print(
    f"{len(cells)} trainings of {seconds.min():.0f} to {seconds.max():.0f} s, two at a time, one thread each, "
    f"on {' and '.join(sorted(cells['processor'].unique()))}{', in ' + ' and '.join(precisions) if precisions else ''}"
)
print("trained on", "the data that lie here" if same else "other phantoms than those here")

# %% [markdown]
# At another profile it says that the data are not those here, and so it would at `demo` if the drawing of phantoms had changed in the
# meantime. The variants may be held against each other all the same, because all of them had the same data. They must not
# be held against what notebooks 03 to 10 train or measure: those train three times as long.
#
# ## 4. The linear probe
#
# Before you run the next cell, look back at your guess: how wide will the intervals be, next to the steps of table 4?

# %%
datasets = {"CheXpert": "chexpert", "RSNA": "rsna"}
fractions = ("1%", "10%", "100%")
probes = {f"{label} {part}": f"probe/{name}/auroc/{part}" for label, name in datasets.items() for part in fractions}
found = {probe: over_seeds(grid, metric) for probe, metric in probes.items()}
pd.DataFrame(found, index=order).astype(str)

# %%
rows = {probe: {written[name]: vars(by[name]) for name in order if name in by} for probe, by in found.items()}
figure = figures.interval_dots(rows, value_label="AUROC, mean and 95 % t interval over seeds")
run.show(figure, "probe", "Linear probes on frozen features of four trainings, each repeated with three seeds.")

# %%
for probe, metric in probes.items():
    _, name, _, part = metric.split("/")
    for variant_name, cell in found[probe].items():
        run.record(f"ablation/{variant_name}/{name}/{part}/auroc", cell.as_metric())

# %% [markdown]
# Few seeds, and so few degrees of freedom, make wide intervals, and with the same share of labels wider ones on RSNA than on
# CheXpert. And they say what another *training* would do, hardly more: all seeds were tested on the same films, and the three draws of
# labelled films that a seed averages are in part those of the next seed. Now the comparison of section 2: differences to ITA alone, seed by seed. The sentence is written by the interval
# and by nothing else.


# %%
def compare(metrics, baseline):
    lines, dots = {}, {}
    for label, metric in metrics.items():
        for row in paired_differences(grid, baseline, metric).to_dict("records"):
            words = verdict(row["mean"], row["low"], row["high"])
            lines.setdefault(row["variant"], {})[label] = words
            if row["n"] > 1:
                dots.setdefault(label, {})[row["variant"]] = {key: row[key] for key in ("mean", "low", "high", "n")}
    dots = {label: {name: by[name] for name in order if name in by} for label, by in dots.items()}
    return pd.DataFrame(lines).T.reindex([name for name in order if name in lines]), dots


# %%
words, dots = compare(probes, "ita")
words

# %%
rows = {label: {written[name]: cell for name, cell in by.items()} for label, by in dots.items()}
figure = figures.interval_dots(rows, value_label="AUROC minus that of ITA alone", levels={"no difference": 0})
run.show(figure, "probe_differences", "What token and prototype alignment add to ITA, seed by seed: 95 % t intervals.")

# %%
for label, by in dots.items():
    for name, cell in by.items():
        _, dataset, _, part = probes[label].split("/")
        run.record(f"ablation/{name}-minus-ita/{dataset}/{part}/auroc", cell)

# %% [markdown]
# Read the sentences row by row. In the committed trainings, rows with tokens say *higher* at every share of CheXpert's labels and at
# all labels of RSNA, and prototypes alone never do. Is that "tokens help, prototypes do not"? Look at *RSNA 100%* in the figure: the
# mean of prototypes alone is no smaller than that of tokens, and only the wider interval turns *higher* into *no difference*. Two
# different sentences are not yet a difference between two terms. That takes an interval of its own (exercise 2).
#
# ## 5. What else the terms could be good for
#
# A linear probe reads the pooled vector of a film. Token alignment trains words and patches, prototype alignment trains
# groups of studies. It would be unfair to judge them by the probe alone. Before you run the next cell, say for each
# yardstick which term should move it.

# %%
others = {
    "report to image, R@5": "retrieval/t2i/r@5",
    "image to report, R@5": "retrieval/i2t/r@5",
    "k-means groups and findings, NMI": "prototypes/kmeans_nmi",
    "words point, hit rate": "grounding/all/pointing",
}
table = {label: over_seeds(grid, metric) for label, metric in others.items()}
pd.DataFrame(table, index=order).astype(str)

# %%
words, dots = compare(others, "ita")
for label, by in table.items():
    for name, cell in by.items():
        run.record(f"ablation/{name}/{others[label].replace('/', '_')}", cell.as_metric())
words

# %% [markdown]
# "No difference at this size" is a finding with a number in it: a difference larger than the one in brackets is not
# compatible with what we saw. It is not the sentence "the term does nothing". (Some intervals reach below 0: Student's $t$ does not
# know that a hit rate cannot.)
#
# Chance differs between yardsticks, and for pointing it is not zero: the next section draws it.
#
# ## 6. No help, or not put well?
#
# An ablation takes terms away. It cannot tell a term that is not needed from one that is not put well. CTA promises that a
# word finds its place on the film; if pointing does not tell trainings with it from trainings without, ask what it asks for.
#
# CTA lets each word compete with the *other words of its report*. The variant `cta_grounded` keeps the three terms, the
# weights between them and the attention of words over patches, and changes who competes: the films of the batch, for each report.
# [Notebook 15](15_grounding.ipynb) derives it, names what else of CTA goes with that (section 4), and shows on paper what each of
# the two rewards. It is one more row of the
# table, trained with the same seeds. **Guess before you run the next cells**: what will it do to the probe, which never
# reads a word, and what to pointing?

# %%
both = trained[trained["variant"].isin(["all", "cta_grounded"])]
chance = both[both["metric"].str.endswith("/chance")].groupby("metric")["value"].first()
rows = {}
for finding in ("all", *STATED):
    rows["all findings" if finding == "all" else finding] = by = {}
    by["chance"] = {"mean": chance[f"grounding/{finding}/chance"]}
    run.record(f"ablation/chance/{finding}/pointing", by["chance"]["mean"])
    for name, cell in over_seeds(both, f"grounding/{finding}/pointing", single=True).items():
        by[written.get(name, name)] = vars(cell)
        run.record(f"ablation/{name}/{finding}/pointing", cell.as_metric())
        print(f"{finding:18s}{written.get(name, name):14s}{cell}, {cell.mean / by['chance']['mean']:.1f} times chance")
figure = figures.interval_dots(rows, value_label="pointing game: hit rate, mean and 95 % t interval over seeds")
run.show(
    figure, "other_negatives", "Where words look after training with CTA and with contrast over films, by finding."
)

# %%
lines = {}
for label, metric in (probes | others).items():
    (row,) = paired_differences(both, "all", metric).to_dict("records")
    lines[label] = {written.get(name, name): str(cell) for name, cell in over_seeds(both, metric, single=True).items()}
    lines[label]["cta_grounded minus ita+cta+cpa"] = verdict(row["mean"], row["low"], row["high"])
    if row["n"] > 1:
        cell = {part: row[part] for part in ("mean", "low", "high", "n")}
        run.record(f"ablation/cta_grounded-minus-all/{metric.replace('/', '_')}", cell)
pd.DataFrame(lines).T

# %% [markdown]
# The same three terms, and one of them asks another question. Now words point: over all findings, at a consolidation and at an
# effusion the whole interval lies above chance. For a nodule three seeds leave it open. At a pneumothorax words still do not point (the
# interval lies a little below chance, even), and six passes are few (notebook 16 has longer trainings). Whoever had read off section 5
# that token alignment has nothing to do with place would have blamed the term for its wording.
#
# Is it free? Read the last column from top to bottom. On the probe no row can tell. These trainings were made twice, and the first time, in
# fp32 on another kind of processor, one of the ten rows said *lower*: contrast over films seemed to cost the probe something. It could have been
# a finding, with an explanation ready; the second set of trainings, with the same seeds, does not repeat it. So hold a single row loosely, and
# repeat before you explain. And whoever looks at the probe alone sees nothing of what has been won: *which yardstick* is as much a part of
# an ablation as *which row*.
#
# ## 7. How many seeds would it take?
#
# The half-width of the interval is $t_{n-1} \cdot s / \sqrt{n}$, and $s$ we have just seen. Take the scatter of the
# difference between all terms and ITA at 10 % of CheXpert's labels, and let $n$ grow. The dashed line is the difference
# that the paper prints for the same cell. Before you run it: how many trainings of each variant until the interval is
# narrower than that?

# %%
metric = "probe/chexpert/auroc/10%"
by_seed = grid[grid["metric"] == metric].pivot_table(index="seed", columns="variant", values="value")
scatter = float((by_seed["all"] - by_seed["ita"]).std(ddof=1))
counts = np.arange(2, 41)
width = stats.t.ppf(0.975, counts - 1) * scatter / np.sqrt(counts)
cell = published[(published["dataset"] == "CheXpert") & (published["fraction"] == "10%")].set_index("method")["value"]
step = (cell["ITA+CTA+CPA"] - cell["ITA"]) / 100

# %%
figure = figures.curves(
    counts, {"half-width": width}, x_label="seeds", y_label="AUROC", levels={"published difference": step}
)
run.show(figure, "seeds", "How far the interval of a difference reaches, by the number of seeds.")
enough = counts[width < step]
needed = int(enough[0]) if len(enough) else int(counts[-1])
print(
    f"scatter {scatter:.4f} within seeds; published difference {step:.3f}; seeds needed: {needed if len(enough) else f'more than {needed}'}"
)
run.record("ablation/scatter", scatter)
run.record("ablation/seeds_needed", needed)

# %% [markdown]
# So many seeds are the least. If the true difference were just the dashed line, the measured mean would fall below it in half of all
# repetitions, and the interval would then hold zero. To find such a difference four times in five takes about twice as many.
#
# The scatter of so few seeds is itself a rough number: with two degrees of freedom, the 95 % interval of the true one
# reaches from half of it to six times. And these are small models on phantoms; a full-size training may scatter less. But
# nobody can look that up, since the table has one training a row. *How large is your seed noise?* is a question you may put
# to any ablation.
#
# ## 8. A failure, looked at: the story that one seed tells
#
# Suppose you had the time for one seed only. Here is the order of the variants that you would have published, by seed.

# %%
ranks = by_seed[[name for name in order if name in by_seed]]
story = {seed: " > ".join(row.sort_values(ascending=False).index) for seed, row in ranks.iterrows()}
print(pd.Series(story, name="best to worst, CheXpert, 10 % of labels").to_string())
run.record("ablation/orders_seen", len(set(story.values())))

# %% [markdown]
# Each line would make a paragraph: "adding prototypes improves ...", "token alignment is essential ...". Where the lines
# disagree, at most one of these paragraphs is true, and you could not have known which.
#
# ## 9. What we showed, and what not
#
# **Shown.** Five trainings with three seeds each, compared within seeds, on two datasets at three fractions and on four
# other yardsticks; sentences that follow from intervals; a term whose wording decides what it is good for; what it would
# take to see a difference of the published size.
#
# **Not shown.** Anything about MIMIC-CXR or full-size encoders, or, where section 3 says that the data are others, about
# trainings on the phantoms that lie here. That a term is useless where nothing could be told: short trainings of small models on
# phantoms with few kinds of disease leave little room for it. Many comparisons were made at once; at 95 %, about one in twenty comparisons
# between *equals* says "higher" or "lower" all the same, so a few such sentences in a long table are no surprise.
#
# **Where it breaks.** Sharing a seed pairs the initial weights of what two variants have in common. It does not pair
# everything: a term that is off changes every gradient after the first step.

# %%
_ = run.finish(question="What does each alignment add?", headline="ablation/all/chexpert/10%/auroc")

# %% [markdown]
# ## Exercises
#
# **1. Recall.** Differences of .02, .04 and .06 over three seeds. Mean, $s$, and the ends of the interval?

# %%
my_low, my_high = None, None  # your numbers
right = t_interval([0.02, 0.04, 0.06])
answered = my_low is not None and my_high is not None
assert not answered or (abs(my_low - right.low) < 0.001 and abs(my_high - right.high) < 0.001), "not yet: s is .02"
print("right" if answered else "not answered yet")

# %% [markdown]
# **2. Modify.** Is it CTA or CPA? Until you answer, the cell holds `all` against `ita+cta`: what prototypes add on top of tokens. Choose the
# baseline and the row that answer the question: does ITA gain more by tokens than by prototypes?

# %%
my_baseline, my_row = None, None  # two of "ita", "ita+cta", "ita+cpa" and "all"
words, _ = compare(probes, my_baseline or "ita+cta")
answered = None not in (my_baseline, my_row)
wanted = {"ita+cta", "ita+cpa"}  # ITA stands in both, so their difference is that of the two terms
assert not answered or {my_baseline, my_row} == wanted, "not yet: what do the two differ by?"
print("right" if answered else "not answered yet")
words.reindex([my_row or "all"])

# %% [markdown]
# **3. Research.** Run more seeds, and see whether a sentence of section 4 changes. The cell checks that your folder has
# cells with seeds beyond the committed ones.

# %%
mine = grid[grid["source"] == "own"]
new = sorted(set(mine["seed"]) - set(cells["seed"]))
print(f"own seeds: {new}" if new else "no seeds of your own yet: make grid VARIANTS='ita all' SEEDS='45 46'")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# **1.** Mean .04, $s = .02$, half-width $4.303 \cdot .02 / \sqrt 3 = .0497$: from $-.010$ to $.090$. Three seeds that all
# agree in sign, and still no verdict.
#
# **2.** `my_baseline, my_row = "ita+cpa", "ita+cta"`, or the other way round. In the committed trainings tokens are ahead with 10 % and 100 % of
# CheXpert's labels, and nowhere else can it be told. At *RSNA 100%* the sentences of section 4 differ, and the terms cannot be told apart.
# Then hold the row that the cell had first, `all` against `ita+cta`, against `ita+cpa` minus `ita` in section 4: if terms simply added
# up, both would be the same difference.
#
# **3.** With five seeds $t$ falls from 4.303 to 2.776 and $\sqrt n$ grows by 1.29: the interval is half as wide if the
# scatter stays. Decide on the number of seeds *before* you look, or you will stop at the first verdict that you like.
#
# </details>
#
# ## References
#
# - Wang et al., *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning*,
#   NeurIPS 2022, arXiv 2210.06044, table 4.
# - Bouthillier et al., *Accounting for Variance in Machine Learning Benchmarks*, MLSys 2021.
# - Student, *The Probable Error of a Mean*, Biometrika 1908.
#
# **Next:** [15 Grounding](15_grounding.ipynb): is token alignment grounding, and what would make it so?
