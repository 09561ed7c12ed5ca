# %% [markdown]
# # 08 · Seeing prototypes: are prototypes diseases?
#
# **After this notebook you can** (1) draw a figure like the paper's figure 4 and say what t-SNE and UMAP can and
# cannot show, (2) measure how well clusters agree with diseases, against chance and against two controls,
# (3) look into single prototypes and tell a disease from a projection, a device or a habit of writing.
#
# - **First read** [05 Prototype alignment](05_prototype_alignment.ipynb) and [06 Pretraining](06_pretraining.ipynb).
# - **Time** `smoke` under 20 seconds, `demo` about a minute on two CPU cores with the trained model at hand; `paper` a few
#   minutes more than it takes to encode the test split.
# - **Data** the test studies of the phantom MIMIC-CXR; with `paper`, the real ones. Their labels took
#   no part in training and are read only to judge.
# - **Departures from upstream** MIMIC's test split took no part in model selection; every measure has an interval, a
#   chance level and an untrained control. The paper shows the map without numbers.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/08_seeing_prototypes in the project
SHOWN = 6  # so many prototypes are looked at closely

# %%
from mgca_lib.run import start_run

run = start_run("08_seeing_prototypes", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. From a vector to a prototype
#
# Prototype alignment (CPA) trained $K$ unit vectors $c_1 \dots c_K$, the prototypes, in the space that images and reports
# share. Nobody told them what to become. The hope in the paper is that each gathers the studies of one disease,
# across patients and across the two modalities.
#
# A study belongs to a prototype with probability $\mathrm{softmax}_k(v_i^\top c_k / \tau_3)$, and we say that it *is* at the most
# probable one. Three prototypes and four studies in the plane: **which study goes where?** Decide before you run the cell.

# %%
import numpy as np
import torch

prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
studies = torch.tensor([[0.9, 0.1], [0.5, 0.6], [-0.7, 0.2], [0.6, 0.5]])
logits = torch.nn.functional.normalize(studies, dim=1) @ prototypes.T / 0.2  # tau_3
by_hand = logits.softmax(dim=1)
by_hand.numpy().round(2)

# %%
from mgca_lib.evaluation.prototypes import assign_prototypes

twin = assign_prototypes(studies, prototypes, temperature=0.2)
assert (twin.cluster == by_hand.argmax(dim=1).numpy()).all(), "the assignment differs"
assert np.allclose(twin.probability, by_hand.max(dim=1).values), "the probabilities differ"
print("prototype of each study:", twin.cluster, " sureness:", twin.probability.round(2))

# %% [markdown]
# The second and fourth studies lie close to each other, at the border between two prototypes, and are told apart. A hard
# assignment always draws such borders. Keep this in mind when a map looks tidy.

# %% [markdown]
# ## 2. The real thing
#
# The trained model comes from notebook 06. The control is the same model before pretraining. We embed the test studies,
# with one film a study, so that a study with two films does not vote twice.

# %%
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.model import build_model
from mgca_lib.pretrain import pretrain

trained = pretrain(run.config, run.studies("mimic_cxr"), run.pretraining, seed=run.seed, resume=True)
print("pretrained now" if trained.trained else "found the finished run of notebook 06")
model, tokenizer, _ = load_checkpoint(trained.best, device=run.device)
untrained = build_model(run.config, tokenizer, seed=run.seed).to(run.device)

# %%
from mgca_lib.data.pairs import PairImages
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.features import embed_pairs

test = run.studies("mimic_cxr").split("test")
test = test.select(~test.table["study_id"].duplicated().to_numpy())
transform = ImageTransform(run.config.model.stored_size, run.config.model.image_size)
pairs = PairImages(test, tokenizer, transform, max_pieces=run.config.model.max_pieces, seed=run.seed)
image, report = embed_pairs(model, pairs)
image_before, report_before = embed_pairs(untrained, pairs)
print(f"{len(test)} studies of {test.table['patient_id'].nunique()} patients; K = {len(model.prototypes)} prototypes")

# %% [markdown]
# ### How many prototypes are used?
#
# Sinkhorn spread the *codes* evenly during training, batch by batch. That does not force the *assignments* to be even on new
# studies. **Before you run the next cell**, guess how many prototypes have no study at all.

# %%
of_image = assign_prototypes(image, model.prototypes, temperature=run.config.alignment.prototype_temperature)
of_report = assign_prototypes(report, model.prototypes, temperature=run.config.alignment.prototype_temperature)
sizes = {
    name: np.bincount(part.cluster, minlength=len(model.prototypes))
    for name, part in (("image", of_image), ("report", of_report))
}
for name, size in sizes.items():
    share = size[size > 0] / size.sum()
    even = np.exp(-(share * np.log(share)).sum())
    print(f"{name:7s}{(size > 0).sum():4d} of {len(size)} prototypes used; as even as {even:.1f} equally full ones")

# %%
from mgca_lib import figures

usage = figures.curves(
    range(1, len(model.prototypes) + 1),
    {name: np.sort(size)[::-1] for name, size in sizes.items()},
    x_label="prototypes, largest first",
    y_label="studies",
    levels={"even share": len(test) / len(model.prototypes)},
)
run.show(
    usage,
    "usage",
    "How many test studies each prototype gets, from images and from reports; evenness would be the dashed line.",
)

# %% [markdown]
# "As even as so many equally full ones" is the exponential of the entropy: with all studies at one prototype it is 1, with an even
# spread it is $K$. An unused prototype is not a mistake by itself. There are more prototypes than diseases here, on
# purpose: the paper has 500 of them, for fourteen labels.

# %% [markdown]
# ## 3. One label a study
#
# To ask whether prototypes are diseases we need a disease for each study. MIMIC's labels were read from the reports by a
# program: each of fourteen is present, absent, uncertain, or not mentioned. Two difficulties, and what we do:
#
# - **Several findings at once.** A map can show one colour. We take the *rarest* finding present, since it tells
#   most about the study. Other choices are possible, and exercise 2 tries one.
# - **Labels that are no diseases.** "Support Devices" and "Lung Opacity" (an umbrella term) would drown the others. We keep
#   eight findings.

# %%
import pandas as pd

from mgca_lib.data.tasks import DISEASES
from mgca_lib.evaluation.prototypes import dominant_finding

FINDINGS = list(DISEASES)
labels = test.labels(FINDINGS)
finding = np.char.lower(dominant_finding(labels, FINDINGS))
several = (labels == 1).sum(axis=1) > 1
print(f"{several.mean():.0%} of the studies have more than one of the eight findings")
pd.Series(finding).value_counts().rename("studies")

# %% [markdown]
# The largest group is usually *no finding*: none of the eight is asserted. It is a residue rather than a disease, and holds
# healthy lungs as well as findings that the report did not mention.

# %% [markdown]
# ## 4. Numbers before pictures
#
# A map tempts the eye, so we measure first. Six studies in three clusters:
#
# | study | 1 | 2 | 3 | 4 | 5 | 6 |
# |---|---|---|---|---|---|---|
# | cluster | A | A | A | B | B | C |
# | finding | edema | edema | nodule | nodule | nodule | edema |
#
# **Purity**: let every cluster name itself after its most frequent finding; which share of studies is then named
# correctly? Two more measures run from 0 to 1. **Homogeneity**: how much of the doubt about the finding goes away once the cluster
# is known? **Completeness**: how much of the doubt about the cluster goes away once the finding is known? Their harmonic mean is
# the **V-measure**, the same number as **NMI**, normalised mutual information.
# Work out the purity before you run the cell.

# %%
from sklearn.metrics import v_measure_score

from mgca_lib.evaluation.prototypes import cluster_agreement

cluster = np.array([0, 0, 0, 1, 1, 2])
disease = np.array(["edema", "edema", "nodule", "nodule", "nodule", "edema"])
purity = sum(max((disease[cluster == k] == d).sum() for d in ("edema", "nodule")) for k in range(3)) / 6
twin = cluster_agreement(cluster, disease, resamples=20)
assert np.isclose(purity, twin.measures["purity"].mean)
assert np.isclose(v_measure_score(disease, cluster), twin.measures["nmi"].mean)
print(
    f"purity {purity:.3f}; NMI {twin.measures['nmi'].mean:.3f}; purity with shuffled findings {twin.chance['purity']:.3f}"
)

# %% [markdown]
# Look at the last number: clusters that know nothing still get a decent purity, only because they are small. In the extreme,
# one cluster a study has a purity of one. **No purity without its chance level.** We get it by shuffling the
# findings among the studies many times. (Below, whole *patients* are shuffled, each gets all findings of another one with as many studies:
# films of one patient look alike and share findings, so a cluster that knows the patient would else pass for one that knows findings.)

# %%
alone = cluster_agreement(np.arange(len(test)), finding, resamples=5, permutations=5)
print(
    f"every study its own cluster: purity {alone.measures['purity'].mean:.2f}, with shuffled findings {alone.chance['purity']:.2f}"
)

# %% [markdown]
# ### The measurement
#
# Four clusterings of the same test studies:
#
# - **prototypes** of the trained model, and of the **untrained** one (random prototypes, random encoder);
# - **k-means**, with as many clusters as prototypes are used, on the trained embeddings of *training* films, as the prototypes were
#   made from training films, too. It never saw a prototype. If it does as well, then what we see is the merit of the *embedding*,
#   not of the prototypes;
# - k-means on the **untrained** embeddings: what the shape of the encoder and the pixels give for free.
#
# **Before you run the next cell**, put the four in the order that you expect.

# %%
from mgca_lib.evaluation.prototypes import kmeans_prototypes

used = int((sizes["image"] > 0).sum())
train = run.studies("mimic_cxr").split("train")
train = train.select(range(min(len(train), 5000)))  # k-means needs no more
known = PairImages(train, tokenizer, transform, max_pieces=run.config.model.max_pieces, seed=run.seed)
centres = {
    name: kmeans_prototypes(embed_pairs(one, known)[0], min(used, len(train)), seed=run.seed)
    for name, one in (("mgca", model), ("random", untrained))
}

# %%
clusterings = {
    "mgca": of_image.cluster,
    "random": assign_prototypes(image_before, untrained.prototypes).cluster,
    "kmeans_mgca": assign_prototypes(image, centres["mgca"]).cluster,
    "kmeans_random": assign_prototypes(image_before, centres["random"]).cluster,
}
patients = test.table["patient_id"].to_numpy()
agreement = {
    name: cluster_agreement(numbers, finding, groups=patients, seed=run.seed) for name, numbers in clusterings.items()
}

# %%
rows = {
    name: {"clusters": part.clusters, **{key: str(value) for key, value in part.measures.items()}}
    for name, part in agreement.items()
}
pd.DataFrame(rows).T

# %%
print("the same, above shuffled findings:")
pd.DataFrame({name: {key: str(part.above_chance(key)) for key in part.measures} for name, part in agreement.items()}).T


# %% [markdown]
# All four are clusterings of the same studies, so overlapping intervals are a poor test. Instead: draw patients with repeats, measure two
# clusterings on the same draw, and look at the difference.

# %%
from mgca_lib.evaluation.prototypes import agreement_difference
from mgca_lib.grid_results import verdict

ours = agreement["mgca"].above_chance("nmi")
print(f"NMI of the prototypes above shuffled {ours}: {'above' if ours.low > 0 else 'not clearly above'} chance")
for other in ("random", "kmeans_mgca", "kmeans_random"):
    gap = agreement_difference(clusterings["mgca"], clusterings[other], finding, groups=patients, seed=run.seed)
    run.record(f"prototypes/nmi_above_chance/mgca_minus_{other}", gap.as_metric())
    print(f"above that of {other}: {gap}; {verdict(gap.mean, gap.low, gap.high)}")

# %% [markdown]
# **Reading it.** First *above chance*: did the prototypes pick up disease at all? Then *untrained*: is it training that did it?
# (All comparisons are of what exceeds shuffled findings: noise in many clusters has a higher NMI than noise in few.)
# An untrained projection often sends nearly all studies to one or two prototypes; its purity is then simply the share of the
# largest group, which shows once more how little purity says alone, and its completeness hangs on the few studies outside: look
# at the interval. Then *k-means*: do prototypes add anything to the embedding they live in? The lines above answer for this run.
# Where the interval of a difference holds 0, the honest answer is "not shown".
#
# Homogeneity is usually far higher than completeness: with more prototypes than findings, a finding is split over several
# prototypes. That alone is no failure: edema of a bedside film and edema of an upright one do look different.

# %%
composition = figures.prototype_composition(of_image.cluster, finding)
run.show(
    composition, "composition", "What the largest prototypes hold: a prototype that is a disease would have one colour."
)

# %% [markdown]
# ## 5. The map (figure 4 of the paper)
#
# Now the picture. t-SNE and UMAP lay the image embeddings and the prototypes out in the plane so that *near neighbours stay
# near*. Above, colours are findings; below, the same points coloured by their prototype. Stars are prototypes.
#
# **Before you run the next cell**: in which of the two rows will the islands have cleaner colours, and what would that prove?

# %%
from mgca_lib.evaluation.prototypes import project

maps = {
    "t-SNE": project(image, model.prototypes, method="tsne", seed=run.seed),
    "UMAP": project(image, model.prototypes, method="umap", seed=run.seed),
}
figure_4 = figures.projection_maps(maps, finding, of_image.cluster)
run.show(
    figure_4,
    "figure_4",
    "Test studies in the plane, coloured by finding (above) and by prototype (below).",
)

# %% [markdown]
# The lower row is the tidy one, and about diseases that proves **nothing**. Prototypes cut the space into regions, and a map that
# keeps neighbours together shows regions as patches. Only the upper row can be evidence, since no label was shown to the model, and
# these reports were not either. (A clump of stars may stand far from every point, and the star of a colour far from its studies: a prototype need only be
# the *nearest* one in direction, and need not lie among the images. It has reports to serve, too.)
#
# And if the space had no order at all? The next cell replaces every embedding with *random noise*, and every prototype too. The
# findings are the real ones. **What will the two rows look like?**

# %%
noise = np.random.default_rng(run.seed).normal(size=image.shape).astype(np.float32)
noise_prototypes = np.random.default_rng(run.seed + 1).normal(size=model.prototypes.shape).astype(np.float32)
of_noise = assign_prototypes(torch.from_numpy(noise), torch.from_numpy(noise_prototypes)).cluster
noise_maps = {
    "t-SNE": project(noise, noise_prototypes, method="tsne", seed=run.seed),
    "UMAP": project(noise, noise_prototypes, method="umap", seed=run.seed),
}
picture = figures.projection_maps(noise_maps, finding, of_noise)
run.show(
    picture,
    "noise",
    "Pure noise in the plane, coloured by the real findings (above) and by its own prototypes (below).",
)

# %% [markdown]
# Confetti above *and* below: between points that are all about equally far apart, a plane can keep few neighbours together. The eye
# tires of such comparisons, so count: how often does the nearest point on the map have the same colour? For the embeddings, for
# those of the untrained model, and for noise.

# %%
from scipy.spatial import cKDTree


def like_neighbour(layout, colours):
    nearest = cKDTree(layout).query(layout, k=2)[1][:, 1]  # the first is the point itself
    return float(np.mean(colours == colours[nearest]))


# %%
maps_before = {
    name: project(image_before, untrained.prototypes, method=method, seed=run.seed)
    for name, method in (("t-SNE", "tsne"), ("UMAP", "umap"))
}
rows = {}
for what, drawn, prototype in (
    ("embeddings", maps, of_image.cluster),
    ("untrained", maps_before, clusterings["random"]),
    ("noise", noise_maps, of_noise),
):
    for method, (studies_there, _) in drawn.items():
        for kind, colours in (("finding", finding), ("prototype", prototype)):
            by_chance = float(np.mean(colours == np.random.default_rng(run.seed).permutation(colours)))
            share = like_neighbour(studies_there, np.asarray(colours))
            rows.setdefault((what, method), {}).update({f"same {kind}": share, f"{kind}, by chance": by_chance})
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Even noise keeps a few neighbours: compare each column with the chance beside it. The patches in the lower row of the embeddings
# stand for more order than noise has; how much of it is training's, the rows of the untrained model tell (which may have one
# prototype for nearly all, so that chance is high). None of it says *whose* order. That can only be seen in the columns of the finding, and measured where the map is not needed, in the space itself,
# where noise gets what it deserves:

# %%
noisy = cluster_agreement(of_noise, finding, groups=patients, seed=run.seed)
print(
    f"noise: NMI {noisy.measures['nmi'].mean:.3f}, shuffled {noisy.chance['nmi']:.3f}; purity {noisy.measures['purity'].mean:.3f}, shuffled {noisy.chance['purity']:.3f}"
)
if PROFILE != "smoke":
    assert abs(noisy.measures["nmi"].mean - noisy.chance["nmi"]) < 0.05, "noise knows diseases: something leaks"

# %% [markdown]
# ## 6. What a map can and cannot show
#
# t-SNE has a knob, the *perplexity*: roughly how many neighbours each point cares about. The same embeddings three times:

# %%
perplexities = (5, 30, 100)
layouts = {
    f"perplexity {value}": project(image, method="tsne", seed=run.seed, perplexity=value)[0] for value in perplexities
}
panels = figures.embedding_maps(layouts, finding)
run.show(
    panels,
    "perplexity",
    "The same embeddings at three perplexities: the number, size and distance of islands are choices of ours.",
)

# %% [markdown]
# Which is the true one? None. Two numbers say what survives. *Trustworthiness*: are the neighbours on the map real neighbours? (1 is
# yes; about 0.5 is chance.) And the *order of distances between findings*: does a finding that is far on the map lie far in the
# space? (Rank correlation; 1 is the same order, 0 none.)

# %%
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness


def centres(points):
    return np.stack([points[finding == name].mean(axis=0) for name in np.unique(finding)])


near = min(10, len(test) // 2 - 1)
for name, layout in layouts.items():
    trust = trustworthiness(image.numpy(), layout, n_neighbors=near)
    order = spearmanr(pdist(centres(image.numpy())), pdist(centres(layout))).statistic
    print(f"{name:15s} trustworthiness {trust:.2f}; order of the distances between findings {order:5.2f}")

# %% [markdown]
# Read the first column as "may I believe that two touching points are alike?", and the second as "may I believe that two far
# islands differ more than two near ones?". The first is what the method was built for. The second comes without any promise: it
# may be high for one perplexity, or for one model, and low for the next; and where all three agree, they still get some of the
# order wrong, the more the further the number is from 1. So **never interpret** the distance between islands, their size, their
# density, or the axes; and show a second setting before you believe an island.

# %% [markdown]
# ## 7. Look inside
#
# What is a prototype, then? Its nearest films tell. Below are the largest prototypes, with the films nearest to each. Read
# across a row: **what do its films share?** Write it down before you look at the captions. The patient's left is on your right.

# %%
from mgca_lib.data.tasks import load_picture
from mgca_lib.evaluation.prototypes import nearest_members

largest = np.argsort(-sizes["image"], kind="stable")[:SHOWN]
near_films, _ = nearest_members(image, model.prototypes[largest], count=6)
grid = figures.prototype_grid(
    [[np.asarray(load_picture(test, row)) for row in rows] for rows in near_films],
    [[str(finding[row]) for row in rows] for rows in near_films],
    [f"{number}\n({sizes['image'][number]} films)" for number in largest],
)
run.show(
    grid,
    "nearest_films",
    "The films nearest to the largest prototypes, with their dominant finding: some rows agree, some do not.",
)

# %% [markdown]
# And the other modality: the reports nearest to the same prototypes. If a prototype is a disease, films and reports name the same.

# %%
near_reports, _ = nearest_members(report, model.prototypes[largest], count=2)
for number, rows in zip(largest, near_reports, strict=True):
    print(f"prototype {number}")
    for row in rows:
        words = " ".join(test.table["sentences"].iat[row])
        print(f"   [{finding[row]}] {words[:104]}{'...' if len(words) > 104 else ''}")

# %% [markdown]
# Prototypes may also gather what is no disease: bedside (AP) films, tubes and lines, or a way of writing. So we ask the same
# question of the labels that we left out. NMI would mislead here: half of its denominator is the entropy of the prototypes, so a
# question with two answers gets a low NMI however well it is answered. Homogeneity asks which *share* of this question's own
# uncertainty is gone once the prototype is known; that share of its entropy, in bits, is what the prototypes say about it.
# **Guess**: of which do they settle the largest share, the finding, the projection (AP or PA), or the devices? And of which do
# they tell most bits?

# %%
from scipy.stats import entropy

others = {
    "projection": test.table["view"].to_numpy(),
    "support devices": np.where(test.labels(["Support Devices"])[:, 0] == 1, "devices", "none mentioned"),
}
for name, groups in {"finding": finding, **others}.items():
    part = cluster_agreement(of_image.cluster, groups, groups=patients, seed=run.seed).above_chance("homogeneity")
    bits = entropy(pd.Series(groups).value_counts(), base=2)
    print(f"{name:16s} share settled, above shuffled: {part}; of {bits:.2f} bits, {part.mean * bits:.2f}")
    run.record(f"prototypes/homogeneity_above_chance/{name.replace(' ', '_')}", part.as_metric())

# %% [markdown]
# If a nuisance is settled to as large a share as the finding, then "prototypes are diseases" is too kind a reading, even where the
# finding, the bigger question, has more bits. If its share stands well below but above zero, prototypes know it as well, though
# less. Prototypes gather whatever images and reports *both* tell, and reports
# do mention lines and tubes.

# %% [markdown]
# ## 8. Do both halves of a study meet?
#
# CPA trains the image to predict the report's code and the other way round. Success would mean: the image and the report of one
# study choose the *same* prototype. Chance is not $1/K$, since some prototypes are popular: it is the agreement of two
# independent draws with these popularities.
#
# **Before you run the next cell**, write down a share for the trained and for the untrained model.

# %%
from mgca_lib.evaluation.prototypes import modality_agreement

before = [assign_prototypes(part, untrained.prototypes) for part in (image_before, report_before)]
for name, both in (("mgca", (of_image, of_report)), ("random", before)):
    share, by_chance = modality_agreement(*both, groups=patients, seed=run.seed)
    run.record(f"prototypes/modality_agreement/{name}", share.as_metric())
    run.record(f"prototypes/modality_agreement/{name}_chance", by_chance)
    stands = "above" if share.low > by_chance else "not clearly above"
    print(
        f"{name:7s} same prototype in {share.mean:.0%} of studies ({share.low:.0%} to {share.high:.0%}), chance {by_chance:.0%}: {stands} chance"
    )

# %%
joint = project(image, report, method="tsne", seed=run.seed)
kinds = np.repeat(["image", "report"], len(test))
both_maps = figures.embedding_maps({"by modality": np.concatenate(joint)}, kinds, legend="modality")
run.show(
    both_maps,
    "modalities",
    "Images and reports in one space: where colours mix, the two modalities share it; separate islands are a gap.",
)
both = torch.nn.functional.normalize(torch.cat([image, report]), dim=1).numpy()  # the space itself, not the map
alike = like_neighbour(both, kinds)
print(f"{alike:.0%} of the vectors have a nearest neighbour of their own kind; of vectors that mix freely, half would")

# %% [markdown]
# Islands of one colour are a *modality gap*: image and report vectors live apart, although an image tends to be closer to its own
# report than to most others. An island of reports may even lie beside one of images. Contrast alone does not close the gap, as it
# only compares across the gap. Prototypes can be shared all the same: a shift common to all reports changes their similarity to a
# prototype by the same amount, and *which* prototype is nearest changes only as far as prototypes differ along that shift.
# Compare the share above with its chance. If the colours do mix while the share stays well below one, the regions are right, and their borders cut through
# studies.

# %% [markdown]
# ## 9. The failure case: diseases without a prototype
#
# The other direction. For each finding: is there any prototype in which it is the most frequent one, and which share of its studies
# lies there?

# %%
table = pd.crosstab(pd.Series(of_image.cluster, name="prototype"), pd.Series(finding, name="finding"))
leads = table.eq(table.max(axis=1), axis=0)  # small prototypes tie, and a tie counts for both
homes = {
    name: {
        "studies": int(table[name].sum()),
        "prototypes it leads": int(leads[name].sum()),
        "its studies there": f"{table.loc[leads[name], name].sum() / table[name].sum():.0%}",
    }
    for name in table.columns
}
pd.DataFrame(homes).T.sort_values("prototypes it leads", ascending=False)

# %%
homeless = [name for name, row in homes.items() if row["prototypes it leads"] == 0]
print("findings that lead no prototype:", ", ".join(homeless) or "none in this run")
singles = int((table.sum(axis=1) == 1).sum())
print(f"prototypes with a single study, which are pure by definition: {singles}")

# %% [markdown]
# A finding that leads no prototype, or one that it shares, exists for this model only as a shade of others. Where every finding
# leads one, read the last column: a finding that has only a small share of its studies there has a prototype in name alone. Is it
# because it is rare? Compare the first column: findings with as few studies may lead several. Small or faint ones tend to be
# worse off than large ones, since the film's vector hardly holds them. One reason may lie in the method: Sinkhorn asks for
# *equal* use of all prototypes within a batch, so a frequent group is split over many prototypes and a rare one is folded into
# its neighbours; k-means instead of prototypes would be the control. And prototypes with one study flatter the purity: discount
# them.

# %% [markdown]
# ## 10. What we showed, and what we did not
#
# **Showed.** How to ask whether clusters are diseases: an agreement with its interval, against shuffled labels, against an
# untrained model, against k-means. The cells of section 4 print the verdict for this run.
#
# **Did not show.** That a prototype *is* a disease. At best it is a region in which one finding is more frequent. Nor that CPA
# causes it: instance alignment alone may order the space in the same way (exercise 3). The labels come from the same
# reports that the model was trained to match, so they are kinder to it than a radiologist's would be.
#
# **Where it breaks.** One label a study hides the others. With few test studies a prototype holds a handful, and its composition is
# mostly luck. Maps show the order of the model, whatever it is of.

# %%
for name, part in agreement.items():
    for measure in ("purity", "nmi"):
        run.record(f"prototypes/{measure}/{name}", part.measures[measure].as_metric())
        run.record(f"prototypes/{measure}/{name}_chance", part.chance[measure])
for name, size in sizes.items():
    run.record(f"prototypes/used/{name}", int((size > 0).sum()))
run.finish(question="Are prototypes diseases?", headline="prototypes/nmi/mgca").name

# %% [markdown]
# ## 11. Exercises
#
# **1. Recall.** Ten studies, 7 with "no finding". A model puts all ten at one prototype. Purity? NMI?

# %%
my_purity, my_nmi = None, None  # your numbers
collapsed = cluster_agreement(np.zeros(10, int), np.array(["no finding"] * 7 + ["edema"] * 3), resamples=5)
assert my_purity is None or abs(my_purity - collapsed.measures["purity"].mean) < 1e-9, "not yet: who names the cluster?"
assert my_nmi is None or abs(my_nmi - collapsed.measures["nmi"].mean) < 1e-9, "not yet: what does one cluster tell?"
print("not answered yet" if None in (my_purity, my_nmi) else "right")

# %% [markdown]
# <details><summary>Solution</summary>
#
# The cluster names itself "no finding" and is right in 7 of 10: purity 0.7. It tells nothing about the finding: NMI 0. This is why
# purity alone must not be reported.
# </details>
#
# **2. Modify.** `dominant_finding(..., priority=...)` takes an order of your own. Let the *most frequent* finding win instead of the
# rarest, and compare the NMI above chance. Does the conclusion of section 4 depend on this choice?

# %%
my_order = None  # the eight findings, most frequent first
asked = [(labels[:, FINDINGS.index(name)] == 1).sum() for name in my_order or FINDINGS]
assert my_order is None or (sorted(my_order) == sorted(FINDINGS) and asked == sorted(asked, reverse=True)), "not yet"
other_finding = np.char.lower(dominant_finding(labels, FINDINGS, priority=my_order))
other = cluster_agreement(of_image.cluster, other_finding, groups=patients, seed=run.seed).above_chance("nmi")
print("not answered yet" if my_order is None else f"right: rarest wins {ours}, most frequent wins {other}")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `my_order = sorted(FINDINGS, key=lambda name: -(test.labels([name]) == 1).sum())`. Now repeat it for `kmeans_mgca`. A conclusion that turns with the order of the labels is a conclusion about the
# labels.
# </details>
#
# **3. Research.** Does prototype alignment make the clusters, or would instance alignment alone? Pretrain with
# `run.config.override(prototype_weight=0.0)` into a folder of its own, run k-means on both models' image embeddings with the same number of
# clusters, and compare the NMI above chance over three pretraining seeds.

# %%
my_difference = None  # (low, high) of the interval over your seeds
assert my_difference is None or my_difference[0] <= my_difference[1], "low first"
print(
    "not answered yet"
    if my_difference is None
    else "shown"
    if min(my_difference) > 0 or max(my_difference) < 0
    else "not shown"
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `pretrain(ita_and_cta, run.studies("mimic_cxr"), run.output_dir / "no_prototypes", seed=..., resume=True)`. Compare k-means with k-means:
# the prototypes of a model trained without CPA are random vectors. Use `t_interval` over the paired differences of the seeds.
# </details>

# %% [markdown]
# ## 12. References and the next notebook
#
# - Wang, Zhou, Wang, Vardhanabhuti, Yu. Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
#   Representation Learning. NeurIPS 2022, arXiv 2210.06044; its figure 4 is the model of section 5.
# - Johnson et al. MIMIC-CXR-JPG, PhysioNet.
#
# You have prepared data, built three alignments, trained them, probed the features and questioned the prototypes. One question
# is left: the encoder can say *whether*; can it say *where*? [09 Finding and outlining](09_finding_and_outlining.ipynb).
