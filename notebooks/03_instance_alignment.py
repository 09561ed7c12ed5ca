# %% [markdown]
# # 03 · Can a report tell a film from all others?
#
# **After this notebook you can** (1) compute the instance alignment loss on paper for four pairs, (2) say what its
# temperature does to the gradient, (3) measure how well a trained model finds the film that a report was written
# for, against chance and with an interval, and (4) name the two ways in which its negatives lie.
#
# - **First read** [02 Encoders and tokens](02_encoders_and_tokens.ipynb).
# - **Time** `smoke` about 15 s, `demo` about half a minute on two CPU cores once notebook 06 has trained its model
#   (otherwise this notebook trains it first, a few minutes).
# - **Data** the phantom MIMIC-CXR of notebook 01; nothing is downloaded.
# - **Departures from upstream** retrieval over the whole test set instead of one batch; false negatives can be left
#   out; embeddings are gathered from all processes.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project

# %%
from mgca_lib.run import start_run

run = start_run("03_instance_alignment", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %%
import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from mgca_lib import figures
from mgca_lib.alignment import gather_with_gradient, instance_alignment_loss, same_text
from mgca_lib.data.tasks import DISEASES, load_picture
from mgca_lib.evaluation.features import embed_pairs
from mgca_lib.evaluation.prototypes import dominant_finding
from mgca_lib.evaluation.retrieval import retrieval_recall

# %% [markdown]
# ## 1. Guess first
#
# Instance alignment is a matching game, and you should play it once before the model does. Below are four films
# from the test split and one report. It was written for exactly one of them.
#
# In a chest film the patient looks at you: the patient's **left** side is on the **right** of the picture.

# %%
studies = run.studies("mimic_cxr")
test = studies.split("test")
finding = dominant_finding(test.labels(DISEASES), DISEASES)
candidates = pd.Series(finding).drop_duplicates().index[:4].to_numpy()
candidates = np.random.default_rng(run.seed).permutation(candidates)
films = [np.asarray(load_picture(test, row)) for row in candidates]
letters = list("ABCD")[: len(films)]
figure = figures.image_grid(films, [f"film {letter}" for letter in letters])
run.show(figure, "guess", "Four test films; the report below belongs to one of them.")

# %%
asked = candidates[len(candidates) // 2]
print("IMPRESSION", test.table["impression"].iat[asked] or "(none)")
print("FINDINGS  ", test.table["findings"].iat[asked] or "(none)")

# %% [markdown]
# Write down the letter, and how sure you are. Notice *how* you decided: you did not need to know what any film
# shows in absolute terms, only which of four fits the words best. That is the whole idea of a contrastive loss.
# Nobody labels anything; the pairing itself is the label. The answer, yours and the model's, comes in section 4.
#
# ## 2. The loss on paper
#
# Take a batch of $B$ studies. The image encoder gives unit vectors $v_1 \dots v_B$, the report encoder
# $t_1 \dots t_B$, and row $i$ of both is the same study. Every image is compared with every report:
# $s_{ij} = v_i \cdot t_j$. Divide by a temperature $\tau_1$, take a softmax along each row, and ask for the diagonal:
#
# $$ \mathcal L_{ITA} = -\frac1B \sum_i \log \frac{e^{s_{ii}/\tau_1}}{\sum_j e^{s_{ij}/\tau_1}}
#    \; - \; \frac1B \sum_i \log \frac{e^{s_{ii}/\tau_1}}{\sum_j e^{s_{ji}/\tau_1}} $$
#
# Let us make four pairs whose numbers can be checked with a pencil. The images are the four axes of space. The
# second report leans towards the first image, and reports 3 and 4 resemble each other.

# %%
v = torch.eye(4)
t = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.8, 0.6], [0.0, 0.0, 0.6, 0.8]])
s = v @ t.T
names = {"rows": [f"$v_{i}$" for i in range(1, 5)], "columns": [f"$t_{j}$" for j in range(1, 5)]}
figure = figures.similarity_matrix(s.numpy(), **names)
run.show(figure, "toy_similarity", "Similarity of four images with four reports; the pairs stand on the diagonal.")

# %% [markdown]
# A temperature of $0.2 / \ln 2$ turns every exponential into a power of two, since $e^{s/\tau} = 2^{5s}$. So 1
# becomes 32, 0.8 becomes 16, 0.6 becomes 8, and 0 becomes 1. Before you run the next cell, write the 4 x 4 table of
# powers down, with its row sums and column sums.

# %%
tau = 0.2 / math.log(2)
powers = torch.exp(s / tau)
table = pd.DataFrame(powers.numpy().round(3), index=["v1", "v2", "v3", "v4"], columns=["t1", "t2", "t3", "t4"])
table["row sum"] = table.sum(axis=1)
table.loc["column sum"] = table.sum(axis=0)
table

# %% [markdown]
# Image 1 gives its own report 32 of 42 parts, image 2 gives 16 of 19, and images 3 and 4 give 16 of 26 each, because
# of the lookalike next door. Going down the columns, report 1 finds its image with 32 of 35 parts. The two
# directions differ: image 1 is tempted by report 2, report 1 is tempted by nobody.

# %%
by_rows = -np.mean(np.log([32 / 42, 16 / 19, 16 / 26, 16 / 26]))
by_columns = -np.mean(np.log([32 / 35, 16 / 26, 16 / 26, 16 / 26]))
by_hand = by_rows + by_columns
print(f"image to report {by_rows:.4f} + report to image {by_columns:.4f} = {by_hand:.4f}")

# %% [markdown]
# The library says the same in one call. Almost every image-text model has this loss, under other names: InfoNCE,
# contrastive or CLIP loss.

# %%
library = instance_alignment_loss(v, t, temperature=tau).item()
assert abs(library - by_hand) < 1e-5, "the hand calculation and the library must agree"
print(f"library {library:.4f}, by hand {by_hand:.4f}: they agree")

# %% [markdown]
# **Added, not averaged.** MGCA adds the two directions; CLIP takes their mean. The optimum is the same, but the
# numbers differ by a factor of two, and so does the weight of this term beside the other two. Check which one a paper
# uses before you compare loss curves.
#
# **Chance.** A model that knows nothing gives every report the same share, $1/B$ in each direction, so its loss
# is $2 \ln B$. Before you run the next cell: what does the published batch of 72 start from?

# %%
for size in (4, 72, 144):
    tie = torch.ones(size, 8)
    loss = instance_alignment_loss(tie, tie).item()
    print(f"B = {size:3d}: all ties give {loss:.3f}, and 2 ln B = {2 * math.log(size):.3f}")
    assert abs(loss - 2 * math.log(size)) < 1e-4

# %% [markdown]
# Remember these numbers when you watch a training run: a loss that stays at $2 \ln B$ has learned nothing, however
# smoothly it moves.
#
# ## 3. What the temperature does
#
# Cosines live between -1 and 1. Without a temperature the best and the worst report differ by a factor of
# $e^2 \approx 7.4$ at most, so even a perfect model could not become sure among 72 candidates. The paper divides by
# $\tau_1 = 0.07$.
#
# Before you run the next cell: image 3 sees report 3 at cosine 0.8, report 4 at 0.6, and two others at 0. How is its
# attention shared out when $\tau$ is very large? Very small?

# %%
taus = np.geomspace(0.02, 2, 60)
shares = np.stack([(s[2] / tau).softmax(dim=0).numpy() for tau in taus])
series = {"own report (cosine 0.8)": shares[:, 2], "lookalike (0.6)": shares[:, 3], "another (0)": shares[:, 0]}
figure = figures.curves(
    taus,
    series,
    x_label=r"temperature $\tau$",
    y_label="share of image 3",
    log_x=True,
    marks={r"$\tau_1$ = 0.07": 0.07},
    levels={"1/B": 0.25},
)
run.show(figure, "temperature", "A small temperature makes the softmax sure; a large one makes all reports alike.")

# %% [markdown]
# To the right everything becomes $1/B$: the loss cannot tell a good model from a bad one. To the left the winner
# takes all: a small lead counts as certainty, and so does a small error. Where the curves fan out lies the range in
# which the loss can teach something.
#
# **What the encoder feels** is the gradient, not the loss. For the similarities it has a simple form. With
# $P$ the row softmax and $P'$ the column softmax,
#
# $$ \frac{\partial \mathcal L_{ITA}}{\partial s_{ij}} = \frac{1}{B \tau_1} \big( P_{ij} + P'_{ij} - 2\,[i = j] \big) $$
#
# Diagonal entries are negative: descent pulls them up. All others are pushed down, each in proportion to the share
# that it wrongly received. Autograd must agree.


# %%
def gradient(similarity, tau):
    leaf = similarity.clone().requires_grad_()
    target = torch.arange(len(leaf))
    (F.cross_entropy(leaf / tau, target) + F.cross_entropy(leaf.T / tau, target)).backward()
    return leaf.grad


closed_form = ((s / 0.07).softmax(1) + (s / 0.07).softmax(0) - 2 * torch.eye(4)) / (4 * 0.07)
assert torch.allclose(gradient(s, 0.07), closed_form, atol=1e-5), "autograd and the closed form must agree"

# %% [markdown]
# Before you run the next cell: which of the twelve wrong pairs is pushed hardest at $\tau_1 = 0.07$, and does it
# change when $\tau = 1$?

# %%
for tau in (1.0, 0.07):
    force = gradient(s, tau).numpy()
    figure = figures.similarity_matrix(
        force / np.abs(force).max(), **names, title=rf"$\tau$ = {tau}", value_label="gradient (largest = 1)"
    )
    run.show(figure, f"gradient_{tau}", f"Pull (negative) and push (positive) on each pair at temperature {tau}.")

# %% [markdown]
# The hardest push goes to images 3 and 4 with each other's report, at both temperatures: who comes first does not
# change, how far ahead they are does. At $\tau = 1$ lookalikes are pushed less than twice as hard as easy pairs. At
# 0.07 nearly the whole push goes to them: reports 3 and 4, and report 2 against image 1. The temperature is a dial for **how much hard
# negatives count**. That is useful when the lookalike is truly wrong, and harmful when it is right as well:
# section 5.

# %%
wrong = ~torch.eye(4, dtype=torch.bool)
for tau in (1.0, 0.3, 0.07, 0.02):
    push = gradient(s, tau)[wrong]
    print(f"tau = {tau:4.2f}: the 3 hardest of 12 wrong pairs take {push.topk(3).values.sum() / push.sum():.0%}")

# %% [markdown]
# ## 4. For real
#
# Now the trained model. If notebook 06 has run, its checkpoint is used; if not, it is trained here with the settings
# of the profile. The untrained twin has the same architecture and random weights.

# %%
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.model import build_model
from mgca_lib.pretrain import pretrain

pretrained = pretrain(run.config, studies, run.pretraining, seed=run.seed, resume=True)
print("trained here" if pretrained.trained else "found: the finished run of notebook 06")
model, tokenizer, _ = load_checkpoint(pretrained.best, device=run.device)
untrained = build_model(run.config, tokenizer, seed=run.seed).to(run.device)

# %% [markdown]
# `PairImages` cuts reports into word pieces and images into the encoder's square; `embed_pairs` runs both encoders
# and returns the unit vectors $v_i$ and $t_i$ of the whole test split.

# %%
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.transforms import ImageTransform

sizes = run.config.model
transform = ImageTransform(stored_size=sizes.stored_size, image_size=sizes.image_size)
pairs = PairImages(test, tokenizer, transform, max_pieces=sizes.max_pieces, seed=run.seed)
image, report = embed_pairs(model, pairs)
image_before, report_before = embed_pairs(untrained, pairs)
print(f"{len(pairs)} test pairs, D = {image.shape[1]}")

# %% [markdown]
# First the game of section 1. Before you run the next cell, look at your letter again.

# %%
scores = (image[torch.from_numpy(candidates)] @ report[asked]).tolist()
truth = letters[list(candidates).index(asked)]
answer = letters[int(np.argmax(scores))]
print("  ".join(f"{letter}: {score:+.2f}" for letter, score in zip(letters, scores, strict=True)))
print(f"the model says {answer}, the report was written for {truth}")

# %% [markdown]
# One game proves nothing. Here are the similarities of the first test studies with each other, one image a study.
# Before you look: what will the matrix of the *untrained* model look like? Random colours, or something else?

# %%
first = list(test.table.drop_duplicates("study_id").index[:20])
for name, (a, b) in {"untrained": (image_before, report_before), "trained": (image, report)}.items():
    figure = figures.similarity_matrix(
        (a[first] @ b[first].T).numpy(), title=f"{name} model, {len(first)} test studies"
    )
    run.show(figure, f"matrix_{name}", f"Similarity of test images and reports, {name} model.")

# %% [markdown]
# The untrained matrix has hardly any structure: one colour everywhere, perhaps with stripes. A random network
# squeezes all images into one narrow cone and all reports into another, so the angle between the two cones is nearly
# all there is to see. Training does two things at once: it spreads the cones open, and it begins to line the two up,
# so that the diagonal turns blue. Do not expect a clean line. Where the diagonal is pale, or a cell beside it as
# blue, that retrieval will fail; and some of the blue cells off the diagonal are not wrong at all (section 5).
#
# The same over *all* pairs of the test split, as histograms on one scale. Equal texts do not count as unmatched.

# %%
texts = report_texts(test)
text_id = torch.from_numpy(pd.factorize(pd.Series(texts))[0])
unmatched = ~same_text(text_id)
for name, (a, b) in {"untrained": (image_before, report_before), "trained": (image, report)}.items():
    cosine = (a @ b.T).numpy()
    figure = figures.similarity_histogram(
        cosine.diagonal(), cosine[unmatched.numpy()], limits=(-1, 1), title=f"{name} model"
    )
    run.show(figure, f"histogram_{name}", f"Cosine similarity of matched and unmatched test pairs, {name} model.")

# %% [markdown]
# Before training the two histograms lie on top of each other, in one narrow spike: that is the angle between the two
# cones. After it, both are wide, and matched pairs have moved to the right. They still overlap, and the overlap is where retrieval goes wrong.
#
# ### Retrieval over the whole test split
#
# A loss is hard to read, so we ask a plain question instead. **Recall at K**: a report searches all test images; is
# one of *its* images among the $K$ most similar? Upstream logs this inside one training batch, where the answer
# depends on the batch size. Here every image competes, reports of equal text count as equally right, and the
# interval comes from resampling whole patients (`n` is their number).
#
# Random ranking gives about $K/N$. Before you run the next cell, guess how many times better the model is at
# $K = 5$, from reports to images.

# %%
found = retrieval_recall(image, report, texts=texts, groups=test.table["patient_id"], seed=run.seed)
before = retrieval_recall(image_before, report_before, texts=texts, groups=test.table["patient_id"], seed=run.seed)
rows = [
    {
        "K": k,
        "image to report": found.image_to_report[k],
        "report to image": found.report_to_image[k],
        "untrained, report to image": before.report_to_image[k],
        "chance": round(found.chance[k], 4),
    }
    for k in found.chance
]
pd.DataFrame(rows).astype(str).set_index("K")

# %%
recalls = {
    "image to report": {k: interval.as_metric() for k, interval in found.image_to_report.items()},
    "report to image": {k: interval.as_metric() for k, interval in found.report_to_image.items()},
}
figure = figures.retrieval_curve(recalls, chance=found.chance, title=f"{len(test)} test pairs")
run.show(figure, "retrieval", "Recall at K of the trained model, with 95 % intervals over patients, above chance.")

# %% [markdown]
# At `demo` the course expects recall at 5 from reports to images to be **at least 20 times chance**. The next cell
# prints what this run reached beside that band. (At `smoke` the model has seen a handful of pairs, and the test
# split is so small that 20 times chance is impossible.)

# %%
ratio = found.report_to_image[5].mean / found.chance[5]
print(f"report to image, R@5: {found.report_to_image[5]}, chance {found.chance[5]:.4f}")
print(f"that is {ratio:.1f} times chance; the course expects 20 or more at demo")
for k in found.chance:
    run.record(f"retrieval/report_to_image/r@{k}", found.report_to_image[k].as_metric())
    run.record(f"retrieval/image_to_report/r@{k}", found.image_to_report[k].as_metric())
    run.record(f"retrieval/chance/r@{k}", found.chance[k])
run.record("retrieval/report_to_image/r@5/times_chance", ratio)
run.record("retrieval/untrained/report_to_image/r@5", before.report_to_image[5].as_metric())

# %% [markdown]
# ### Which reports find their film?
#
# The mean hides a split. Before you run the next cell: who is easier to find, a patient with a pneumothorax or a
# patient with nothing?

# %%
ranks = pd.DataFrame({"finding": finding, "rank": found.report_ranks})
by_finding = ranks.groupby("finding")["rank"].agg(
    pairs="size", median_rank="median", recall_at_5=lambda r: (r <= 5).mean()
)
by_finding.sort_values("median_rank").round(2)

# %% [markdown]
# (At `smoke` the table is noise. "No finding" means: none of the eight diseases that the course sorts by; a device or an uncertain
# shadow may be there.) Read it from both ends. Large, dense findings tend to single a film out. At the other end look for two kinds:
# findings that are small or vague at this resolution, and films without any. Reports of normal films differ in little: wording,
# devices, lung volume. So nearly every normal film fits each of them, and a model that does very well there has learned something
# other than disease. That leads to the weak spot of this loss.
#
# ## 5. False negatives
#
# InfoNCE calls every other report in the batch wrong. Two kinds are not; they are called *false negatives*:
#
# 1. **The very same text**, for example two views of one study, or a template such as *no acute process*.
# 2. **The same meaning in other words**: any two normal films, or two visits of a patient in whom nothing has changed.
#
# Before you run the next cell, guess how many of the 63 negatives of a batch of 64 are of the second kind, normal films alone
# counted.


# %%
def expected_in_batch(groups, size=64):
    count = pd.Series(groups).value_counts()
    same = (count * (count - 1)).sum() / (len(groups) * (len(groups) - 1))
    return (size - 1) * same


train = studies.split("train")
is_normal = train.labels(["No Finding"])[:, 0] == 1
normal = np.where(is_normal, "normal", np.arange(len(train)).astype(str))
equal_text, both_normal = expected_in_batch(report_texts(train)), expected_in_batch(normal)
print(f"of 63 negatives, {equal_text:.3f} have the very same text; {both_normal:.1f} are normal beside a normal one")
beside_normal = 63 * (is_normal.sum() - 1) / (len(train) - 1)
print(f"a normal film meets {beside_normal:.1f} normal ones among its 63 negatives")

# %% [markdown]
# The first line is a mean over *all* films, and a film with a finding has no false negative of this kind. The second
# line is what a normal film meets: it is told that each of these reports is wrong for it, though they say the same.
# One more look, at test films:

# %%
run.record("negatives/equal_text_per_batch_of_64", equal_text)
run.record("negatives/both_normal_per_batch_of_64", both_normal)
some = test.table.drop_duplicates("study_id").index.to_numpy()
some = np.random.default_rng(run.seed).permutation(some)[:24]
healthy = test.labels(["No Finding"])[:, 0] == 1
some = some[np.argsort(~healthy[some], kind="stable")]
block = (image[some] @ report[some].T).numpy()
names = ["normal" if healthy[row] else finding[row] for row in some]
figure = figures.similarity_matrix(block, rows=names, title="random test studies, normal films first")
for line in (figure.axes[0].axhline, figure.axes[0].axvline):
    line(healthy[some].sum() - 0.5, color="black", linewidth=1)  # here the normal films end
run.show(figure, "false_negatives", "Random test films, normal ones first: is the upper left block bluer?")

# %% [markdown]
# The lines show where the normal films end. Is the upper left block bluer than the part beside it? 24 studies are few,
# so here is the mean over all test pairs.

# %%
is_normal = torch.from_numpy(healthy)
cosine = image @ report.T
for name, other in {"another normal study": is_normal, "a study with a finding": ~is_normal}.items():
    cells = is_normal[:, None] & other[None, :] & unmatched
    print(f"normal film and report of {name}: mean cosine {cosine[cells].mean():+.3f}")

# %% [markdown]
# If the first number is the higher one, the model has noticed that these studies say the same. The loss punishes it
# for that, and at a low temperature, hardest of all. (In the real MIMIC-CXR it is worse than here: templates repeat
# word for word.)
#
# The library can at least take equal texts out of the softmax: `same_text` marks them and `exclude` drops them.
# Upstream leaves them in, and so do the models of this course, to stay comparable. What is it worth on the test
# split?

# %%
exclude = same_text(text_id)
kept = instance_alignment_loss(image, report).item()
dropped = instance_alignment_loss(image, report, exclude=exclude).item()
print(f"{int(exclude.sum()) - len(test)} ordered pairs of equal text among {len(test) * (len(test) - 1)}")
print(f"loss with them as negatives {kept:.3f}, without {dropped:.3f}")
before_training = instance_alignment_loss(image_before, report_before).item()
print(f"untrained {before_training:.3f}, knowing nothing 2 ln B = {2 * math.log(len(test)):.3f}")
assert dropped <= kept + 1e-6, "leaving candidates out of a softmax can only help the right one"

# %% [markdown]
# The untrained model starts where section 2 said: near $2 \ln B$. `exclude` removes the first kind of lie. The second kind, same meaning in other words, it cannot see. The third
# term of MGCA can: it asks whether two studies belong to the same *cluster*, and lets them be alike. That is
# [notebook 05](05_prototype_alignment.ipynb).
#
# ## 6. How many negatives?
#
# More candidates make a harder question, and a harder question teaches more. But loss values of different batch sizes
# cannot be compared. Before you run the next cell, sketch the loss of the *same* model against the batch size.


# %%
def batch_loss(size, draws=40):
    rng = np.random.default_rng(run.seed)
    batches = (torch.from_numpy(rng.permutation(len(image))[:size]) for _ in range(draws))
    return float(np.mean([instance_alignment_loss(image[rows], report[rows]).item() for rows in batches]))


batch_sizes = [size for size in (2, 4, 8, 16, 32, 64, 128, 256, 512) if size <= len(image)]
losses = [batch_loss(size) for size in batch_sizes]

# %%
chance = [2 * math.log(size) for size in batch_sizes]
figure = figures.curves(
    batch_sizes,
    {"mgca": losses, "chance": chance},
    x_label="batch size B",
    log_x=True,
    y_label=r"$L_{ITA}$ on test pairs",
)
run.show(
    figure,
    "batch_size",
    "The same model scores a higher loss in a larger batch; only the gap to 2 ln B says something.",
)
print("gap to chance:", {size: round(c - loss, 2) for size, loss, c in zip(batch_sizes, losses, chance, strict=True)})

# %% [markdown]
# The loss grows with the batch although the model is the same. What counts is the **gap** to $2 \ln B$. For a model
# that has learned something it opens fast at first and then hardly at all: of the new negatives, most are easy. A
# validation loss is comparable only at equal batch size, and a published "top-1 in the batch" only together with it.
#
# ### Across processes
#
# With 8 GPUs of 72 pairs each, does an image see 71 negatives or 575? Upstream has a helper that gathers embeddings
# from all processes, and never calls it: 71. The library gathers, with gradient. On one process, as here, there is
# nobody to gather from; but the effect is easy to imitate by cutting one batch in two.

# %%
half = len(image) // 2
local = (
    instance_alignment_loss(image[:half], report[:half]) + instance_alignment_loss(image[half:], report[half:])
) / 2
together = instance_alignment_loss(image, report).item()
print(f"each half alone, as upstream: {local:.3f}; all together, as gathered: {together:.3f}")
print(f"difference {together - local:.3f}; chance alone rises by 2 ln 2 = {2 * math.log(2):.3f}")
assert gather_with_gradient(image) is image, "one process has nobody to gather from"

# %% [markdown]
# The difference is nearly that of the chance levels: the loss is higher because the question is harder, not because the
# model is worse.
#
# Why *with gradient*? A plain gather returns numbers without history: a loss built on them teaches nobody. If each
# process reattached only its own rows, the direction would be right, but averaging over $N$ processes, as DDP
# (PyTorch's way to train on several GPUs) does with gradients, would shrink it by $N$. `gather_with_gradient` hands
# every process the *sum* of the gradients that all of them have for its rows, and DDP's average takes the factor out.
# The project's tests start two processes and compare loss and gradients with one process that sees everything.
#
# ## 7. A failure, looked at
#
# Numbers do not say *why* a retrieval failed. So let us look at three films *with a finding* whose own report was
# beaten, the most confident mistakes first. Left: the film with its own report. Right: the report that the model preferred, and the
# film that it was written for. Before you scroll: what could a wrong report share with the right one?

# %%
cosine = image @ report.T
cosine = cosine.masked_fill(exclude & ~torch.eye(len(cosine), dtype=torch.bool), -1.0)
chosen = cosine.argmax(dim=1).numpy()
margin = cosine.max(dim=1).values - cosine.diagonal()
missed = np.flatnonzero((chosen != np.arange(len(chosen))) & (found.image_ranks > 1))
missed = missed[np.argsort(-margin.numpy()[missed], kind="stable")]

# %%
one_each = missed[~test.table["study_id"].iloc[missed].duplicated().to_numpy()]
worst = [row for row in one_each if finding[row] != "no finding"][:3] or list(one_each[:3]) or [0]
cases = [
    {
        "film": np.asarray(load_picture(test, row)),
        "report": ". ".join(test.table["sentences"].iat[row]),
        "answer": ". ".join(test.table["sentences"].iat[chosen[row]]),
        "answer_film": np.asarray(load_picture(test, chosen[row])),
        "caption": f"own report: rank {found.image_ranks[row]} of {len(test)}",
    }
    for row in worst
]
figure = figures.retrieval_cases(cases)
run.show(
    figure,
    "failures",
    "Confident mistakes on films with a finding: film and own report (left), preferred report and its film (right).",
)

# %% [markdown]
# Read both reports line by line and mark what agrees: devices, heart size, side, zone, severity. Three patterns are
# worth looking for. *Near misses*: the same disease on the same side. *Bystanders*: what agrees is a device or the
# lung volume, not the disease. *Unmentioned findings*: the radiologist of this phantom hospital, like real ones,
# leaves things out, and then the film shows more than its report says.
#
# How often is the preferred report at least about the same dominant finding? Chance is the agreement of an image
# with a report drawn at random.

# %%
agreement = float(np.mean(finding[chosen[missed]] == finding[missed])) if len(missed) else 1.0
shares = pd.Series(finding).value_counts(normalize=True)
by_chance = float(np.mean([shares[name] for name in finding[missed]])) if len(missed) else 1.0
print(f"{len(missed)} of {len(test)} images prefer another report; {agreement:.0%} of these are about the same finding")
print(f"a random report would be in {by_chance:.0%}")
ill = (test.labels(DISEASES) == 1).astype(int)
without = ill.sum(axis=1) == 0
alike = (ill @ ill.T > 0) | (without[:, None] & without)
if len(missed):
    shared, by_luck = alike[missed, chosen[missed]].mean(), alike[missed].mean()
    print(
        f"{shared:.0%} share a disease, dominant or not, or are both without one; a random report would in {by_luck:.0%}"
    )
run.record("failures/same_finding", agreement)
run.record("failures/same_finding_by_chance", by_chance)

# %% [markdown]
# If the first number is well above the second, many "errors" of instance alignment are right about the disease
# and wrong about the identity, and the metric is stricter than the clinic would be. The rest are not all failures:
# each film has only one dominant finding here, and two films can share another one. The last line counts these, too.
#
# ## What we showed, and what not
#
# **Shown.** The loss is a softmax over the batch in both directions, added; it starts at $2 \ln B$; the temperature
# decides how much lookalikes count; a trained model finds the film of a report many times more often than chance.
#
# **Not shown.** That the embedding knows *diseases*: a report can be told from others by a pacemaker or a lung
# volume. Notebook 07 tests that with labels. Nor that phantom numbers carry over to patients.
#
# **Where it breaks.** Normal studies, equal texts, small batches, and everything that the report does not mention.

# %%
_ = run.finish(
    question="Can a report tell a film from all others?", headline="retrieval/report_to_image/r@5/times_chance"
)

# %% [markdown]
# ## Exercises
#
# **1. Recall.** A batch holds $B = 2$ pairs. Every matched pair has cosine 1, every unmatched pair 0, and $\tau = 1$.
# Fill in the loss, from paper.

# %%
my_loss = None  # your number, for example 1.25
expected = instance_alignment_loss(torch.eye(2), torch.eye(2), temperature=1.0).item()
assert my_loss is None or abs(my_loss - expected) < 0.005, "not yet: write down one row of the softmax first"
print("not answered yet" if my_loss is None else "right")

# %% [markdown]
# **2. Modify.** Find a temperature between 0.01 and 1 at which the *test* loss of the trained model is lower than
# at 0.07, without training. What does it say about the model's confidence?

# %%
my_temperature = None  # your number
if my_temperature is None:
    print("not answered yet")
else:
    assert 0.01 <= my_temperature <= 1, "between 0.01 and 1"
    mine = instance_alignment_loss(image, report, temperature=my_temperature).item()
    print(f"at {my_temperature}: {mine:.3f}, at 0.07: {kept:.3f}")
    assert mine < kept, "not lower yet"
    print("right")

# %% [markdown]
# **3. Research.** Equal texts are only the visible part of the false negatives. Build an `exclude` mask that also
# spares pairs of *normal* studies, compute the test loss with it, and think about what a model trained that way would
# forget.

# %%
my_exclude = None  # your (N, N) bool mask
if my_exclude is None:
    print("not answered yet")
else:
    assert my_exclude.shape == exclude.shape, "one row an image, one column a report"
    assert bool((my_exclude | ~exclude).all()), "equal texts must stay excluded"
    extra = my_exclude & ~exclude
    strangers = extra & ~is_normal[:, None] | extra & ~is_normal
    assert not strangers.any(), "spare pairs of two normal studies only"
    assert bool(my_exclude[is_normal][:, is_normal].all()), "some pair of normal studies is not spared yet"
    mine = instance_alignment_loss(image, report, exclude=my_exclude)
    print(f"right: {int(extra.sum())} further pairs spared; loss {mine:.3f}, was {dropped:.3f}")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# **1.** One row of the softmax is $e / (e + 1)$, so one direction costs $\ln(1 + e^{-1}) \approx 0.313$ and both
# together 0.627.
#
# **2.** For example 0.1 (at `demo`). On training pairs 0.07 fits, since the model was trained for it. On test
# pairs the model makes mistakes that it is too sure of, so a higher temperature usually gives a lower loss: it is
# over-confident. This is the temperature scaling of calibration.
#
# **3.** `my_exclude = exclude | (is_normal[:, None] & is_normal[None, :])`, with `is_normal` of section 5. The loss falls,
# since the hardest negatives are gone. A model trained that way has no more reason
# to tell normal films apart by age, habitus, devices or lung volume; for disease classification that may be a gain,
# for retrieval it is a loss.
#
# </details>
#
# ## References
#
# - Wang et al., *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning*,
#   NeurIPS 2022, arXiv 2210.06044, section 3.2. Code: HKU-MedAI/MGCA.
# - ConVIRT, as shipped in the MGCA repository, is this term alone.
#
# **Next:** [04 Token alignment](04_token_alignment.ipynb): which word looks at which patch?
