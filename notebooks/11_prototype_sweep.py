# %% [markdown]
# # 11 · How many prototypes, and do they need their own loss?
#
# **After this notebook you can** (1) say why agreement with diseases rises with the number of clusters even where
# nothing was learned, take that out, and say how much room is left, (2) sweep the number of clusters on a frozen model
# without training anything,
# (3) tell what a feature queue changes about Sinkhorn's codes, and (4) read a grid of trainings: how many prototypes,
# with or without a queue, and against a model that was never told to cluster.
#
# - **First read** [05 Prototype alignment](05_prototype_alignment.ipynb) and
#   [08 Seeing prototypes](08_seeing_prototypes.ipynb).
# - **Time** `smoke` about 10 s, `demo` about a minute on two CPU cores, once notebook 06 has trained its model.
#   Section 6 reads a grid of trainings, one for each variant and seed, that is run separately.
# - **Data** the phantom MIMIC-CXR of notebook 01; labels are read to judge, never to train. The results of the grid.
# - **Departures from upstream** the paper sets $K = 500$ and shows no number for its clusters; the published code has
#   no queue.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project
GRID_DIR = ""  # cells of your own; empty: outputs/PROFILE/grid in the project
COUNTS = [4, 8, 16, 32, 64, 128]  # numbers of clusters to try on the frozen model

# %%
from mgca_lib.run import start_run

run = start_run("11_prototype_sweep", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %%
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_mutual_info_score, v_measure_score

from mgca_lib import figures
from mgca_lib.alignment import FeatureQueue, prototype_scores, sinkhorn
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.config import load_profile
from mgca_lib.data.pairs import PairImages
from mgca_lib.data.tasks import DISEASES, load_picture
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation import prototypes as analysis
from mgca_lib.evaluation.features import embed_pairs
from mgca_lib.evaluation.intervals import t_interval
from mgca_lib.grid_results import committed_cells, load_grid, paired_differences, verdict
from mgca_lib.model import build_model
from mgca_lib.pretrain import pretrain
from mgca_lib.variants import VARIANTS

pd.set_option("display.max_colwidth", None)  # sentences stand in tables below

# %% [markdown]
# ## 1. Guess first
#
# Prototype alignment (CPA) has one setting that nobody can look up: $K$, the number of prototypes. Two questions come
# before any tuning. Does it matter? And does the loss matter, or would k-means, run afterwards on the embeddings of a
# model *without* CPA, find the same heaps? These are the trainings that the last part compares:

# %%
named = ["all", *(name for name, variant in VARIANTS.items() if variant.group == "prototypes"), "ita+cta"]
pd.DataFrame({"what it changes": {name: VARIANTS[name].changes for name in named}})

# %% [markdown]
# Before you go on, write down the order of these five by how well their clusters agree with diseases, and whether you
# think the first and the last differ at all.
#
# ## 2. A score that rises by itself
#
# Four studies, two with edema (E) and two with a nodule (N), in three clusterings:
#
# | study | finding | good | crossed | alone |
# |---|---|---|---|---|
# | 1 | E | A | A | A |
# | 2 | E | A | B | B |
# | 3 | N | B | A | C |
# | 4 | N | B | B | D |
#
# Normalised mutual information is what clusters and findings tell about each other, over the mean of what each could
# tell: $\mathrm{NMI} = I / \tfrac12 (H_\text{cluster} + H_\text{finding})$, in bits. *Good*: $I = 1$, both entropies
# are 1, so NMI is 1. *Crossed*: knowing A or B says nothing, NMI is 0. And *alone*, where every study is a cluster of
# its own and nothing was grouped? **Purity** is the share of studies that carry the most frequent finding of their
# cluster. Work both out for *alone* before you run the cell.

# %%
finding_4 = np.array(["E", "E", "N", "N"])
by_hand = {"good": (1, 1), "crossed": (0, 1 / 2), "alone": (1 / ((2 + 1) / 2), 1)}
clusterings = {"good": [0, 0, 1, 1], "crossed": [0, 1, 0, 1], "alone": [0, 1, 2, 3]}
for name, (nmi, purity) in by_hand.items():
    found = analysis.cluster_agreement(np.array(clusterings[name]), finding_4, resamples=5)
    assert np.isclose(found.measures["nmi"].mean, nmi), "NMI by hand and library must agree"
    assert np.isclose(found.measures["purity"].mean, purity), "purity by hand and library must agree"
    assert np.isclose(found.v_measure.mean, v_measure_score(finding_4, clusterings[name]))
    print(f"{name:8s} NMI {nmi:.3f}, purity {purity:.3f}; findings shuffled: NMI {found.chance['nmi']:.3f}")

# %% [markdown]
# *Alone* has a purity of 1 and an NMI of two thirds, and it is no clustering. The last column shows the way out:
# shuffle the findings among the studies and measure again. *Alone* scores exactly the same with shuffled findings, so
# all of it is chance. (*Good* and *crossed* have clusters of the same sizes, so chance is the same for both: one third. A hundred shuffles
# come near it, no more. The **V-measure**, the harmonic mean of homogeneity and completeness, is this same NMI; the
# assertion holds the two against each other.)
#
# How fast does chance rise with real labels? No model is needed: below, test studies are dealt into $K$ clusters like
# cards.

# %%
studies = run.studies("mimic_cxr")
test = studies.split("test")
test = test.select(~test.table["study_id"].duplicated().to_numpy())  # one film a study: nobody votes twice
finding = np.char.lower(analysis.dominant_finding(test.labels(DISEASES), DISEASES))
patients = test.table["patient_id"].to_numpy()
print(f"{len(test)} test studies of {len(np.unique(patients))} patients, {len(np.unique(finding))} groups")

# %%
cards = {"NMI": [], "purity": []}
for count in COUNTS:
    dealt = analysis.cluster_agreement(np.arange(len(test)) % count, finding, resamples=2, seed=run.seed)
    for label, key in (("NMI", "nmi"), ("purity", "purity")):
        cards[label].append(dealt.chance[key])
        run.record(f"cards/{count}/{key}_shuffled", dealt.chance[key])
figure = figures.curves(COUNTS, cards, x_label="clusters K", y_label="agreement by chance", log_x=True)
run.show(figure, "chance", "NMI and purity of clusters that know nothing: both rise with the number of clusters.")
assert cards["NMI"] == sorted(cards["NMI"]), "chance rises with K"

# %% [markdown]
# Whoever compares $K = 16$ with $K = 128$ by NMI compares two points of *this* curve first of all. So from here on
# every number stands beside the one with shuffled findings **at the same clusters**, and we compare what is left.
#
# This takes the floor away, but not the ceiling. Look at *alone* once more: each of its clusters is pure, and its NMI is two thirds, not
# 1. Clusters that tell more than the finding lower NMI, since what they could tell is in the denominator. **Pure clusters** share all
# that findings hold, $I = H_\text{finding}$, so theirs is $H_\text{finding} / \tfrac12 (H_\text{cluster} + H_\text{finding})$. (Too few
# clusters cannot tell all of it: with less entropy than the findings, the most that they can share is $H_\text{cluster}$.) This is
# the ceiling, and it takes nothing but the sizes of clusters and findings.
#
# By hand for *alone*: 1 bit over $\tfrac12 (2 + 1)$ bits. **Before you run the next cell**: pure clusters as evenly full as the dealt
# cards. Draw their NMI over $K$ into the figure above. Where is the room between the two lines widest, and where is it gone?

# %%
ceiling_alone = analysis.agreement_ceiling(np.array(clusterings["alone"]), finding_4)
assert np.isclose(ceiling_alone["nmi"], by_hand["alone"][0]), "alone is pure, so it reaches its own ceiling"
tops = [analysis.agreement_ceiling(np.arange(len(test)) % count, finding)["nmi"] for count in COUNTS]
room = {"pure clusters": tops, "by chance": cards["NMI"]}
figure = figures.curves(COUNTS, room, dashed=["by chance"], x_label="clusters K", y_label="NMI", log_x=True)
run.show(figure, "room", "Between clusters that know nothing and pure ones: all the room that NMI has at each K.")
for count, top, floor in zip(COUNTS, tops, cards["NMI"], strict=True):
    run.record(f"cards/{count}/nmi_ceiling", top)
    print(f"K = {count:3d}: pure {top:.3f}, by chance {floor:.3f}, room {top - floor:.3f}")

# %% [markdown]
# A model cannot leave this room. With far more clusters than findings, even pure ones have little left above chance. So what is left
# compares two models at the **same** $K$; which $K$ is best, it cannot say.
#
# ## 3. The sweep that needs no training
#
# Take the model of notebook 06 as it is, embed training and test films, run k-means on the *training* embeddings for
# several $K$, and send each test film to its nearest centre. The centres play the part of prototypes that nobody
# trained. The same with the model before pretraining tells what pixels and architecture give for free.

# %%
trained = pretrain(run.config, studies, run.pretraining, seed=run.seed, resume=True)
print("trained here" if trained.trained else "found: the finished run of notebook 06")
model, tokenizer, _ = load_checkpoint(trained.best, device=run.device)
untrained = build_model(run.config, tokenizer, seed=run.seed).to(run.device)

# %%
train = studies.split("train")
kept = np.zeros(len(train), dtype=bool)
kept[np.random.default_rng(run.seed).permutation(len(train))[:2000]] = True  # more films move the centres little
sizes = run.config.model
transform = ImageTransform(sizes.stored_size, sizes.image_size)
parts = {"train": train.select(kept), "test": test}
pairs = {
    name: PairImages(part, tokenizer, transform, max_pieces=sizes.max_pieces, seed=run.seed)
    for name, part in parts.items()
}
embedded = {
    name: {split: embed_pairs(one, pairs[split]) for split in pairs}
    for name, one in (("pretrained", model), ("untrained", untrained))
}

# %% [markdown]
# One more care. Several studies may be of one patient. They look alike *and* share findings, so a cluster that knows the patient seems
# to know findings. From here on whole **patients** are shuffled: each gets all findings of another one with as many studies. (Where hardly
# anybody has as many, the next number joins in; the docstring of `shuffled_labels` says how.)
#
# Before you run the next cell, sketch two curves over $K$, for the pretrained model: its NMI, and its NMI above
# shuffled findings. Where do you expect the top of each, with floor and ceiling in mind? (In the table, `n` counts patients.)

# %%
counts = [count for count in COUNTS if count <= len(parts["train"])]
sweep, cluster_of = {}, {}
for name, split in embedded.items():
    for count in counts:
        centres = analysis.kmeans_prototypes(split["train"][0], count, seed=run.seed)
        cluster_of[name, count] = cluster = analysis.assign_prototypes(split["test"][0], centres).cluster
        sweep[name, count] = analysis.cluster_agreement(cluster, finding, groups=patients, seed=run.seed)
found = {
    f"{name}, K = {count}": {
        "in use": part.clusters,
        **{key: str(part.measures[key]) for key in ("nmi", "purity")},
        **{f"{key}, shuffled": round(part.chance[key], 3) for key in ("nmi", "purity")},
        "nmi, pure": round(part.ceiling["nmi"], 3),
    }
    for (name, count), part in sweep.items()
}
pd.DataFrame(found).T

# %% [markdown]
# How much does it matter *what* is shuffled? The same clusters, with the findings of single studies shuffled instead:

# %%
for name in embedded:
    torn = {"groups": patients, "shuffle_groups": False, "resamples": 2, "seed": run.seed}
    by_study = analysis.cluster_agreement(cluster_of[name, counts[-1]], finding, **torn).chance["nmi"]
    by_patient = sweep[name, counts[-1]].chance["nmi"]
    run.record(f"sweep/{name}/{counts[-1]}/nmi_shuffled_by_study", by_study)
    print(f"{name}, K = {counts[-1]}: NMI by chance {by_patient:.3f} over patients, {by_study:.3f} over studies")

# %%
lines, bands = {}, {}
for name in embedded:
    own = [sweep[name, count] for count in counts]
    lines[name] = [part.measures["nmi"].mean for part in own]
    bands[name] = ([part.measures["nmi"].low for part in own], [part.measures["nmi"].high for part in own])
    lines[f"{name}, shuffled"] = [part.chance["nmi"] for part in own]
    lines[f"{name}, pure"] = [part.ceiling["nmi"] for part in own]
controls = [name for name in lines if name.endswith(("shuffled", "pure"))]
figure = figures.curves(
    counts, lines, bands=bands, dashed=controls, x_label="clusters K", y_label="NMI with the finding", log_x=True
)
caption = (
    "NMI of k-means clusters over K, with intervals. Dashed below: findings shuffled; dashed above: pure clusters."
)
run.show(figure, "sweep", caption)

# %%
above, bands = {}, {}
for name in embedded:
    own = [sweep[name, count].above_chance("nmi") for count in counts]
    above[name] = [part.mean for part in own]
    bands[name] = ([part.low for part in own], [part.high for part in own])
    above[f"{name}, pure"] = [sweep[name, count].room("nmi") for count in counts]
pure = [f"{name}, pure" for name in embedded]
axes = {"x_label": "clusters K", "y_label": "NMI above shuffled", "log_x": True}
figure = figures.curves(counts, above, bands=bands, dashed=pure, levels={"chance": 0}, **axes)
run.show(figure, "sweep_above", "What is left of the NMI when chance is taken out, over K; dashed, of pure clusters.")

# %%
for (name, count), part in sweep.items():
    for key in ("nmi", "purity"):
        run.record(f"sweep/{name}/{count}/{key}", part.measures[key].as_metric())
        run.record(f"sweep/{name}/{count}/{key}_shuffled", part.chance[key])
        run.record(f"sweep/{name}/{count}/{key}_ceiling", part.ceiling[key])
    run.record(f"sweep/{name}/{count}/nmi_above_shuffled", part.above_chance("nmi").as_metric())

# %% [markdown]
# **Reading it.** Compare each solid line with its own dashed ones, never with the other end of the plot. The first
# figure mostly rises, the second need not: that difference is the lesson of section 2 on real embeddings. But where the second one falls
# towards large $K$, look at the dashed line above it: part of the fall is the ceiling coming down. Its top is not the best $K$.
#
# Which points differ at all? The two models were measured on the *same* studies, and so was each $K$. So take differences: draw
# patients with repeats, measure both clusterings on the same draw, and look at what is between them. Two intervals side by side leave
# that out, and are too cautious as a rule. **Before you run the next cells**: at which $K$ will the gain by pretraining be largest, and how
# many $K$ cannot be told from the one with the highest score?

# %%
same = {"groups": patients, "seed": run.seed}
for count in counts:
    both = (cluster_of[name, count] for name in ("pretrained", "untrained"))
    gain = analysis.agreement_difference(*both, finding, **same)
    run.record(f"sweep/pretrained_minus_untrained/{count}/nmi_above_shuffled", gain.as_metric())
    print(f"K = {count:3d}: pretrained minus untrained {gain}; {verdict(gain.mean, gain.low, gain.high)}")

# %%
for name in embedded:
    best = counts[int(np.argmax(above[name]))]
    run.record(f"sweep/{name}/highest", best)
    print(f"{name}: highest above chance at K = {best}, picked on these studies. Others minus this one:")
    for count in counts:
        if count != best:
            gap = analysis.agreement_difference(cluster_of[name, count], cluster_of[name, best], finding, **same)
            run.record(f"sweep/{name}/{count}/nmi_above_shuffled_minus_highest", gap.as_metric())
            print(f"   K = {count:3d}: {gap}; {'lower' if gap.high < 0 else 'not told from it'}")

# %% [markdown]
# In the second list, many lines "not told from it" mean that these test studies do not decide $K$ even by this score. Few do not
# mean that they do: the highest was **chosen on the same studies** that it is then measured on, because it came out highest. Part of its
# lead is luck, and no interval around a difference knows how it was chosen. The ceilings differ, too. And where a line holds 0 at every
# $K$, its highest point is noise. Picking the highest point anyway, on the studies that you report, is how a setting gets tuned to noise.
#
# ## 4. Trained prototypes beside k-means
#
# Now the prototypes that CPA did train, at the profile's $K$, beside k-means with the same $K$ on the same embeddings.
# **Which of the two will agree better with diseases?** k-means was never told anything about reports, but the
# embedding was.

# %%
size = len(model.prototypes)
image, report = embedded["pretrained"]["test"]
alignment = run.config.alignment
own = analysis.assign_prototypes(image, model.prototypes, temperature=alignment.prototype_temperature)
centres = analysis.kmeans_prototypes(embedded["pretrained"]["train"][0], min(size, len(parts["train"])), seed=run.seed)
both = {"prototypes": own.cluster, "k-means": analysis.assign_prototypes(image, centres).cluster}
agreement = {
    name: analysis.cluster_agreement(cluster, finding, groups=patients, seed=run.seed) for name, cluster in both.items()
}

# %%
for name, part in agreement.items():
    key = name.replace("-", "")
    run.record(f"prototypes/{key}/v_measure", part.v_measure.as_metric())
    run.record(f"prototypes/{key}/purity", part.measures["purity"].as_metric())
    run.record(f"prototypes/{key}/purity_shuffled", part.chance["purity"])
    run.record(f"prototypes/{key}/nmi_ceiling", part.ceiling["nmi"])
    run.record(f"prototypes/{key}/purity_above_shuffled", part.above_chance("purity").as_metric())
    run.record(f"prototypes/{key}/nmi_above_shuffled", part.above_chance("nmi").as_metric())
rows = {name: {k: vars(part.above_chance(k)) for k in ("nmi", "purity")} for name, part in agreement.items()}
scores = {measure: {name: rows[name][measure] for name in rows} for measure in ("nmi", "purity")}
figure = figures.interval_dots(scores, value_label=f"above shuffled findings, K = {size}", levels={"chance": 0})
run.show(figure, "same_k", "Trained prototypes and k-means on the same embeddings, both above shuffled findings.")

# %%
for name, part in agreement.items():
    print(
        f"{name:10s} {part.clusters:3d} of {size} in use, above shuffled {part.above_chance('nmi')}, room {part.room('nmi'):.3f}"
    )
for measure in ("nmi", "purity"):
    gap = analysis.agreement_difference(both["prototypes"], both["k-means"], finding, measure=measure, **same)
    run.record(f"prototypes/prototypes_minus_kmeans/{measure}_above_shuffled", gap.as_metric())
    print(f"{measure}, prototypes minus k-means, on the same draws {gap}; {verdict(gap.mean, gap.low, gap.high)}")

# %% [markdown]
# The figure has two intervals side by side, the last lines have the difference on the same draws of patients. Only the latter answer the
# question. And they answer it for this one model: another training draws another embedding.
#
# This compares two ways to *read* one embedding. It cannot say what CPA did to the embedding itself; for that, a model
# has to be trained without it. Section 6 does that.
#
# ## 5. What a queue is for, measured without training
#
# Sinkhorn makes all prototypes equally full **within the sample it sees**. A batch is a small sample: with fewer
# studies than prototypes, every study is pushed towards a prototype of its own, whatever it shows. A **feature queue** lends
# Sinkhorn past embeddings, so that it balances a larger sample; only the batch's own codes are used.
#
# What would the codes be if Sinkhorn saw all training films at once (those that section 3 kept)? We take that as the aim and ask how close
# the codes of one batch come, alone and with queues of several sizes. Closeness is the mass that two codes share,
# $\sum_k \min(q_k, q'_k)$: 1 for equal codes, 0 for none in common.
#
# Training shuffles, so batches are drawn from the films in random order here, too. In the order of the table, the films of one patient would
# stand together. Each queue is tried with the same batches.
#
# **Before you run the cell**: how close is a batch alone, and what queue will be long enough?

# %%
settings = {"epsilon": alignment.sinkhorn_epsilon, "iterations": alignment.sinkhorn_iterations}
embedding = embedded["pretrained"]["train"][0]
centres_now = model.prototypes.detach().cpu()
aim = sinkhorn(prototype_scores(embedding, centres_now), **settings)
batch = run.config.training.batch_size
queue_sizes = [0, *(length for length in (32, 128, 512, 1024) if length + batch <= len(embedding))]
starts = range(0, min(len(embedding), 10 * batch) - batch + 1, batch)
order = torch.from_numpy(np.random.default_rng(run.seed).permutation(len(embedding)))

# %%
shared = {}
for length in queue_sizes:
    queue = FeatureQueue(max(length, 1), embedding.shape[1])
    shared[length] = []
    for start in starts:
        now = order[start : start + batch]
        queue.push(embedding[order[(start + batch + torch.arange(length)) % len(order)]])
        sample = torch.cat([embedding[now], queue.stored()[:length]])
        codes = sinkhorn(prototype_scores(sample, centres_now), **settings)[:batch]
        shared[length].append(float(torch.minimum(codes, aim[now]).sum(dim=1).mean()))
overlap = {length: t_interval(values, bounds=(0, 1)) for length, values in shared.items()}
gains = {length: t_interval(np.subtract(values, shared[0])) for length, values in shared.items() if length}

# %%
lines = {"mass shared with the codes of all": [part.mean for part in overlap.values()]}
ends = tuple([getattr(part, end) for part in overlap.values()] for end in ("low", "high"))
figure = figures.curves(
    queue_sizes, lines, bands={next(iter(lines)): ends}, x_label="queue length", y_label="shared mass of codes"
)
run.show(figure, "queue", "How close the codes of one batch come to those of all training studies, by queue length.")
for length, part in overlap.items():
    run.record(f"queue/shared_mass/{length}", part.as_metric())
    print(f"batch of {batch} and a queue of {length:4d}: shared mass {part}")
for length, gain in gains.items():
    run.record(f"queue/shared_mass_minus_batch_alone/{length}", gain.as_metric())
    print(f"   queue of {length:4d} minus none, batch by batch: {gain}; {verdict(gain.mean, gain.low, gain.high)}")

# %% [markdown]
# A longer queue brings the codes closer to what all studies together would get, as it must, and the figure shows how
# the gain flattens. (`n` counts batches. The queues of two batches hold some of the same films, so the intervals are a little too narrow.)
# In training there is a price that this measurement leaves out: the queue holds embeddings of *earlier* weights, made by an encoder that
# has moved since. Whether closer codes
# make better clusters is a question for the grid.
#
# ## 6. The grid: trained, several seeds
#
# Each variant was trained from scratch with several seeds, the same seeds for all, and measured much as in section 4:
# agreement of its prototypes with findings on the test studies (`ita+cta` has none, so only k-means), agreement of
# k-means at the same $K$ as the variant, and agreement of k-means with 64 groups for all of them. Two things differ: here k-means finds its
# centres among the test studies themselves, and findings were shuffled between studies, not patients. Both are alike in all cells.
# Differences are taken within a seed, and get a t interval over the seeds.
#
# The grid takes longer than the whole course, so its results come with the project; cells that you ran take their place.
# A variant with no seeds in the first table has not been trained for the committed results and is missing below:
# `make grid VARIANTS="prototypes-16 prototypes-256 queue"` trains it.
#
# The next cell also says whether the committed cells were trained on the data that lie here. If not, because you are at
# another profile than `demo` or have made other data, hold them against each other only: their numbers are of other test
# studies than those of sections 3 to 5. (Standing lower than those means little in any case: the trainings of the grid are a
# third as long.)

# %%
grid = load_grid(run.root, run.profile, GRID_DIR, kind="switches")
grid = grid[grid["variant"].isin(named)]
here = set(committed_cells(run.root, "switches")["data"]) == {studies.card.table_sha256}
print("committed cells were trained on", "the data that lie here" if here else "other phantoms than those here")
grid.groupby(["variant", "source"])["seed"].nunique().unstack().reindex(named).fillna(0).astype(int)

# %%
wide = grid.pivot_table(index=["variant", "seed"], columns="metric", values="value")
committed = bool((grid["source"] == "committed").all())
own_number = (load_profile("demo") if committed else run.config).alignment.num_prototypes
groups_of = {name: VARIANTS[name].settings.get("num_prototypes", own_number) for name in named}
has_64 = np.array([groups_of[name] == 64 for name in wide.index.get_level_values("variant")])
for part in ("nmi", "nmi_shuffled"):  # where 64 is a variant's own number, both are the same measurement
    with_64, with_own = f"prototypes/kmeans_64/{part}", f"prototypes/kmeans_{part}"
    if {with_64, with_own} <= set(wide):
        wide[with_64] = wide[with_64].fillna(wide[with_own].where(has_64))

# %%
measured = {"nmi": "nmi", "kmeans_nmi": "kmeans_nmi", "kmeans_64_nmi": "kmeans_64/nmi"}
for short, name in measured.items():
    if {f"prototypes/{name}", f"prototypes/{name}_shuffled"} <= set(wide):
        wide[f"{short} above shuffled"] = wide[f"prototypes/{name}"] - wide[f"prototypes/{name}_shuffled"]
purity = ("prototypes/purity", "prototypes/purity_shuffled")  # the second in new cells only
shown = [name for name in (*(f"{short} above shuffled" for short in measured), *purity) if name in wide]
for variant, row in wide[shown].groupby("variant").mean().iterrows():
    for name, value in row.dropna().items():
        run.record(f"grid/{variant}/{name.replace(' ', '_').replace('/', '_')}", float(value))
wide[shown].groupby("variant").mean().reindex([n for n in named if n in wide.index.unique("variant")]).round(3)

# %%
measures = {
    "prototypes": "nmi above shuffled",
    "k-means": "kmeans_nmi above shuffled",
    "k-means, 64 groups": "kmeans_64_nmi above shuffled",
}
scores = {}
for label, column in measures.items():
    for variant, values in wide[column].dropna().groupby("variant") if column in wide else ():
        cell = vars(t_interval(values)) if len(values) > 1 else {"mean": float(values.iloc[0])}
        scores.setdefault(variant, {})[label] = cell
scores = {name: scores[name] for name in named if name in scores}
if scores:
    figure = figures.interval_dots(scores, value_label="NMI above shuffled findings", levels={"chance": 0})
    run.show(figure, "grid", "Agreement with findings above chance, by variant: means and t intervals over seeds.")

# %% [markdown]
# Dots of different rows stand in one figure only because chance was taken out: `prototypes-16` and `prototypes-256` have
# very different chance levels. They have different ceilings, too (section 2), so blue and orange dots are best compared between rows of the
# same $K$: `all`, `queue` and `ita+cta`. The green ones have 64 groups in every row. (Where 64 is the variant's own $K$, orange and green are
# one measurement, shown twice.) In the table, purity is left as it is, chance included: it rises with $K$. (Cells that you train have the
# chance beside it; those that come with the project do not.)
#
# Now the differences to `all`. The sentence follows from the interval and from nothing else: if it holds 0, no difference is shown, and we
# say how large a difference could hide. There are about a dozen lines: of twenty intervals around nothing, one misses 0.

# %%
long = wide.rename_axis(columns="metric").stack().rename("value").reset_index() if len(wide) else grid
verdicts = {}
for label, column in measures.items():
    if "all" not in set(long.loc[long["metric"] == column, "variant"]):
        continue
    for row in paired_differences(long, "all", column).to_dict("records"):
        line = verdicts.setdefault(f"{row['variant']}, {label}", {"difference": f"{row['mean']:+.3f}"})
        line["against all"] = verdict(row["mean"], row["low"], row["high"])
        if row["n"] > 1:
            line["difference"] += f" ({row['low']:+.3f} to {row['high']:+.3f})"
            key = f"grid/{row['variant']}/{column.replace(' ', '_')}_minus_all"
            run.record(key, {part: row[part] for part in ("mean", "low", "high", "n")})
pd.DataFrame(verdicts, dtype=str).T

# %%
ends = ("prototypes-16", "prototypes-256")
if set(ends) <= set(long.loc[long["metric"] == measures["prototypes"], "variant"]):
    row = paired_differences(long, ends[1], measures["prototypes"]).set_index("variant").loc[ends[0]]
    print(f"{ends[0]} against {ends[1]}, prototypes: {verdict(row['mean'], row['low'], row['high'])}")
    if row["n"] > 1:
        cell = {part: row[part] for part in ("mean", "low", "high", "n")}
        run.record("grid/prototypes-16/nmi_above_shuffled_minus_prototypes-256", cell)

# %% [markdown]
# Hold your order of section 1 against the table.
#
# - **How many?** Rows `prototypes-16` and `prototypes-256`, for prototypes. If neither differs from `all`, look at
#   the bounds: they may be as wide as the whole effect. And look at the last line, which holds the two ends against each other:
#   two neighbours that cannot be told from the middle may still be told apart. If one does differ, ask about the ceiling before you praise
#   the number. Their k-means rows say little about training: k-means gets the $K$ of
#   its variant, and section 3 showed on *one* frozen model that this alone moves the number. The rows with 64 groups for all
#   mend that: same algorithm, same number of groups, so what is left is what training with 16 or 256 prototypes did to the
#   embedding. (Hold a verdict of "higher" against the level in the figure: a difference may be clear of 0 and too small to matter.)
# - **Batch or queue?** Row `queue`. Section 5 showed that a queue changes the codes; this row says whether anybody
#   notices.
# - **A loss of their own?** Row `ita+cta`, k-means. It is the fair comparison: the same algorithm at the same $K$, on an
#   embedding with and without CPA. If the verdict is "no difference", nothing shows that the heaps need CPA: image and report alone
#   made heaps that these seeds cannot tell from CPA's. Compare the bound with the level in the figure before you say that CPA
#   does nothing: most of the effect could hide in it. If `ita+cta` is *higher*, CPA's demand for equally full heaps costs something, since
#   diseases are not equally frequent.
#
# ## 7. Look inside
#
# Numbers say how much, not what. Back to this run: the largest prototypes of the model of notebook 06, with the films *and* the
# reports nearest to each (in brackets, how many test films chose it). **Before you read the captions**, go along a row: what do the films
# share? Do the reports name it?

# %%
filled = np.bincount(own.cluster, minlength=size)
largest = np.argsort(-filled, kind="stable")[:5]
films, _ = analysis.nearest_members(image, model.prototypes[largest], count=min(4, len(test)))
texts, _ = analysis.nearest_members(report, model.prototypes[largest], count=min(3, len(test)))
sentences = test.table["sentences"]
figure = figures.prototype_grid(
    [[np.asarray(load_picture(test, row)) for row in rows] for rows in films],
    [[str(finding[row]) for row in rows] for rows in films],
    [f"{number}\n({filled[number]})" for number in largest],
    reports=[[(str(finding[row]), " ".join(sentences.iat[row])) for row in rows] for rows in texts],
)
run.show(figure, "nearest", "The films and reports nearest to the largest prototypes, with their dominant findings.")

# %% [markdown]
# The captions know findings only. A row whose films carry different captions may still share something, such as a device or the view;
# section 7 of [08 Seeing prototypes](08_seeing_prototypes.ipynb) measures these two. And a finding that a report merely suspects does
# not count as present, so "no finding" may stand over a report that names one.
#
# ## 8. A failure, looked at: films and reports that part
#
# A prototype is meant to be one thing for both modalities. Which one is that least? For every prototype that several
# films and several reports chose, we compare the mix of findings among its films with the mix among its reports.

# %%
by_report = analysis.assign_prototypes(report, model.prototypes).cluster
groups = np.unique(finding)


def parted(names):
    apart = {}
    for number in range(size):
        mine = [names[own.cluster == number], names[by_report == number]]
        if min(map(len, mine)) >= (5 if len(test) > 100 else 1):
            shares = [np.array([(part == name).mean() for name in groups]) for part in mine]
            apart[number] = 1 - np.minimum(*shares).sum()
    return apart


parting = parted(finding)
print(f"{len(parting)} of {size} prototypes are chosen by films and by reports often enough to compare")

# %%
if parting:
    worst = max(parting, key=parting.get)
    mix = {
        name: pd.Series(finding[cluster == worst]).value_counts()
        for name, cluster in (("films", own.cluster), ("reports", by_report))
    }
    print(f"prototype {worst}: {parting[worst]:.0%} of the mix differs")
    print(pd.DataFrame(mix).fillna(0).astype(int))
    dealt = analysis.shuffled_labels(finding, groups=patients, seed=run.seed)
    by_luck = [max(parted(names).values()) for names in dealt]
    print(
        f"the worst with findings shuffled: {np.mean(by_luck):.0%} on average, {np.quantile(by_luck, 0.05):.0%} or more as a rule"
    )
run.record("prototypes/comparable", len(parting))

# %% [markdown]
# The worst of many prototypes with a handful of films each differs a good deal by luck. The shuffled line says how much, where findings have
# nothing to do with prototypes. Above it, the prototype sits between two crowds. Below it, nothing has been shown, either way: shuffled
# mixes hold all findings and so part far, and a real one may part a good deal and still stay below.
#
# The loss is content if a study's image and report choose *similar*
# codes; it never asks that the films near a prototype and the reports near it speak of the same disease. Where no
# prototype can be compared at all, most are chosen by one modality only: a gap between the two that notebook 08 draws.
#
# ## 9. What we showed, and what not
#
# **Shown.** Agreement rises with $K$ by chance, on paper and on real labels, while the ceiling falls; a sweep of $K$ on a frozen model
# between shuffled findings and pure clusters; how far a queue moves Sinkhorn's codes; all comparisons as paired differences, within
# the same patients, batches or seeds.
#
# **Not shown.** Which $K$ is best: the score has less room the larger $K$ is. And these are labels for eight diseases, each with a sharp
# vocabulary that real reports do not have. The shuffled level counts as known, and its own error is left out of the intervals. In the
# grid, findings were shuffled between studies, not patients, so that what studies of one patient have in common counts as agreement
# there. A t interval over few seeds is wide, and "no difference at this size" is not "no difference".
#
# **Where it breaks.** One finding a study. With large $K$ a test cluster holds a handful of films, and its purity is
# luck. k-means in section 3 looks at images only.

# %%
_ = run.finish(
    question="How many prototypes, and do they need their own loss?",
    headline="prototypes/prototypes/nmi_above_shuffled",
)

# %% [markdown]
# ## Exercises
#
# **1. Recall.** Eight studies, four findings with two studies each, every study a cluster of its own. What is the NMI?

# %%
my_nmi = None  # your number
eight = np.repeat(list("abcd"), 2)
alone = analysis.cluster_agreement(np.arange(8), eight, resamples=5)
assert my_nmi is None or abs(my_nmi - alone.measures["nmi"].mean) < 0.005, "not yet: entropies of 3 and 2 bits"
print("not answered yet" if my_nmi is None else "right")

# %% [markdown]
# **2. Modify.** There is a formula for chance: adjusted mutual information, $(I - E[I]) / (\bar H - E[I])$, where
# $\bar H$ is the mean entropy and $E[I]$ the mean over all shuffles of single studies. Put "NMI above shuffled" on the same scale, with
# single studies shuffled, too. Do the two ever part by more than .02 at any of the `counts`? Say yes or no, and why, before the cell does.

# %%
my_answer = None  # "yes" or "no"
gaps = {}
for count in counts if my_answer else ():
    cluster = cluster_of["pretrained", count]
    part = analysis.cluster_agreement(cluster, finding, resamples=2, permutations=2000, seed=run.seed)
    rescaled = part.above_chance("nmi").mean / (1 - part.chance["nmi"])
    gaps[count] = abs(adjusted_mutual_info_score(finding, cluster) - rescaled)
found = "yes" if max(gaps.values(), default=0) > 0.02 else "no"
assert my_answer in (None, found), f"not yet: the largest gap is {max(gaps.values()):.3f}; what does a shuffle change?"
print("not answered yet" if my_answer is None else "right")

# %% [markdown]
# **3. Research.** Sinkhorn asks for equally full prototypes, diseases are not equally frequent. `sinkhorn_epsilon` sets
# how sharp its codes are: a small one gives each study to one prototype, a large one shares it out, and then filling all prototypes
# equally costs nothing. Train `all` at a larger and a smaller value over three seeds, and compare NMI above shuffled, paired
# by seed. The cell prepares the settings and checks that one thing changes. (That is nine trainings, each
# as long as notebook 06.) Put the interval of one difference in.

# %%
my_difference = None  # (low, high): another value minus 0.05, over your seeds
my_configs = {value: run.config.override(sinkhorn_epsilon=value) for value in (0.02, 0.05, 0.2)}
for value, config in my_configs.items():
    back = config.override(sinkhorn_epsilon=alignment.sinkhorn_epsilon)
    assert back == run.config, "change one thing at a time"
    codes = sinkhorn(prototype_scores(embedding[:batch], centres_now), epsilon=value)
    print(f"epsilon {value}: the surest prototype of a code holds {codes.max(dim=1).values.mean():.2f} on average")
low, high = my_difference or (0, 0)
assert low <= high, "low first"
print("not answered yet" if my_difference is None else "shown" if low > 0 or high < 0 else "not shown")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# **1.** $I = 2$ bits, entropies 3 and 2, so NMI $= 2 / 2.5 = 0.8$. Shuffled findings give 0.8, too.
#
# **2.** No. Shuffling changes neither entropy, so dividing the formula by $\bar H$, above and below, gives
# (NMI - chance) / (1 - chance), with the exact mean over all shuffles for chance; ours is the mean of two thousand. And neither of them
# takes out the ceiling: the 1 in the denominator is a value that many clusters cannot reach. `average_method="min"` puts the ceiling
# there: then the score is `above_chance("nmi").mean / room("nmi")`, the share of the room.
#
# **3.** Large values blur the codes until every study belongs everywhere, small ones make each batch a lottery for places. Every value and
# seed needs a folder of its own:
#
# ```python
# from mgca_lib.grid import measure_prototypes
#
# rows = []
# for value, config in my_configs.items():
#     for seed in (42, 43, 44):
#         done = pretrain(config, studies, run.output_dir / f"epsilon_{value}" / f"seed-{seed}", seed=seed, resume=True)
#         found = measure_prototypes(*load_checkpoint(done.best, device=run.device)[:2], test, findings=DISEASES, seed=seed)
#         score = found["prototypes/nmi"].mean - found["prototypes/nmi_shuffled"]
#         rows.append((str(value), seed, "nmi above shuffled", score))
# trained = pd.DataFrame(rows, columns=["variant", "seed", "metric", "value"])
# paired_differences(trained, "0.05", "nmi above shuffled")
# ```
#
# Report the interval, whatever it says.
#
# </details>
#
# ## References
#
# - Wang et al., *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning*,
#   NeurIPS 2022, arXiv 2210.06044, section 3.4.
# - Caron et al., *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments* (SwAV), NeurIPS 2020:
#   swapped prediction, Sinkhorn and the queue.
# - Rosenberg and Hirschberg, *V-Measure*, EMNLP 2007.
# - Vinh, Epps and Bailey, *Information Theoretic Measures for Clusterings Comparison*, JMLR 2010: correction for chance.
#
# **Next:** [12 Upstream's quirks](12_upstream_quirks.ipynb): what are the published code's deviations worth?
