# %% [markdown]
# # 07 · Linear probe: what can be read off frozen features with few labels?
#
# **After this notebook you can** (1) explain and write a linear probe, and say why the encoder stays frozen,
# (2) compute an AUROC by hand and choose the right interval for it, (3) compare a pretrained encoder with an
# untrained one fairly, and name three ways in which such a comparison misleads.
#
# - **First read** [06 Pretraining](06_pretraining.ipynb), whose encoder is judged here.
# - **Time** `smoke` under 20 seconds, `demo` one to two minutes on two CPU cores with a trained encoder at hand;
#   `paper` is mostly the time to encode some 230,000 films once.
# - **Data** three downstream datasets that the encoder never saw: CheXpert, RSNA and COVIDx, as phantoms; with
#   `paper`, the real ones.
# - **Departures from upstream** features are extracted once and the probe is fitted exactly; every result has an
#   interval; every draw of labels holds a positive film of each class. Section 9 runs the published recipe.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/07_linear_probe in the project
LABEL_DRAWS = 5  # so many times the labelled films are drawn anew
UPSTREAM_EPOCHS = 25  # section 9 only: epochs of the published recipe (published: 50)

# %%
from mgca_lib.run import start_run

run = start_run("07_linear_probe", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. A probe on paper
#
# Pretraining turned films into vectors. Are they *good* vectors? A loss cannot tell, so we ask a question with a
# use: if a hospital has labels for a handful of films, how well can the others be sorted?
#
# The probe must be weak. A strong classifier could learn the disease by itself, and its success would say nothing
# about the features. So we allow one thing only: a weighted sum of the features, and a threshold. A **linear
# probe** asks whether a disease lies *along a direction* of the feature space.
#
# Below, 48 made-up films with two features each; 24 to learn from, 24 to check. Those with an effusion lie further
# to the upper right.

# %%
import numpy as np

rng = np.random.default_rng(run.seed)
has_effusion = np.arange(48) % 2
two_features = rng.normal(size=(48, 2)) + np.outer(has_effusion, [1.6, 1.0])
x, y = two_features[:24], has_effusion[:24]
x[:4].round(2)

# %% [markdown]
# A logistic regression gives each film the probability $\hat y = \sigma(w^\top x + b)$ and looks for the $w$ and $b$
# with the least cross-entropy, plus a penalty $\frac{\lambda}{2}\lVert w \rVert^2$ that keeps $w$ short when labels are few.
# The gradient is so simple that gradient descent takes four lines: prediction minus truth, times the feature.

# %%
x = (x - x.mean(axis=0)) / x.std(axis=0)


def fit_probe(x, y, strength, steps=3000):
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(steps):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - 0.5 * (x.T @ error / len(x) + strength * w), b - 0.5 * error.mean()
    return w, b


for strength in (1.0, 0.1, 0.001):
    print(f"lambda = {strength:6.3f}: w = {fit_probe(x, y, strength)[0].round(3)}")

# %% [markdown]
# The stronger the penalty, the shorter $w$: the probe stays humble. Which strength is right? The library's twin,
# `linear_probe`, tries up to seven, the strongest first, and keeps the one with the least loss on *validation* films. We let it choose, and then
# run our four lines with its choice. Both must agree.

# %%
from mgca_lib.data.tasks import Task
from mgca_lib.evaluation.features import Features
from mgca_lib.evaluation.linear_probe import linear_probe

toy_task = Task("toy", "multilabel", ("Pleural Effusion",), "auroc")
parts = np.split(two_features.astype(np.float32), 2), np.split(has_effusion[:, None].astype(np.float32), 2)
learn, check = (Features(*part, tuple(map(str, range(24)))) for part in zip(*parts, strict=True))
# the films it learned from are its test films, too: we compare its outputs with ours
toy_probe = linear_probe(learn, check, learn, task=toy_task, fraction=1.0, seeds=[0])
print(f"chosen lambda: {toy_probe.strengths[0]}")

# %%
w, b = fit_probe(x, y, toy_probe.strengths[0])
difference = np.abs(x @ w + b - toy_probe.outputs[0][:, 0]).max()
assert difference < 0.01, "four lines and the library disagree"
print(f"largest difference between the logits: {difference:.5f}")

# %%
from mgca_lib import figures

picture = figures.embedding_maps({"two features": x}, np.where(y, "pleural effusion", "no finding"), legend="film")
edge = np.array([-2.5, 2.5])
picture.axes[0].plot(edge, -(b + w[0] * edge) / w[1], color=figures.INK, linewidth=1.2)
picture.axes[0].set(xlim=edge, ylim=edge, xlabel="first feature", ylabel="second feature")
run.show(
    picture, "toy", "A linear probe is one straight line: effusions should lie on one side, the others on the other."
)

# %% [markdown]
# ## 2. The encoders under test
#
# Three ways to turn a film into a vector, probed in exactly the same manner:
#
# - **mgca**: the image encoder that notebook 06 pretrained. The features are taken *before* the projection head.
# - **random**: the same architecture with the very weights pretraining started from. It has never seen a film.
#   What a probe can read off it comes from the architecture alone.
# - **thumbnail**: no network at all, the film shrunk to 16 by 16 grey values. If this does as well, then the task
#   needs no understanding, and a high score of the others proves little.

# %%
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.pretrain import pretrain

trained = pretrain(run.config, run.studies("mimic_cxr"), run.pretraining, seed=run.seed, resume=True)
print("pretrained now" if trained.trained else "found the finished run of notebook 06")
pretrained = load_checkpoint(trained.best, device=run.device)[0].image_encoder

# %%
from dataclasses import replace

import torch

from mgca_lib.encoders import build_image_encoder
from mgca_lib.evaluation.features import Thumbnail

torch.manual_seed(run.seed)  # pretraining drew its first weights with this seed
untrained = build_image_encoder(replace(run.config.model, backbone_weights=False)).to(run.device)
thumbnail = Thumbnail(16)
encoders = {"random": untrained, "thumbnail": thumbnail, "mgca": pretrained}
print(f"features: {pretrained.feature_dim} from both networks, {16 * 16} from the thumbnail")

# %% [markdown]
# ### Why frozen, and what freezing means
#
# If the encoder were trained along with the probe, its weights would move towards the task and we would measure
# *fine-tuning*: a useful thing, but another question. Frozen means more than "no gradient", though. These networks
# contain BatchNorm, which in training mode subtracts the mean *of the current batch*. The features of a film would
# then depend on its neighbours.
#
# **Before you run the next cell**, decide: if one film is encoded with two different sets of neighbours, in which
# mode do its features stay the same?

# %%
import copy

from mgca_lib.data.tasks import TASKS, TaskImages
from mgca_lib.data.transforms import ImageTransform

transform = ImageTransform(run.config.model.stored_size, run.config.model.image_size)
datasets = {name: run.studies(name) for name in TASKS}
films = TaskImages(datasets["rsna"].split("train"), TASKS["rsna"], transform)
batch = torch.stack([films[row][0] for row in range(16)]).to(run.device)

# %%
for mode in ("train", "eval"):
    encoder = getattr(copy.deepcopy(pretrained), mode)()  # a copy: training mode also changes running means
    with torch.no_grad():
        with_these, with_others = encoder(batch[:8]).pooled[0], encoder(torch.cat([batch[:1], batch[9:]])).pooled[0]
    print(f"{mode:5s} mode: the first film's features move by up to {(with_these - with_others).abs().max():.4f}")

# %% [markdown]
# In `train` mode the same film has two different descriptions; in `eval` mode its features do not depend on the
# neighbours (what remains is rounding). A probe on features that shift with the batch would be measured on sand.
# `extract_features` therefore switches to eval mode, and back afterwards. (Vision transformers use LayerNorm,
# which never looks at neighbours. Dropout is the reason to switch them to eval mode all the same.)

# %% [markdown]
# ## 3. Encode once, probe often
#
# Frozen features of a fixed film are always the same, so they are computed once and kept. The danger of every cache is
# the day on which it is out of date. Here the file name is a hash over the weights, the architecture, the table and
# image files, the task and the preprocessing: change any of them, and the old file is no longer found.
#
# **Before you run the next cell**, predict the number of files after each of the three calls.

# %%
import tempfile
import time
from pathlib import Path

from mgca_lib.evaluation.features import extract_features

nudged = copy.deepcopy(pretrained)
with torch.no_grad():
    next(nudged.parameters()).mul_(1.001)  # the weights of the first layer only
with tempfile.TemporaryDirectory() as folder:
    for name, encoder in (("first call", pretrained), ("same again", pretrained), ("weights nudged", nudged)):
        started = time.perf_counter()
        extract_features(encoder, films, cache_dir=folder)
        took = time.perf_counter() - started
        print(f"{name:18s}{took:6.2f} s   {len(list(Path(folder).iterdir()))} file(s)")

# %% [markdown]
# A miss, a hit, and a miss again: weights that differ by a thousandth are another encoder. Now all films of all three
# datasets through all three encoders, with a cache in this notebook's output folder.


# %%
def frozen_features(encoder, name):
    parts = [TaskImages(datasets[name].split(split), TASKS[name], transform) for split in ("train", "valid", "test")]
    settings = {"cache_dir": run.output_dir / "features", "num_workers": run.config.training.workers}
    return [extract_features(encoder, part, **settings) for part in parts]


features = {(name, method): frozen_features(encoder, name) for name in TASKS for method, encoder in encoders.items()}
for name in TASKS:
    sizes_of = zip(features[name, "mgca"], ("train", "valid", "test"), strict=True)
    print(f"{name:10s}", *(f"{len(part):6d} {split}" for part, split in sizes_of))

# %% [markdown]
# ## 4. What one per cent means
#
# *One per cent of the labels* sounds abstract. **Before you run the next cell**, write down how many films with an
# edema a probe on 1 % of the CheXpert labels gets to see.

# %%
import pandas as pd

from mgca_lib.evaluation.linear_probe import draw_labels

FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0}
seeds = [1000 * run.seed + number for number in range(LABEL_DRAWS)]  # no two seeds of the course share a draw
targets = features["chexpert", "mgca"][0].targets
drawn = {
    label: draw_labels(targets, TASKS["chexpert"], fraction=share, seed=seeds[0]) for label, share in FRACTIONS.items()
}
counts = {label: (targets[rows] == 1).sum(axis=0) for label, rows in drawn.items()}
table = pd.DataFrame(counts, index=TASKS["chexpert"].classes)
table.loc["films in all"] = {label: len(rows) for label, rows in drawn.items()}
table

# %% [markdown]
# With so few positives it matters *which* films were drawn. Drawing blindly can even leave a class without any
# positive film, and then there is nothing to fit. `draw_labels` guarantees one film of each value of each class; where the
# share asks for fewer films than that, it draws more. The draws nest: the 1 % lie within the 10 % of the same seed,
# and all encoders get the same films.

# %%
assert set(drawn["1%"]) <= set(drawn["10%"]) <= set(drawn["100%"]), "the draws do not nest"
assert (table["1%"] >= 1).all(), "a class without a positive film"
print(f"{LABEL_DRAWS} draws of 1 % share on average", end=" ")
draws = [set(draw_labels(targets, TASKS["chexpert"], fraction=0.01, seed=seed)) for seed in seeds]
print(f"{np.mean([len(a & b) for i, a in enumerate(draws) for b in draws[:i]]):.1f} films with each other")

# %% [markdown]
# One thing is not scarce here: the strength $\lambda$ is chosen on *all* validation films, at every share, as in the published
# recipe. A hospital with so few labels has no such split, so read 1 % as the best case.
#
# ## 5. AUROC by hand
#
# Accuracy is a poor score for a rare disease: whoever never says "effusion" is right most of the time. The **AUROC** asks
# another question: take one film with the disease and one without. How often does the first get the higher output?
# One half is guessing, one is perfect, and the prevalence does not matter.
#
# Six cases, three with the disease. **Before you run the cell**, count on paper in how many of the nine pairs
# the diseased film wins.

# %%
outputs = np.array([2.1, 0.3, -0.5, 1.2, -1.0, 0.3])
disease = np.array([1, 1, 1, 0, 0, 0])
wins = [(p > n) + 0.5 * (p == n) for p in outputs[disease == 1] for n in outputs[disease == 0]]
print(f"{sum(wins)} of {len(wins)} pairs; a tie counts half")

# %%
from mgca_lib.evaluation.linear_probe import score

by_library = score(outputs[:, None], disease[:, None].astype(np.float32), toy_task)[0]
assert abs(sum(wins) / len(wins) - by_library) < 1e-12, "counting pairs and the library disagree"
print(f"by hand {sum(wins) / len(wins):.4f}, by the library {by_library:.4f}")

# %% [markdown]
# Three tasks, two kinds:
#
# - **CheXpert and RSNA are multilabel**: a film may show edema *and* an effusion, so each class has a yes or no of its own,
#   and one AUROC. The **macro average** is the plain mean over classes; the rare class counts as much as the
#   frequent one.
# - **COVIDx is multiclass**: exactly one of normal, pneumonia, COVID-19. The probe picks the largest of three outputs,
#   and the score is accuracy. Its chance level is not one half but the share of the largest class.

# %%
chance = dict.fromkeys(TASKS, 0.5)
covidx_test = features["covidx", "mgca"][2].targets
chance["covidx"] = np.bincount(covidx_test).max() / len(covidx_test)
print(f"COVIDx, always saying {TASKS['covidx'].classes[np.bincount(covidx_test).argmax()]!r}: {chance['covidx']:.2f}")

# %% [markdown]
# ## 6. One number, two kinds of doubt
#
# A score is uncertain for two reasons. Other *labelled films* could have been drawn, and other *test films* could have
# come. These are different questions with different intervals:
#
# - over **label draws**: what would another hospital, with another handful of labels, have reached?
# - over **test patients**, by the bootstrap: how exactly does this test set measure this one probe? Whole patients are
#   drawn, since films of one patient resemble each other.
#
# **Before you run the next cell**: which of the two is wider at 1 %?

# %%
patients = {name: datasets[name].split("test").table["patient_id"].tolist() for name in TASKS}
parts, task = features["chexpert", "mgca"], TASKS["chexpert"]
over_draws = linear_probe(*parts, task=task, fraction=0.01, seeds=seeds)
over_cases = linear_probe(*parts, task=task, fraction=0.01, seeds=seeds[:1], groups=patients["chexpert"])
for probe in (over_draws, over_cases):
    units = "test patients" if probe is over_cases else "label draws"
    print(f"{probe.mean:.3f} ({probe.low:.3f} to {probe.high:.3f}), n = {probe.n} {units}")
print("single draws:", *(f"{value:.3f}" for value in over_draws.values))

# %% [markdown]
# Neither interval contains the other doubt, and they are not even about the same number: the first surrounds the mean
# over all draws, the second the score of one draw, the first in the list. If that draw was an unlucky one, a narrow
# interval surrounds a score that other labels would not give. With few labels the luck of the draw is what a reader
# should know, so the table below shows intervals over draws at 1 % and 10 %. At 100 % there is only one draw, and the
# interval is one over test patients. A third doubt, another *pretraining* run, is in neither: repeat the course with other
# seeds for that.

# %% [markdown]
# ## 7. The table
#
# The paper's table 1 in miniature: three datasets, three shares of labels, three encoders.
#
# **Before you run the next cell**, write down two guesses for CheXpert: by how much does *mgca* beat *random* at 1 %, and
# does the distance grow or shrink towards 100 %?

# %%
probes = {
    (name, label, method): linear_probe(
        *features[name, method], task=TASKS[name], fraction=share, seeds=seeds, groups=patients[name]
    )
    for name in TASKS
    for label, share in FRACTIONS.items()
    for method in encoders
}
cells = {key: f"{probe.mean:.3f} ({probe.low:.3f} to {probe.high:.3f})" for key, probe in probes.items()}
pd.Series(cells).unstack()[list(encoders)].reindex([(name, label) for name in TASKS for label in FRACTIONS])

# %%
from mgca_lib.evaluation.paper_tables import published_probes

names = {"chexpert": "CheXpert", "rsna": "RSNA", "covidx": "COVIDx"}
metric = {"CheXpert": "macro AUROC", "RSNA": "AUROC", "COVIDx": "accuracy"}
published = published_probes({"random": "Random Init", "mgca": "MGCA (ViT-B/16)"})
bars = figures.probe_bars(
    {
        title: {label: {method: probes[name, label, method].as_metric() for method in encoders} for label in FRACTIONS}
        for name, title in names.items()
    },
    published={title: published[name] for name, title in names.items()},
    metric=metric,
    chance={title: chance[name] for name, title in names.items()},
)
run.show(
    bars,
    "table_1",
    "Score over the share of labels for three encoders; diamonds: the paper's own numbers. Whiskers: 95 %, over draws of the "
    "labels at 1 % and 10 %, over test patients at 100 %, so their widths do not compare.",
)

# %% [markdown]
# **How to read the figure.** The bars stand on chance, so a bar that is empty, or hangs below the line, has learned nothing
# that carries over to the test films, and one whose interval reaches down to the line is not shown to have. Compare
# the blue bars with the grey ones *within* one share of labels, then follow one colour from left to right. The paper's claim is
# in the left group: pretraining is worth most where labels are few.
#
# The diamonds are the published numbers, and **their height must not be compared with the bars.** Phantoms are not X-rays:
# drawn disease is cleaner than real disease, the labels have less noise, the encoder is some
# seventy times smaller and saw some forty times fewer pairs. What may be compared is the *pattern*: who is ahead, and how
# the distance changes with the share of labels.

# %%
from mgca_lib.evaluation.linear_probe import probe_gain

gains = {
    (name, label): probe_gain(
        probes[name, label, "mgca"],
        probes[name, label, "random"],
        features[name, "mgca"][2].targets,
        TASKS[name],
        groups=patients[name],
    )
    for name in TASKS
    for label in FRACTIONS
}
paper = {(n, label): published[n][label]["mgca"] - published[n][label]["random"] for n in TASKS for label in FRACTIONS}
pd.DataFrame({"gain here": {key: str(gain) for key, gain in gains.items()}, "gain in the paper": paper}).round(3)

# %% [markdown]
# The gains are *paired*: each draw of labels gives one difference between two encoders that saw the same films, and
# the interval is one over these differences. (At 100 % both encoders are scored on the same redrawn test patients.) Luck
# that moves both encoders alike cancels. How much of it was shared is a thing to check: hold the interval of a gain against
# those of its two scores in the table. Where it is clearly wider than either, little was shared; a draw that suited one
# encoder did not suit the other, and pairing cancelled little. It is still the right interval, since it assumes neither.
#
# ### The claim of this course, and the measurement
#
# The course claims that on the phantom CheXpert pretraining is worth at least 0.15 AUROC at 1 % of the labels and 0.10 at
# 10 % (`demo`, mean over draws). The cell compares, and says so if the claim does not hold.

# %%
bands = {"1%": 0.15, "10%": 0.10}
for label, least in bands.items():
    gain = gains["chexpert", label]
    verdict = "holds" if gain.mean >= least else "does not hold in this run"
    print(f"CheXpert {label:>4s}: gain {gain}; claimed at least {least:.2f}: {verdict}")
if PROFILE == "demo":
    assert gains["chexpert", "1%"].mean > 0.03, "pretraining did not help at all: look at notebook 06 first"

# %% [markdown]
# In the paper's table the gain on CheXpert *shrinks* as labels grow, since with many labels even a poor description
# can be read. Check whether your column does the same, dataset by dataset. Before you explain a gain that grows instead, see
# whether the intervals allow it to be luck. If they do not, there are two usual reasons, and the table of scores
# tells them apart. Where *mgca* itself starts close to chance, the smallest share is too small even for good features. Where
# *random* stays close to chance with all the labels, it is limited by its features rather than by labels. Both can
# be true of one dataset.

# %% [markdown]
# ## 8. Behind the average
#
# ### Class by class
#
# A macro average of five classes can hide one that got worse. **Before you run the next cell**, guess: which of the five
# findings gains most, and which least? Think of what each looks like: a wide heart, a white lung base, a faint
# haze, a small band.

# %%
classes = TASKS["chexpert"].classes
by_class = {
    name: [
        probes["chexpert", label, "mgca"].per_class[name] - probes["chexpert", label, "random"].per_class[name]
        for label in FRACTIONS
    ]
    for name in classes
    if all(name in probes["chexpert", label, method].per_class for label in FRACTIONS for method in ("mgca", "random"))
}
lines = figures.curves(
    [100 * share for share in FRACTIONS.values()],
    by_class,
    x_label="share of training labels (%)",
    y_label="gain in AUROC, mgca over random",
    log_x=True,
    levels={"no gain": 0.0},
)
run.show(
    lines,
    "gain_per_class",
    "What pretraining adds differs from finding to finding; below the dashed line it does harm.",
)

# %%
everywhere = {
    (name, label, item): probes[name, label, "mgca"].per_class[item]
    - probes[name, label, "random"].per_class.get(item, np.nan)
    for name, label, _ in probes
    for item in probes[name, label, "mgca"].per_class
}
ranked = pd.Series(everywhere).dropna().sort_values()
recalls = ranked.index.get_level_values(0) == "covidx"  # of single classes; all others are AUROCs
for what, own in (("AUROC", ranked[~recalls]), ("recall", ranked[recalls])):
    print(f"{what}, where pretraining helped least:")
    print(own.head(3).round(3).to_string())
    print("and where most:")
    print(own.tail(3).round(3).to_string(), "\n")

# %% [markdown]
# Hold the figure against your guess, and trust only wide gaps in it: the lines are means without intervals, and they may
# swap places from one share to the next.
#
# **The failure case.** Look at the first rows of both rankings. Where the number is near zero or negative, an encoder that
# has read thousands of reports did no better on that class than one that has never seen a film.
#
# For COVIDx the rows are recalls of single classes, the share of a class's films that are named correctly. They move further than an AUROC does, and up as easily as down. A
# drop there can be a mere trade: a probe that answers "COVID-19" to nearly everything has a high recall in it and knows nothing; a
# better one says it less often, loses recall there and wins it elsewhere. A class at the bottom of their ranking and another
# at its top, at the same share of labels, are the mark of such a trade. The accuracy above says whether it paid.
#
# For CheXpert and RSNA the rows are AUROCs, and three reasons are usual. The class is so rare that the score is mostly
# luck. The reports hardly mention the finding, so no text could teach it. Or the contrast that decides is finer than a
# patch of the small input, and neither encoder can see it.

# %% [markdown]
# ### Is it the lung, or the hospital?
#
# A network may score well for a bad reason. In real COVID data, positives came from other hospitals than
# negatives, and classifiers learned the hospital. Two checks.
#
# The first is the *thumbnail* column of the table. **Look at it again**: where it stands level with *mgca*, the task
# can be solved from coarse brightness. Where it stands above *random*, the untrained network has lost part of even that; it is
# then a soft opponent, and the thumbnail the harder one to beat.

# %%
for name in TASKS:
    lead = probe_gain(
        probes[name, "10%", "mgca"], probes[name, "10%", "thumbnail"], features[name, "mgca"][2].targets, TASKS[name]
    )
    verdict = "ahead of" if lead.low > 0 else "behind" if lead.high < 0 else "not clearly different from"
    print(f"{name:9s} 10%: mgca is {verdict} the thumbnail, difference {lead}")

# %% [markdown]
# The second check probes for the hospital itself. The datasets are three hospitals with machines, patients and bedside habits of
# their own.
# The same features, another question: which hospital is this film from? **Guess first**: chance is one in three.

# %%
hospital = Task("hospital", "multiclass", tuple(TASKS), "accuracy")


def hospital_features(method, split):
    parts = [features[name, method][split].values for name in TASKS]
    count = min(map(len, parts))  # as many films of each, or the largest dataset would be a good guess
    numbers = np.repeat(np.arange(3), count)
    return Features(np.concatenate([part[:count] for part in parts]), numbers, tuple(map(str, range(3 * count))))


for method in encoders:
    origin = linear_probe(
        *(hospital_features(method, split) for split in range(3)), task=hospital, fraction=0.1, seeds=seeds
    )
    run.record(f"hospital/accuracy/10%/{method}", origin.as_metric())
    print(
        f"{method:10s} names the hospital in {origin.mean:.0%} of films ({origin.low:.0%} to {origin.high:.0%}), chance 33%"
    )

# %% [markdown]
# Look at the thumbnail's line first: as far as it gets, the mark of the hospital is coarse brightness, and no network was needed
# to find it. Part of that is no cheat, since hospitals differ in what they treat: a white lung is coarse brightness, too. (A
# cleaner test would name the hospital among films without a finding.) If the hospital can be read off the features, then any task whose labels differ between hospitals can be "solved"
# by reading the hospital. Within one dataset this does no harm, and all probes above stay within one. Mixing
# datasets is where it bites: collect the diseased films in one place and the healthy ones in another, and the
# score will be splendid and worthless.
#
# A fair probe of a shift is the other way round: train the pneumonia probe in one hospital, and test it in another.

# %%
from mgca_lib.evaluation.intervals import bootstrap_interval
from mgca_lib.evaluation.linear_probe import rank_auroc

pneumonia = Task("chexpert", "multilabel", ("Pneumonia",), "auroc")


def pneumonia_features(method, split, part):
    labels = TaskImages(datasets["chexpert"].split(split), pneumonia, transform).targets.numpy()
    return replace(features["chexpert", method][part], targets=labels)


def auroc_difference(here, there, ill):
    return bootstrap_interval(
        lambda rows: rank_auroc(here[rows], ill[rows] == 1) - rank_auroc(there[rows], ill[rows] == 1),
        len(ill),
        groups=patients["rsna"],
    )


# %%
for method in encoders:
    away = [pneumonia_features(method, "train", 0), pneumonia_features(method, "valid", 1)]
    asked = {"task": pneumonia, "fraction": 1.0, "seeds": seeds[:1], "groups": patients["rsna"]}
    travelled = linear_probe(*away, features["rsna", method][2], **asked)
    home = probes["rsna", "100%", method]
    price = auroc_difference(
        home.outputs[0][:, 0], travelled.outputs[0][:, 0], features["rsna", method][2].targets[:, 0]
    )
    run.record(f"rsna/auroc/from_chexpert/{method}", travelled.as_metric())
    run.record(f"rsna/auroc/price_of_travel/{method}", price.as_metric())
    print(f"{method:10s} RSNA: trained at home {home.mean:.3f}, on CheXpert {travelled.mean:.3f}, price {price}")

# %% [markdown]
# Is there a price of travelling at all? Both probes are scored on the same films, so the price is a paired difference. Where its
# interval holds zero, this test split shows none; and features that hardly tell pneumonia at home have little to lose. Where
# there is a price, it has parts that this number cannot separate: another machine, and another *definition*.
# CheXpert's "Pneumonia" was read from reports, RSNA's was drawn as boxes by radiologists. And the number of labelled
# films differs too: CheXpert has more of them, which may pay some of the price back.

# %% [markdown]
# ## 9. The published recipe
#
# The authors did not fit an exact probe on stored features. They train a linear layer with AdamW (learning rate 5e-4, batch
# 48, at most 50 epochs, patience 10) on randomly cropped films that pass the frozen encoder again in every epoch, always with
# the same labelled films, and judge the epoch with the least validation loss. `protocol="upstream"` does the same.
#
# Two of its details do not scale down. It drops incomplete batches, so with fewer than 48 labelled films it would
# train on nothing; the cell keeps them and uses a smaller batch. And a learning rate of 5e-4 needs many steps, which tens of
# films do not give.
#
# **Before you run the cell**: will it come out above or below the exact probe?

# %%
from mgca_lib.evaluation.linear_probe import UpstreamRecipe

recipe = (
    UpstreamRecipe() if PROFILE == "paper" else UpstreamRecipe(batch_size=12, epochs=UPSTREAM_EPOCHS, drop_last=False)
)
rsna = datasets["rsna"]
cropped = TaskImages(rsna.split("train"), TASKS["rsna"], replace(transform, augmentation="crop"))
held_out = [TaskImages(rsna.split(split), TASKS["rsna"], transform) for split in ("valid", "test")]
settings = {"task": TASKS["rsna"], "fraction": 0.1, "seeds": seeds[:1], "groups": patients["rsna"]}
published_way = linear_probe(cropped, *held_out, protocol="upstream", encoder=pretrained, recipe=recipe, **settings)
exact = linear_probe(*features["rsna", "mgca"], **settings)

# %%
for name, probe in (("exact", exact), ("published recipe", published_way)):
    print(
        f"{name:17s} {probe.mean:.3f} ({probe.low:.3f} to {probe.high:.3f}) on {len(probe.subsets[0])} labelled films"
    )
print(f"best epoch of the published recipe: {published_way.strengths[0]:.0f} of at most {recipe.epochs}")
ill = features["rsna", "mgca"][2].targets[:, 0]
ahead = auroc_difference(exact.outputs[0][:, 0], published_way.outputs[0][:, 0], ill)
run.record("rsna/auroc/10%/exact_less_upstream_recipe", ahead.as_metric())
print(f"exact less published recipe, on the same test patients: {ahead}")

# %% [markdown]
# Both probes are scored on the same test patients, so the last line is a paired difference: where its interval holds zero, neither
# is shown to be the better one. But each is one draw of labels, and the draws differ, which no interval over patients
# knows. The line on the best epoch says more. If it is the last one, the
# published recipe was stopped before it had converged, and a higher `UPSTREAM_EPOCHS` might still change its score. That
# is the practical argument for the exact probe: it has no learning rate and no number of epochs to get wrong. The argument
# for the recipe is that its crops show each labelled film in many versions, which exactness cannot replace, and that
# its numbers are the ones in the paper's table. To settle it, run both on the same films, over several draws.

# %% [markdown]
# ## 10. Look at the errors
#
# A number is an average over films, so look at some. Below: RSNA films *without* pneumonia that the probe (10 % of the labels)
# ranks highest, and films *with* pneumonia that it ranks lowest. RSNA says more about each film than the label we used: those
# without pneumonia are either normal or "not normal" in some other way. On the phantoms, a tube or a wire is enough
# for "not normal".
#
# **Before you look**: what should a false alarm show, if the probe has learned *something dense in the lung* rather
# than pneumonia?

# %%
from mgca_lib.data.tasks import load_picture
from mgca_lib.evaluation.intervals import wilson_interval

test = datasets["rsna"].split("test")
ranking = probes["rsna", "10%", "mgca"].outputs[0][:, 0]
truth = features["rsna", "mgca"][2].targets[:, 0] == 1
kinds = np.array(["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"])
kind = kinds[test.labels(kinds).argmax(axis=1)]
alarms = [row for row in np.argsort(-ranking) if not truth[row]][:4]
misses = [row for row in np.argsort(ranking) if truth[row]][:4]

# %%
short = {"Normal": "normal", "No Lung Opacity / Not Normal": "other finding", "Lung Opacity": "pneumonia"}
shown = [*alarms, *misses]
titles = [f"{'false alarm' if row in alarms else 'missed'}: {short[kind[row]]}" for row in shown]
grid = figures.image_grid([np.asarray(load_picture(test, row)) for row in shown], titles)
run.show(grid, "errors", "RSNA films on which the probe errs most: false alarms above, missed pneumonias below.")

# %%
negatives = np.flatnonzero(~truth)
ordered = negatives[np.argsort(-ranking[negatives])]
top, others = np.split(ordered, [max(1, len(ordered) // 5)])
for name, rows in (("the highest-ranked fifth without pneumonia", top), ("the other four fifths", others)):
    print(f"{name:42s} share with another finding {wilson_interval((kind[rows] == kinds[1]).sum(), len(rows))}")
told = bootstrap_interval(
    lambda rows: rank_auroc(ranking[negatives][rows], kind[negatives][rows] == kinds[1]),
    len(negatives),
    groups=np.array(patients["rsna"])[negatives],
)
run.record("rsna/other_finding_ranked_above_normal/10%/mgca", told.as_metric())
print(f"of two films without pneumonia, the one with another finding ranks above the normal one: {told}, chance 0.5")

# %% [markdown]
# Read the intervals first: two dozen films say little. The last line asks all films without pneumonia at once, as an AUROC does: where its
# interval lies above one half, false alarms are not random, and the probe mistakes *other findings* for pneumonia more readily than
# health. If those are other diseases, that is a mild kind of error, though the AUROC counts it like any other.
#
# Look at the pictures once more before you call it mild. Do the false alarms show tubes, electrodes or a pacemaker, and the
# missed films none? Sick patients carry more of them, so a probe may rank high what goes *with* disease rather than disease: a
# shortcut, like the hospital in section 8. Eight chosen films cannot prove it; a count over all test films could.
#
# The missed films deserve the longer look: small, faint, or hidden behind heart and diaphragm? On the films, the patient's left
# is on your right.

# %% [markdown]
# ## 11. What we showed, and what we did not
#
# **Showed.** With the same probe, the same labelled films and the same test films, pretrained features can be compared with
# untrained ones, with an interval for the difference. Section 7 prints whether the course's claim held in this run.
#
# **Did not show.** That this works on real films: phantoms are drawn, and their reports follow from the drawing. That the three
# alignment terms are each needed: that takes ablations with several pretraining seeds. That a probe is the best use of
# the encoder: fine-tuning usually beats it once labels are many.
#
# **Where it breaks.** At 1 % of a small dataset the score is mostly luck of the draw; the test split of RSNA here is small. An
# average can hide a class that got worse. And features that know the hospital will cheat for you whenever labels and
# hospitals go together.

# %%
for (name, label, method), probe in probes.items():
    run.record(f"{name}/{TASKS[name].metric}/{label}/{method}", probe.as_metric())
for (name, label), gain in gains.items():
    run.record(f"{name}/{TASKS[name].metric}/{label}/gain", gain.as_metric())
run.record("rsna/auroc/10%/mgca_upstream_recipe", published_way.as_metric())
run.finish(question="What can be read off frozen features with few labels?", headline="chexpert/auroc/1%/gain").name

# %% [markdown]
# ## 12. Exercises
#
# **1. Recall.** Four films, outputs 0.9, 0.4, 0.6, 0.1; the first two have the disease. What is the AUROC?

# %%
my_auroc = None  # your number
right = score(np.array([[0.9], [0.4], [0.6], [0.1]]), np.array([[1.0], [1.0], [0.0], [0.0]]), toy_task)[0]
assert my_auroc in (None, right), "not yet: how many of the four pairs of a sick and a healthy film are in order?"
print("not answered yet" if my_auroc is None else "right")

# %% [markdown]
# <details><summary>Solution</summary>
#
# Four pairs: 0.9 beats 0.6 and 0.1, 0.4 beats 0.1 and loses to 0.6. Three of four, 0.75.
# </details>
#
# **2. Modify.** Is the untrained encoder a fair opponent? Its BatchNorm layers have never seen a film, so in eval mode
# they subtract nothing. Let the BatchNorm statistics of a copy see some films in training mode (no weight changes), and probe it
# again. The cell is ready to do so, at all three shares: say how many batches of 16 training films it shall see, more than one. (A
# vision transformer has no BatchNorm, and nothing to warm up.)

# %%
my_batches = None  # how many
assert my_batches is None or 1 < my_batches <= len(films) // 16, f"not yet: from 2 to {len(films) // 16} batches"
order = np.random.default_rng(run.seed).permutation(len(films))
warmed = copy.deepcopy(untrained).train()
with torch.no_grad():
    for start in range(0, 16 * (my_batches or 0), 16):
        warmed(torch.stack([films[row][0] for row in order[start : start + 16]]).to(run.device))

# %%
if my_batches is None:
    print("not answered yet")
else:
    warm_features = frozen_features(warmed, "rsna")
    has_statistics = any(name.endswith("running_mean") for name, _ in untrained.named_buffers())
    changed = not np.allclose(warm_features[2].values, features["rsna", "random"][2].values)
    assert changed == has_statistics, "BatchNorm statistics should change the features, and nothing else should"
    truth_of = warm_features[2].targets
    for label, share in FRACTIONS.items():
        asked = {"task": TASKS["rsna"], "fraction": share, "seeds": seeds, "groups": patients["rsna"]}
        cold, warm = probes["rsna", label, "random"], linear_probe(*warm_features, **asked)
        gain = probe_gain(warm, cold, truth_of, TASKS["rsna"], groups=patients["rsna"])
        print(f"RSNA {label:>4s}: untrained {cold.mean:.3f}, warmed up {warm.mean:.3f}, difference {gain}")
    print("right")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `my_batches = len(films) // 16`, every film once. The probe
# standardises features anyway, so what changes is not their scale but which ReLUs are open. Report the fairer of the two as
# the baseline, whichever way it comes out. The difference is paired; where its interval holds zero, neither is shown to be fairer.
# </details>
#
# **3. Research.** How many labels is pretraining worth? Find the share of labels at which *random* reaches what
# *mgca* reaches at 1 %, with an interval. The check wants a share of CheXpert's labels, 1.0 if even all do not suffice, and holds
# it against the three shares that were tried.

# %%
my_share = None  # between 0 and 1
goal = probes["chexpert", "1%", "mgca"].mean
by_share = {share: probes["chexpert", label, "random"].mean for label, share in FRACTIONS.items()}
most = min((share for share, reached in by_share.items() if reached >= goal), default=1.0)
least = max((share for share in by_share if share < most), default=0.0)
assert my_share is None or least <= my_share <= most, "not yet: the table of section 7 says otherwise"
print(f"goal {goal:.3f};", "not answered yet" if my_share is None else "right, as far as three shares can tell")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Probe *random* at ten shares between 0.01 and 1 on a logarithmic scale with `linear_probe`, draw it with `figures.curves(...,
# log_x=True)`, and interpolate. The interval: repeat for every seed, and take `t_interval` of the logarithms. If the curve of
# *random* ends below the goal, there is nothing to interpolate: say "more labels than there are". Then ask the same of
# *thumbnail*.
# </details>

# %% [markdown]
# ## 13. References and the next notebook
#
# - Wang, Zhou, Wang, Vardhanabhuti, Yu. Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
#   Representation Learning. NeurIPS 2022, arXiv 2210.06044. The published numbers are those of its table 1.
#
# The features sort films that nobody sorted for them. But did the *prototypes*, the third alignment, become diseases?
# Next: [08 Seeing prototypes](08_seeing_prototypes.ipynb).
