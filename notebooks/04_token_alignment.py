# %% [markdown]
# # 04 · Which word looks at which patch?
#
# **After this notebook you can** (1) compute cross-attention and its contrast on paper for two words and three
# patches, (2) check the library against a slow loop that you trust, (3) measure whether a heat map points at the
# finding, against two chance levels, and (4) say why a falling token loss does not promise that it does.
#
# - **First read** [02 Encoders and tokens](02_encoders_and_tokens.ipynb) and
#   [03 Instance alignment](03_instance_alignment.ipynb).
# - **Time** `smoke` about 15 s, `demo` about half a minute on two CPU cores once notebook 06 has trained its model.
# - **Data** the phantom MIMIC-CXR of notebook 01, with its ground truth: for every finding phrase the mask of the
#   pixels it speaks of. No public dataset has that; training never sees it.
# - **Departures from upstream** padded words are masked, and the report vector that a patch reads is normalised.
#   Section 4 measures both.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project

# %%
from mgca_lib.run import start_run

run = start_run("04_token_alignment", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %%
import math
from textwrap import shorten

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from mgca_lib import figures
from mgca_lib.alignment import importance_weights, token_alignment_loss, token_alignment_parts
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.transforms import ImageTransform, to_display
from mgca_lib.evaluation import grounding
from mgca_lib.evaluation.features import pair_batches
from mgca_lib.evaluation.intervals import wilson_interval
from mgca_lib.model import build_model
from mgca_lib.pretrain import pretrain

# %% [markdown]
# ## 1. Guess first
#
# Instance alignment compares a whole film with a whole report. But a report says *where*: "small left pleural
# effusion" speaks of one corner. The second term of MGCA, **cross-attention token alignment** (CTA), lets every word
# look at every patch. First the trained model, as in notebook 03, and a study with a finding on one side.

# %%
studies = run.studies("mimic_cxr")
pretrained = pretrain(run.config, studies, run.pretraining, seed=run.seed, resume=True)
print("trained here" if pretrained.trained else "found: the finished run of notebook 06")
model, tokenizer, _ = load_checkpoint(pretrained.best, device=run.device)
untrained = build_model(run.config, tokenizer, seed=run.seed).to(run.device).eval()

# %%
test = studies.split("test")
sizes = run.config.model
square = {"stored_size": sizes.stored_size, "image_size": sizes.image_size}
pairs = PairImages(test, tokenizer, ImageTransform(**square), max_pieces=sizes.max_pieces, seed=run.seed)
phrases = grounding.load_phrases(run.raw / "mimic_cxr" / "ground_truth", test)
visible = phrases.table[phrases.table["mask"] != ""]
print(
    f"{len(phrases.table)} phrases name or deny a finding on {len(test)} test films; {len(visible)} point at something"
)

# %%
sided = visible[visible["side"].isin(["left", "right"]) & ~visible["uncertain"]]
inside = [grounding.phrase_mask(phrases, mask, **square).mean() for mask in sided["mask"]]
sided = sided[np.array(inside) > 0.02]  # of some findings hardly anything is left in what the encoder sees
order = (sided["finding"] != "pleural effusion").astype(int) + (sided["positions"].map(len) < 2)
example = sided.loc[order.sort_values(kind="stable").index[0]]
film = to_display(pairs[example["row"]][1])
words = report_texts(test)[example["row"]].split()
run.show(figures.image_grid([film], columns=2), "guess", "A test film as the encoder sees it.")
print("the report says:", " ".join(words))

# %%
print("the phrase:", " ".join(words[place] for place in example["positions"]))

# %% [markdown]
# The patient's **left** is on the **right** of the picture. Before you go on, write down which quarter of the film
# the phrase should look at, and name one word of the report that should look nowhere in particular.
#
# ## 2. Two words, three patches, on paper
#
# One study has words $w_1 \dots w_W$ and patches $p_1 \dots p_P$, all of unit length. Word $j$ shares its attention
# among the patches, and reads what it sees:
#
# $$ a_{jk} = \mathrm{softmax}_k\Big(\frac{w_j \cdot p_k}{\tau_2}\Big), \qquad
#    c_j = \mathrm{unit}\Big(\sum_k a_{jk}\, p_k\Big) $$
#
# Take $w_1 = (1, 0)$, $w_2 = (0, 1)$, and patches $(1, 0)$, $(0, 1)$, $(0.6, 0.8)$. As in notebook 03 the temperature
# $0.2 / \ln 2$ turns exponentials into powers of two: cosine 1 gives 32, 0.8 gives 16, 0.6 gives 8, 0 gives 1.
#
# Before you run the next cell, compute both rows of attention.

# %%
w = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
tau = 0.2 / math.log(2)
a = (w @ p.T / tau).softmax(dim=1)
assert torch.allclose(a, torch.tensor([[32 / 41, 1 / 41, 8 / 41], [1 / 49, 32 / 49, 16 / 49]]))
names = {"rows": ["$w_1$", "$w_2$"], "columns": ["$p_1$", "$p_2$", "$p_3$"]}
figure = figures.similarity_matrix(
    a.numpy(), **names, row_label="word", column_label="patch", signless=True, value_label="attention"
)
run.show(figure, "toy_attention", "Attention of two words over three patches; every row sums to 1.")

# %% [markdown]
# Word 1 looks at patch 1 and, a little, at patch 3, which points halfway. The read-out $c_j$ is the weighted mean of
# patches, put back to unit length. (In notebook 05, $c_k$ is a prototype, which is another thing.)

# %%
c = F.normalize(a @ p, dim=1)
print("c_1 is (36.8, 7.4) / 41 before normalising:", (a @ p)[0].mul(41).tolist())
print("c_2 is (10.6, 44.8) / 49 before normalising:", (a @ p)[1].mul(49).tolist())

# %% [markdown]
# Now the contrast. What word $j$ has read should fit word $j$ better than what the *other words of the same report*
# have read: $S_{jm} = w_j \cdot c_m / \tau_2$, with the diagonal as the right answer, in both directions, and each
# word counting with a weight $\omega_j$:
#
# $$ L_w = \tfrac12 \sum_j \omega_j \big[ \mathrm{CE}(S_{j*}, j) + \mathrm{CE}(S_{*j}, j) \big] $$
#
# Notice where the negatives come from. Not from other patients: **from the same study**. Keep that in mind; the
# second half of this notebook hangs on it.

# %%
S = w @ c.T
figure = figures.similarity_matrix(
    S.numpy(), rows=["$w_1$", "$w_2$"], columns=["$c_1$", "$c_2$"], row_label="word", column_label="what a word read"
)
run.show(figure, "toy_contrast", "Each word should fit its own read-out best: the diagonal is the right answer.")

# %% [markdown]
# The **patch side** is the mirror image: patch $k$ shares attention among the words, reads $d_k$, and must recognise
# its own read-out among those of the other patches. Both sides are added.
#
# ### A slow loop, and the library
#
# Here is the whole term for one study, written so that every line can be held against a formula. It is slow on
# purpose: an independent witness is worth more than a fast copy.


# %%
def unit(vector):
    return vector / vector.norm()


def one_side(anchors, others, weight, tau):
    read = []
    for anchor in anchors:
        share = torch.stack([anchor @ other / tau for other in others]).softmax(dim=0)
        read.append(unit(sum(s * other for s, other in zip(share, others, strict=True))))
    loss = torch.zeros(())
    for j, anchor in enumerate(anchors):
        along = torch.stack([anchor @ one / tau for one in read])
        down = torch.stack([other @ read[j] / tau for other in anchors])
        loss = loss + weight[j] / 2 * (along.logsumexp(0) + down.logsumexp(0) - 2 * along[j])
    return loss


# %%
equal_w, equal_p = torch.full((2,), 1 / 2), torch.full((3,), 1 / 3)
by_loop = one_side(w, p, equal_w, tau) + one_side(p, w, equal_p, tau)
keep = torch.ones(1, 2, dtype=torch.bool)
library = token_alignment_loss(w[None], p[None], word_keep=keep, word_weight=None, patch_weight=None, temperature=tau)
assert abs(by_loop - library) < 1e-5, "slow loop and library must agree"
print(f"loop {by_loop:.5f}, library {library:.5f}: they agree; knowing nothing gives ln 2 + ln 3 = {math.log(6):.5f}")

# %% [markdown]
# ## 3. Which words count: the weights $\omega$
#
# *The* and *is* should not count like *effusion*: that is the idea. MGCA takes the attention that the report's class
# token pays to each word in the last layer, clips it to its own 10th and 90th percentile so that no word takes all, and
# divides by the sum. No gradient flows through. For patches of a ViT the same is done; a CNN has no class token, so
# there all patches count alike.
#
# Before you run the next cell: the weights were never trained towards findings. Which words of the report do you
# expect on top?

# %%
batch = next(pair_batches(model, pairs, batch_size=64))
with torch.inference_mode():
    image, report = model.encode_image(batch.images), model.encode_report(batch)
    image_before, report_before = untrained.encode_image(batch.images), untrained.encode_report(batch)
omega = importance_weights(report.weight, report.keep)
omega_patch = importance_weights(image.weight, image.keep)
print("words", tuple(report.local.shape), "patches", tuple(image.local.shape))

# %%
number = int(example["row"]) if example["row"] < len(batch) else 0  # the example, if it is in the batch
own = report_texts(test)[number].split()[: int(report.keep[number].sum())]
figure = figures.word_weights(own, omega[number, : len(own)].cpu().numpy())
run.show(
    figure, "word_weights", "Importance weights of the words of one test report; the dashed line is the equal share."
)

# %% [markdown]
# The clipping is visible: several words share the same highest and the same lowest bar. One report proves little, so
# here are the words that many reports of the batch use, with their mean weight. 1 is the equal share.
#
# Before you run the next cell: where will *is* stand, and where *effusion*?

# %%
texts = [report_texts(test)[row].split() for row in batch.rows.tolist()]
kept = [(b, j) for b in range(len(batch)) for j in range(int(report.keep[b].sum()))]
weights = pd.DataFrame({"word": [texts[b][j] for b, j in kept]})
weights["times the equal share"] = [float(omega[b, j] * report.keep[b].sum()) for b, j in kept]
by_word = weights.groupby("word")["times the equal share"].agg(uses="size", mean="mean")
common = by_word[by_word["uses"] >= max(3, len(batch) // 3)].sort_values("mean", ascending=False).round(2)
for name, part in {"highest": common.head(8), "lowest": common.tail(8)}.items():
    print(f"{name}:", ", ".join(f"{word} {mean}" for word, mean in part["mean"].items()))
asked = common.reindex(["the", "is", "no", "effusion", "pneumothorax", "edema"]).dropna()
asked.rename_axis("word")

# %% [markdown]
# The hope was that *is* counts less than *effusion*; look whether it does. Attention of a class token is not a measure
# of medical importance: nothing in the loss asks for that. The class token reads whatever helps to tell *this* report
# from others, and that may be a side, a device, or an odd turn of phrase.
#
# Now the loss on real tokens, checked with the same slow loop: three studies of the batch with their own weights.

# %%
few = slice(0, 3)
settings = {
    "word_keep": report.keep[few],
    "word_weight": omega[few],
    "patch_weight": omega_patch[few],
    "temperature": 0.1,
}
library = token_alignment_loss(report.local[few], image.local[few], **settings).item()
by_loop = 0.0
for b in range(3):
    n = int(report.keep[b].sum())
    words_b, patches_b = report.local[b, :n].cpu(), image.local[b].cpu()
    by_loop += one_side(words_b, patches_b, omega[b, :n].cpu(), 0.1) / 3
    by_loop += one_side(patches_b, words_b, omega_patch[b].cpu(), 0.1) / 3
assert abs(by_loop - library) < 1e-4, "slow loop and library must agree on real tokens, too"
print(f"loop {by_loop:.5f}, library {library:.5f}: they agree on three real studies")

# %% [markdown]
# ## 4. What the published code does differently
#
# Reports differ in length, so batches are padded. In the published code the padded slots go through the projection
# head, come out as one and the same vector, and stay in the softmax of the word side: every padded slot is one more
# negative. And in its ViT branch the read-out of a patch is not normalised, so its length below 1 softens the
# logits. The library reproduces both with `upstream="resnet"` and `upstream="vit"`; the project's tests hold these
# modes against numbers from the published code. The default, `None`, is the corrected loss, and the model of this
# notebook was trained with it: what follows reads the same tokens with three losses.
#
# How long are the reports of this batch?

# %%
lengths = report.keep.sum(dim=1).cpu()
slots = report.keep.shape[1]
print(
    f"words a report: {int(lengths.min())} to {int(lengths.max())}, mean {lengths.float().mean():.0f}, in {slots} slots"
)

# %% [markdown]
# Before you run the next cell: will padding make the word side's loss larger or smaller?

# %%
settings = {"word_keep": report.keep, "word_weight": omega, "patch_weight": omega_patch}
for mode in (None, "resnet", "vit"):
    parts = token_alignment_parts(report.local, image.local, **settings, upstream=mode)
    print(
        f"upstream={mode!s:7}: word side {parts.word_side:.3f} + patch side {parts.patch_side:.3f} = {parts.total:.3f}"
    )
    run.record(f"upstream/{mode or 'corrected'}/word_side", float(parts.word_side))
    run.record(f"upstream/{mode or 'corrected'}/patch_side", float(parts.patch_side))

# %% [markdown]
# Larger on the word side: there is more to be mistaken for. The patch side does not change between `None` and
# `resnet`, and does for `vit`, whose softened logits can never be sure. How large the first difference is depends on
# *how much padding there happens to be*, which is decided by the longest report of the batch, or upstream by a fixed
# 111 slots. Let us add slots.


# %%
def padded(extra, mode):
    filler = report.local[~report.keep][0].expand(len(batch), extra, -1)  # the vector of every padded slot
    keep = F.pad(report.keep, (0, extra), value=False)
    tokens = torch.cat([report.local, filler], dim=1)
    parts = token_alignment_parts(
        tokens,
        image.local,
        word_keep=keep,
        word_weight=F.pad(omega, (0, extra)),
        patch_weight=omega_patch,
        upstream=mode,
    )
    return float(parts.word_side)


extras = [0, 16, 32, 64]
sides = {"corrected": [padded(n, None) for n in extras], "upstream": [padded(n, "resnet") for n in extras]}
assert np.ptp(sides["corrected"]) < 1e-4, "padding must not change the corrected loss"

# %%
figure = figures.curves([slots + n for n in extras], sides, x_label="word slots in the batch", y_label="word side")
run.show(figure, "padding", "Padding changes the published loss and leaves the corrected one alone.")

# %% [markdown]
# In the published code the slots are always 111, so a short report has up to a hundred copies of one meaningless
# negative and a long one has none: its loss grows with what is *not* written, and its gradient pushes words away from
# nothing.
#
# ## 5. Heat maps, as in figure 3 of the paper
#
# `word_maps` returns the attention $a_{jk}$ of every word of every report: exactly what the loss trains. (The
# notebook that comes with the published code draws one minus the weights of an attention module that was never
# trained.) An overlay never comes without the plain film, and here it also gets the true outline.

# %%
maps = grounding.word_maps(model, pairs)
maps_before = grounding.word_maps(untrained, pairs)
patches = maps[0].shape[1]
print(f"{patches} patches; a word that looks nowhere in particular gives {1 / patches:.3f} to each")

# %%
mask = grounding.phrase_mask(phrases, example["mask"], **square)
inside = [place for place in example["positions"] if place < len(maps[example["row"]])][-4:]
others = [place for place in range(len(maps[example["row"]])) if place not in example["positions"]][:3]
shown = [*inside, *others]
heat = [grounding.enlarge_map(maps[example["row"]][place], image_size=sizes.image_size) for place in shown]
outlines = [mask if place in inside else None for place in shown]

# %%
figure = figures.word_heat_maps(film, heat, [words[place] for place in shown], masks=outlines)
run.show(figure, "word_maps", "Words of the phrase with the true outline, and other words of the same report without.")

# %% [markdown]
# Compare with the quarter that you wrote down. Look critically: does the brightest spot lie inside the outline? Do
# the words of the phrase look at the *same* place? Do *other* words look elsewhere? It is easy to be charmed by one
# good map, and every paper shows one. Here are three more studies, one a finding, trained and untrained side by side.

# %%
kinds = visible[~visible["uncertain"]].drop_duplicates("finding").drop_duplicates("row").iloc[:3]
for number, phrase in enumerate(kinds.itertuples(), start=1):
    both = {
        name: grounding.phrase_map(m[phrase.row], phrase.positions)
        for name, m in (("trained", maps), ("untrained", maps_before))
    }
    heat = [grounding.enlarge_map(m, image_size=sizes.image_size) for m in both.values() if m is not None]
    mask = grounding.phrase_mask(phrases, phrase.mask, **square)
    figure = figures.word_heat_maps(
        to_display(pairs[phrase.row][1]),
        heat,
        list(both)[: len(heat)],
        quoted=False,
        value_label="times the mean",
        columns=3,
        masks=[mask] * len(heat),
        title=shorten(phrase.phrase, 80),
    )
    run.show(figure, f"phrase_{number}", f"Where the phrase '{phrase.phrase}' looks, after and before training.")

# %% [markdown]
# ### Pick a word yourself
#
# Three chosen studies are still our choice. In a running notebook the next cell gives you two menus: any word of the
# same studies, with the whole film (the encoder sees a crop of it), the true outline, and whether the brightest pixel,
# the cross, hits it. A page that is only read shows one still panel instead. Before you pick, guess: will *effusion*
# hit more often than *the*?

# %%
from IPython.display import display
from matplotlib.figure import Figure

from mgca_lib.data.tasks import load_picture

edge = (sizes.stored_size - sizes.image_size) // 2
whole = {"stored_size": sizes.stored_size, "image_size": sizes.stored_size}  # no crop: side markers stay on
cases = []
picked = {example["row"]: example["finding"], **kinds.set_index("row")["finding"]}
for row, finding in picked.items():
    scores = grounding.score_words(phrases, maps[row], row, **square)
    case = {
        "name": f"film {row}: {finding}",
        "film": to_display(ImageTransform(**whole)(load_picture(test, row))),
        "words": report_texts(test)[row].split()[: len(maps[row])],
        "maps": [grounding.enlarge_map(one, image_size=sizes.image_size) for one in maps[row]],
        "masks": [score and grounding.phrase_mask(phrases, score[0], **whole) for score in scores],
        "scores": [score and vars(score[1]) for score in scores],
        "window": (edge, edge, sizes.image_size, sizes.image_size),
    }
    cases.append(case)

# %%
view = figures.explore_words(cases)  # a widget where a person can turn it, else a figure
if isinstance(view, Figure):
    run.show(view, "explorer", "One word of a report: film, heat map with the true outline, and its pointing game.")
else:
    display(view)

# %% [markdown]
# One word at a time, hits and misses come and go, and whoever is allowed to pick will find a hit. The plate below is
# what the paper prints as its figure 3: a few studies, a few words. It is drawn for print (`figures.save_figure` writes
# it as a PDF with text and outlines as vectors), and it still is a choice of ours.

# %%
plate = []
for case in cases[:3]:
    masked = {word: n for n, word in enumerate(case["words"]) if case["masks"][n] is not None}
    longest = sorted(masked, key=len)[-3:]  # "effusion" rather than "the"
    free = [n for n, mask in enumerate(case["masks"]) if mask is None][: 4 - len(longest)]
    shown = [*sorted(masked[word] for word in longest), *free]
    own = {part: [case[part][n] for n in shown] for part in ("words", "maps", "masks")}
    plate.append({**case, **own, "caption": case["name"]})
figure = figures.word_plate(plate)
figures.save_figure(figure, run.output_dir / "figure_3.pdf", dpi=300)
run.show(
    figure, "figure_3", "Words of three reports on their films: the cross would lie in the outline if words pointed."
)

# %% [markdown]
# ## 6. Measured, not admired
#
# Three questions for every phrase that points at something, with the mean map of its words:
#
# - **Pointing game**: does the brightest pixel lie inside the mask? The mean is over patients (`n` of them), not over
#   phrases. A *blind guess* hits as often as the mask's share of the film (other notebooks call it *chance*). *Other
#   patients' masks* is how often the same brightest pixel hits the masks of the same finding **in other patients**
#   (elsewhere: the *control*): a model that only knows where a disease usually sits scores as high there.
# - **CNR**, contrast-to-noise ratio: is the map brighter inside than outside, in units of its noise? 0 is blind.
# - **IoU**, intersection over union of map and mask: the pixels in both, divided by the pixels in either. The map is
#   cut at the best threshold; beside it stands a map that marks everything.
#
# A patch's attention is drawn at the centre of its grid cell. What a CNN's patch responds to lies a few pixels off;
# notebook 15 measures that.
#
# Before you run the next cell, write down the hit rate that you expect, after what you saw.

# %%
scored = {
    "trained": grounding.ground_phrases(phrases, maps, **square),
    "untrained": grounding.ground_phrases(phrases, maps_before, **square),
}
summary = {name: grounding.summarise_grounding(part, seed=run.seed) for name, part in scored.items()}
renamed = {"image not in this dataset": "phrases of training and validation films"}
print("left out:", {renamed.get(reason, reason): n for reason, n in scored["trained"].left_out.items() if n})
pd.DataFrame(
    {
        name: {
            "pointing": str(s.pointing),
            "blind guess": f"{s.chance:.3f}",
            "other patients' masks": f"{s.control:.3f}",
            "CNR": str(s.contrast),
            "IoU": str(s.iou),
            "IoU of everything": f"{s.iou_chance:.3f}",
        }
        for name, s in ((n, s["all"]) for n, s in summary.items())
    }
)

# %%
bars = {
    name: {**s.pointing.as_metric(), "chance": s.chance, "control": s.control}
    for name, s in summary["trained"].items()
    if s.phrases >= (10 if len(test) > 100 else 1)
}
run.show(
    figures.grounding_bars(bars),
    "pointing",
    "Pointing game of the trained model by finding, beside a blind guess and other patients' masks.",
)

# %%
for name, parts in summary.items():
    whole = parts["all"]
    run.record(f"grounding/{name}/pointing", whole.pointing.as_metric())
    run.record(f"grounding/{name}/chance", whole.chance)
    run.record(f"grounding/{name}/control", whole.control)
    run.record(f"grounding/{name}/cnr", whole.contrast.as_metric())
    run.record(f"grounding/{name}/iou", whole.iou.as_metric())

# %% [markdown]
# Now read the table as an opponent would. Is the trained hit rate above the *blind guess*, with the interval? Above
# *other patients' masks*, or does it know only where diseases usually sit? Above the untrained model? Expect to be
# disappointed: in all runs behind this course the maps of the token loss with negatives from the same study only
# pointed about as well as a blind guess, and an IoU at its best when everything is marked says the same. Beating the
# untrained model proves little: its maps are nearly flat, so random weights decide where their brightest pixel lies,
# and it can well fall below a blind guess.
#
# And yet the loss itself is low, as the next cell shows. That contradiction is the most instructive thing in this notebook. Let us
# find out why.
#
# ## 7. What did the loss learn, then?
#
# First, how low is it? Knowing nothing costs the logarithm of the number of words plus that of the number of patches. The untrained
# model stands beside it: its vectors lie in narrow cones (notebook 02), and tokens that are nearly equal cannot be told apart either.

# %%
settings = {"word_keep": report.keep, "word_weight": omega, "patch_weight": omega_patch}
trained_loss = token_alignment_loss(report.local, image.local, **settings).item()
untrained_loss = token_alignment_loss(report_before.local, image_before.local, **settings).item()
knows_nothing = float(lengths.float().log().mean()) + math.log(patches)
print(f"token loss {trained_loss:.3f}, untrained {untrained_loss:.3f}, knowing nothing {knows_nothing:.3f}")
run.record("token_loss/trained", trained_loss)
run.record("token_loss/untrained", untrained_loss)
run.record("token_loss/knows_nothing", knows_nothing)

# %% [markdown]
# ### Does it notice the wrong film?
#
# Give every report the film of another patient. If the loss has learned what words look like on films, it must rise.
# Before you run the next cell: for what share of the studies will the right film have the lower token loss? Chance is
# one half. And what will instance alignment do with the same question?


# %%
def study_loss(report_number, film_number):
    n = int(report.keep[report_number].sum())
    own_words, own_patches = (
        report.local[report_number : report_number + 1, :n],
        image.local[film_number : film_number + 1],
    )
    keep = torch.ones(1, n, dtype=torch.bool, device=run.device)
    return token_alignment_loss(own_words, own_patches, word_keep=keep, word_weight=None, patch_weight=None).item()


n = len(batch)
swapped = [(number + n // 2) % n for number in range(n)]
right = np.array([study_loss(number, number) for number in range(n)])
wrong = np.array([study_loss(number, other) for number, other in enumerate(swapped)])

# %%
cosine = (report.pooled @ image.pooled.T).cpu().numpy()
noticed = {"token alignment": right < wrong, "instance alignment": np.diag(cosine) > cosine[range(n), swapped]}
print(f"mean token loss with the right film {right.mean():.3f}, with another patient's {wrong.mean():.3f}")
for name, hits in noticed.items():
    share = wilson_interval(int(hits.sum()), n)
    run.record(f"right_film/{name.split()[0]}", share.as_metric())
    print(f"{name:18}: prefers the right film in {share}")

# %% [markdown]
# If the token loss hardly moves, it has been solved **without comparing the film with the report at all**. How can
# that be? Look at the formula again. The negatives of a word are the other words of the same report, the negatives of
# a patch the other patches of the same film. Nobody ever asks "this film or that one?". It is enough that the words
# are *different from each other*, the patches are different from each other, and some fixed rule links the two.
#
# ### What do the tokens encode?
#
# Such a rule needs a code that is always available: for a patch, its place on the film; for a word, its place in the
# report, or its identity. Both encoders know these. We ask what share of the variance of the token vectors is
# explained by each. Shuffled groups show what the same number of groups explains by luck.


# %%
def explained(vectors, groups):
    centred = pd.DataFrame(vectors - vectors.mean(axis=0))
    between = centred.groupby(np.asarray(groups)).transform("mean")
    return float((between**2).to_numpy().sum() / (centred**2).to_numpy().sum())


groups = {
    "patch by place on the film": np.tile(np.arange(patches), n),
    "patch by film": np.repeat(np.arange(n), patches),
    "word by place in the report": [j for _, j in kept],
    "word by identity": [texts[b][j] for b, j in kept],
    "word by report": [b for b, _ in kept],
}

# %%
rng = np.random.default_rng(run.seed)
rows = {}
for name, labels in groups.items():
    tokens = {"untrained": (image_before, report_before), "trained": (image, report)}
    pick = {k: a.local.flatten(0, 1) if name.startswith("patch") else b.local[b.keep] for k, (a, b) in tokens.items()}
    rows[name] = {k: explained(v.cpu().numpy(), labels) for k, v in pick.items()}
    rows[name]["trained, shuffled"] = explained(pick["trained"].cpu().numpy(), rng.permutation(labels))
    run.record(f"explained/{name.replace(' ', '_')}", rows[name]["trained"])
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Compare *place* with *film* and *report*. Where place explains much and the study next to nothing, the vectors are
# street numbers: patch 17 says "I am patch 17", the ninth word says "I am the ninth word", and the loss is content,
# since all street numbers differ. What the disease looks like did not have to be learned.
#
# ### A network without eyes
#
# The final test of that suspicion: optimise the loss with **no images and no reports**. One vector a place, the same
# for every film; one vector a word position, the same for every report. They start at random. Before you run the next
# cell: where will the loss start, and how low can it get?

# %%
generator = torch.Generator().manual_seed(run.seed)
word_code, place_code = (torch.randn(1, size, 32, generator=generator).requires_grad_() for size in (20, 36))
optimizer = torch.optim.Adam([word_code, place_code], lr=0.05)
blind = []
for _ in range(60):
    loss = token_alignment_loss(
        word_code, place_code, word_keep=torch.ones(1, 20, dtype=torch.bool), word_weight=None, patch_weight=None
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    blind.append(loss.item())

# %%
floor = {"knowing nothing": math.log(20) + math.log(36)}
figure = figures.curves(range(60), {"token": blind}, x_label="step", y_label="token loss", levels=floor)
run.show(figure, "without_eyes", "The token loss of a network that sees neither film nor report.")
run.record("token_loss/without_eyes", blind[-1])
print(f"start {blind[0]:.3f}, end {blind[-1]:.4f}, knowing nothing {floor['knowing nothing']:.3f}")
assert blind[-1] < floor["knowing nothing"] / 2, "the loss can be lowered without any input"

# %% [markdown]
# Even the random start is far below "knowing nothing": to be *different from each other* is most of what this loss
# asks, and a few steps do the rest. A loss that a blind network can bring down proves nothing about sight. It does
# not follow that the term is useless: the paper's ablation finds that it helps linear probing a little, and it may do
# so by keeping patch and word vectors apart, which is a useful regulariser. But *a heat map from it must not be read
# as an explanation* unless it has been measured, as in section 6.
#
# What would force the words to look? Negatives **from other studies**: GLoRIA scores a report against every film of
# the batch, through an attention of its own. [Notebook 15](15_grounding.ipynb) trains such losses (`token_form="cta_grounded"` and
# `"gloria"`) and measures whether words then point.
#
# ## 8. A failure, looked at
#
# The phrase with the worst contrast among the trained maps, so that we do not only show good ones.

# %%
table = scored["trained"].table
low = table.loc[table["contrast"].idxmin()]
match = visible[(visible["row"] == low["row"]) & (visible["phrase"] == low["phrase"])].iloc[0]
heat = [
    grounding.enlarge_map(grounding.phrase_map(m[match["row"]], match["positions"]), image_size=sizes.image_size)
    for m in (maps, maps_before)
]
outline = grounding.phrase_mask(phrases, match["mask"], **square)
figure = figures.word_heat_maps(
    to_display(pairs[match["row"]][1]),
    heat,
    ["trained", "untrained"],
    quoted=False,
    value_label="times the mean",
    masks=[outline] * 2,
    columns=3,
)
run.show(figure, "failure", f"The phrase '{match['phrase']}': the finding lies in one of the darkest parts of its map.")

# %% [markdown]
# A clinician who is shown this overlay without the outline would look at the wrong place, and trust it, because it is
# bright and smooth. Bilinear enlargement makes any grid look like anatomy.
#
# ## What we showed, and what not
#
# **Shown.** Attention, read-out, contrast inside the study, both sides, weights: on paper, in a slow loop, in the
# library. Padding changes the published loss. Maps were measured against masks with two chance levels. The loss can
# be lowered without looking.
#
# **Not shown.** That token alignment *cannot* ground words: other negatives do better (notebook 15), and more data, pretrained
# encoders and other settings may. But whoever claims it has to show the hits on other patients' masks.
#
# **Where it breaks.** Negatives within the study only, street-number codes, coarse patch grids (small findings fill
# less than one patch), phrases that the tokenizer cut off.

# %%
_ = run.finish(question="Which word looks at which patch?", headline="grounding/trained/pointing")

# %% [markdown]
# ## Exercises
#
# **1. Recall.** A report of 5 words, a film of 49 patches, a model that knows nothing: what is the token loss? Fill
# in a number.

# %%
my_loss = None  # your number
assert my_loss is None or abs(my_loss - math.log(5) - math.log(49)) < 0.005, (
    "not yet: two sides, each a softmax over ..."
)
print("not answered yet" if my_loss is None else "right")

# %% [markdown]
# **2. Modify.** The attention temperature is 0.1. Try others for the maps of the longest report of the batch, and find one
# at which the mean entropy of the maps is half of $\ln P$. Could the brightest patch of a word, and with it the pointing game, change?

# %%
my_temperature = None  # your number
from mgca_lib.alignment import attention_maps

one = int(lengths.argmax())
one_report, one_film = report.local[one : one + 1, : int(lengths[one])], image.local[one : one + 1]
attention = attention_maps(one_report, one_film, temperature=my_temperature or 0.1)
entropy = float(-(attention * attention.clamp_min(1e-12).log()).sum(dim=2).mean())
print(f"temperature {my_temperature or 0.1}: mean entropy {entropy:.2f}, half of ln P is {math.log(patches) / 2:.2f}")
assert my_temperature is None or abs(entropy - math.log(patches) / 2) < 0.05, "not yet: higher temperatures flatten"
print("not answered yet" if my_temperature is None else "right")

# %% [markdown]
# **3. Research.** Write a token loss with negatives from other studies: score every report against every film with
# $s_{ib} = \sum_j \omega_j \, w_{ij} \cdot c_{ijb}$, where $c_{ijb}$ is what word $j$ of report $i$ reads on film
# $b$, and put a softmax over the films, at temperature 0.1. Below is the score matrix to start from. What is the loss,
# from reports to films, and does the score prefer the right film more often than the token loss did?

# %%
with torch.inference_mode():
    attention = (torch.einsum("ijd,bkd->ibjk", report.local, image.local) / 0.1).softmax(dim=3)
    seen = F.normalize(torch.einsum("ibjk,bkd->ibjd", attention, image.local), dim=3)
    my_scores = torch.einsum("ij,ijd,ibjd->ib", omega, report.local, seen).cpu().numpy()

# %%
my_loss = None  # your number: the mean cross-entropy over the reports
expected = F.cross_entropy(torch.from_numpy(my_scores) / 0.1, torch.arange(n)).item()
assert my_loss is None or abs(my_loss - expected) < 1e-3, f"not yet; knowing nothing gives ln B = {math.log(n):.3f}"
print("not answered yet" if my_loss is None else "right")
hits = my_scores.diagonal() > my_scores[range(n), swapped]
print("prefers the right film in", wilson_interval(int(hits.sum()), n))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# **1.** $\ln 5 + \ln 49 = 5.50$.
#
# **2.** Higher temperatures flatten, lower ones sharpen; search by halving (at `demo` between 0.05 and 0.1). The
# brightest patch never changes with the temperature, so for a single word the pointing game cannot improve. For a
# phrase the *mean* of several maps can change its maximum, but no temperature puts information into a map that has
# none.
#
# **3.** `scores = my_scores / 0.1` and `my_loss = np.mean(np.log(np.exp(scores).sum(1)) - scores.diagonal())`. Without
# training the scores of this model carry little, because nothing ever asked for it. Train with
# `run.config.override(token_form="cta_grounded")`, whose score differs from yours in one detail (which words count), and repeat
# sections 6 and 7; notebooks 15 and 16 do it. Memory grows with $B^2 W P$, which is why batches must be small.
#
# </details>
#
# ## References
#
# - Wang et al., *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning*,
#   NeurIPS 2022, arXiv 2210.06044, section 3.3 and figure 3. Code: HKU-MedAI/MGCA.
# - Huang et al., *GLoRIA*, ICCV 2021: attention with negatives from the whole batch.
# - Li et al., arXiv 2401.10501 (RECLF), and arXiv 2507.23402 (AGA): later ways to relate words and regions.
#
# **Next:** [05 Prototype alignment](05_prototype_alignment.ipynb): do studies gather by disease?
