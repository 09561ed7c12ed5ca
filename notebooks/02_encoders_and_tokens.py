# %% [markdown]
# # 02 · How do pixels become patches, and letters words?
#
# Everything that MGCA aligns is a vector. Before any alignment, somebody must decide what a vector stands for: a
# whole film, a square of it, a letter group, a word. This notebook takes the two encoders apart. No network here has
# been trained: what we see is what the architecture gives for free, and that is more than most people expect.
#
# **After this notebook you can** (1) name the four things an encoder returns and their shapes, (2) say how much of
# the film one patch has seen, (3) merge word pieces to words in one step, and check it against a loop, (4) show how
# padding corrupts a BatchNorm, and stop it, (5) turn attention into importance weights, (6) build the honest
# baseline: what do random features know?
#
# - **First read** [01 Data preparation](01_data_preparation.ipynb), which makes the data.
# - **Time** `smoke` and `demo` under a minute on two CPU cores; nothing is trained.
# - **Data** the prepared MIMIC-CXR, phantom or real.
# - **Departures from upstream** words are merged on the device instead of in Python loops; padding stays out of every
#   BatchNorm; a word gets its own attention weight (upstream's are one token off).
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project

# %%
from mgca_lib.run import start_run

run = start_run("02_encoders_and_tokens", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. Four things an encoder returns
#
# Both encoders, for films and for reports, return the same small dataclass, `Tokens`:
#
# | field | shape | for a film | for a report |
# |---|---|---|---|
# | `pooled` | $(B, D)$ | the whole film | the whole report |
# | `local` | $(B, N, D)$ | one vector a patch | one vector a word |
# | `keep` | $(B, N)$ | all true | false where a slot is padding |
# | `weight` | $(B, N)$ | how much a patch matters | how much a word matters |
#
# The alignments of notebooks 03 to 05 know nothing else of the encoders. So a new encoder needs no new loss, and a
# new loss no new encoder. Let us make one batch of pairs.

# %%
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.tokenization import load_tokenizer, train_tokenizer
from mgca_lib.data.transforms import ImageTransform

mimic, config = run.studies("mimic_cxr"), run.config.model
train, test = mimic.split("train"), mimic.split("test")
if config.text_model:
    tokenizer = load_tokenizer(config.text_model)
else:
    tokenizer = train_tokenizer(report_texts(train), vocabulary=config.text_vocabulary)

# %%
transform = ImageTransform(stored_size=config.stored_size, image_size=config.image_size)
pairs = PairImages(train, tokenizer, transform, max_pieces=config.max_pieces, seed=run.seed)
batch = pairs.collate([pairs[row] for row in range(min(16, len(pairs)))]).to(run.device)
{name: tuple(value.shape) for name, value in vars(batch).items() if hasattr(value, "shape")}

# %% [markdown]
# **Predict.** The film enters as `(16, 1, S, S)`. From the shape of the batch alone, can you tell how many *words* the
# longest report has? Then build the model of this profile, untrained, and look.

# %%
import pandas as pd
import torch

from mgca_lib.model import build_model

model = build_model(run.config, tokenizer, seed=run.seed).to(run.device).eval()
with torch.inference_mode():
    image_tokens = model.image_encoder(batch.images)
    report_tokens = model.report_encoder(batch.pieces, batch.piece_keep, batch.word_ids, batch.num_words)
shapes = {"film": image_tokens, "report": report_tokens}
pd.DataFrame({name: {key: tuple(value.shape) for key, value in vars(one).items()} for name, one in shapes.items()}).T

# %% [markdown]
# You cannot: `pieces` counts letter groups and the two marks at the ends of a report, and words are fewer. How many fewer depends on
# how often the vocabulary had to cut a word; `num_words` holds the answer. The widths of film and report
# differ as well. The projection heads of section 6 bring them to one width.
#
# ## 2. From pixels to patches
#
# The course accepts two families of image encoders. A **CNN** (ResNet) slides small filters; its *patches* are the cells of
# the stage that has shrunk the film 16 times. A **ViT** cuts the film into squares of 16 x 16 pixels at once, and lets
# all squares attend to one another. Here is one film with the grid, the same for both at this size.

# %%
from dataclasses import replace

from mgca_lib import figures
from mgca_lib.data.transforms import to_display
from mgca_lib.encoders import build_image_encoder

film = to_display(batch.images[0])
torch.manual_seed(run.seed)
small = replace(config, backbone_weights=False, backbone_channels=[], stem_width=0, upsample_to=0)
vit = build_image_encoder(replace(small, backbone="test_vit")).to(run.device).eval()
cnn = model.image_encoder
if cnn.is_vit:  # the published default; take a small CNN beside it
    cnn = build_image_encoder(replace(small, backbone="test_resnet")).to(run.device).eval()
with torch.inference_mode():
    vit_tokens = vit(batch.images)
side = int(vit_tokens.local.shape[1] ** 0.5)

# %%
run.show(
    figures.patch_grid(film, (side, side)),
    "patches",
    "The film as the encoder sees it, alone and under the grid of patches. Each square becomes one vector; the squares "
    "say nothing about where one organ ends and the next begins.",
)
grid = int(image_tokens.local.shape[1] ** 0.5)
print(f"{config.backbone}: {grid} x {grid} patches of {image_tokens.local.shape[2]} numbers")
print(f"test_vit: {side} x {side} patches of {vit_tokens.local.shape[2]} numbers")
run.record("patches/count", image_tokens.local.shape[1])

# %% [markdown]
# At the published size, 224 pixels, ViT-B/16 gives $14 \times 14 = 196$ patches. Upstream's ResNet-50 enlarges the crop to 299 pixels
# first and gives $19 \times 19 = 361$.
#
# And the `weight`? A CNN's patches all get $1/P$: it has no attention to take weights from. A ViT's patches get the
# attention of the class token. **Predict.** Which patch does an untrained ViT prefer?

# %%
uniform = 1 / image_tokens.weight.shape[1]
if not model.image_encoder.is_vit:
    assert torch.allclose(image_tokens.weight, torch.tensor(uniform)), "a CNN has no favourite patch"
relative = vit_tokens.weight / vit_tokens.weight.mean(dim=1, keepdim=True)
print(f"test_vit: patch weights from {relative.min():.2f} to {relative.max():.2f} times the equal share")

# %% [markdown]
# None: with random weights its attention is flat, and the weights are as equal as a CNN's. Preferences come with
# training.
#
# ## 3. What has a patch seen?
#
# A heat map paints a patch's square, as if the patch knew its square and nothing else. **Predict.** For the cell in the
# middle of the grid, which share of what it reacts to lies inside its own 16 x 16 pixels: nearly all, half, or little?
#
# We ask the network: how strongly does the cell change when a pixel changes? That is the gradient of the cell's vector with
# respect to the film, squared; `pixel_influence` returns the share of each pixel, and all shares add up to 1.

# %%
from mgca_lib.evaluation.receptive_field import patch_offset, pixel_influence

seen = {"CNN": pixel_influence(cnn, batch.images[:8], grid // 2, grid // 2)}
seen["ViT"] = pixel_influence(vit, batch.images[:8], side // 2, side // 2)

# %%
import numpy as np
import torch.nn.functional as F

own = np.zeros(film.shape, bool)
step = film.shape[0] // grid
inside = slice((grid // 2) * step, (grid // 2 + 1) * step)
own[inside, inside] = True
maps = [F.avg_pool2d(share[None], 4)[0].numpy() for share in seen.values()]  # coarser, so that the eye sees more
run.show(
    figures.word_heat_maps(
        film,
        maps,
        list(seen),
        masks=[own, own],
        columns=3,
        value_label="reaction, times its mean",
        outline_label="the patch's own square",
        quoted=False,
    ),
    "receptive_field",
    "What one patch in the middle reacts to, for an untrained CNN and an untrained ViT. The outline is its own square. "
    "The CNN's reaction spills over into the neighbourhood; nearly all of the ViT's lies inside.",
)

# %%
for name, influence in seen.items():
    share = float(influence[torch.from_numpy(own)].sum())
    print(f"{name}: {share:.0%} inside its own square, which is {own.mean():.1%} of the film")
    run.record(f"receptive_field/{name.lower()}_inside", share)

# %% [markdown]
# Both react most to their own square, and to more. A CNN cell has seen a neighbourhood wider than its square. A ViT patch
# may have seen the whole film by way of attention; before training it makes little use of that. So a heat map that lights
# up a square says "the vector *stored* here answered", not "the evidence lies here".
#
# Look again at the CNN. Is its reaction centred on its square? `patch_offset` computes the centre of gravity, averaged over
# the patches in the middle of the film.

# %%
for name, encoder in {"CNN": cnn, "ViT": vit}.items():
    down, right = patch_offset(encoder, batch.images)
    print(f"{name}: {down:+.2f} down and {right:+.2f} right of the middle of its square, in sides of the square")
    run.record(f"receptive_field/{name.lower()}_offset_pixels", step * float(np.hypot(down, right)))

# %% [markdown]
# A minus sign means up, or left. A filter that takes every second pixel is centred on the *first* pixel of each pair,
# not between the two. With four such halvings, kernels and strides alone would shift the middle by nearly half a cell, up
# and to the left. The shortcuts of a ResNet, which lead around its filters, pull it back: this untrained one is off by the
# share printed above. A ViT cuts exact squares, and should show much less of it. Heat maps of CNN cells, painted on
# squares, sit too low and too far right by that share: a small, systematic, and seldom noticed error. Training may move it,
# so notebook 15 measures it again.
#
# ## 4. From letters to pieces, from pieces to words
#
# A report encoder has a fixed vocabulary. *WordPiece* keeps frequent words whole and cuts the rest into pieces; `##`
# marks a piece that continues a word. For `smoke` and `demo` the vocabulary is learned from the training reports, so
# that nothing need be downloaded; `paper` uses that of Bio_ClinicalBERT.
#
# **Predict.** Which of these words stay whole: *effusion, cardiomegaly, hydropneumothorax, xylophone*?

# %%
for word in ("effusion", "cardiomegaly", "hydropneumothorax", "xylophone"):
    print(f"{word:18s}", " ".join(tokenizer.tokenize(word)))

# %% [markdown]
# What the vocabulary has seen often stays whole. A rare word falls into fragments that mean little alone; a letter
# never seen gives `[UNK]`, and the word is lost. How does the size of the vocabulary change the length?

# %%
texts = report_texts(train)[:1000]
words_in_all = sum(len(text.split()) for text in texts)
sizes = [100, 200, 400, 800, 1500, 3000]
pieces_per_word = []
for vocabulary in sizes:
    trial = train_tokenizer(texts, vocabulary=vocabulary)
    pieces_per_word.append(sum(len(trial.tokenize(text)) for text in texts) / words_in_all)

# %%
run.show(
    figures.curves(
        sizes,
        {"pieces": pieces_per_word},
        x_label="vocabulary size",
        y_label="pieces per word",
        log_x=True,
        marks={f"this profile: {len(tokenizer)}": len(tokenizer)},
    ),
    "vocabulary",
    "Pieces per word against the size of the vocabulary; 1 would mean that every word stays whole. A larger vocabulary "
    "cuts less, until only words that occur once, and the mark of what was removed, are left to cut.",
)
mean_pieces = sum(len(tokenizer.tokenize(text)) for text in texts) / words_in_all
print(f"this profile: {mean_pieces:.2f} pieces per word")
run.record("pieces_per_word", mean_pieces)

# %% [markdown]
# The doctor reads *words*, and the paper aligns words with patches. So pieces must be put together again: the vector of
# a word is the **sum** of the vectors of its pieces. On a toy, with a loop:

# %%
values = torch.tensor([[9.0, 9.0], [1.0, 0.0], [2.0, 1.0], [5.0, 5.0], [9.0, 9.0]])  # [CLS] in ##filtrate lung [SEP]
word_of_piece = [-1, 0, 0, 1, -1]  # -1: belongs to no word
words = torch.zeros(2, 2)
for vector, word in zip(values, word_of_piece, strict=True):
    if word >= 0:
        words[word] += vector
print(words)

# %% [markdown]
# The published code loops like this over every token of every report, in Python, and asks the device for each id. On a GPU
# each question stops everything. The library does the same in one `scatter_add` on the device, from word numbers that
# were made once, at tokenisation.

# %%
from mgca_lib.encoders import merge_pieces

merged, keep = merge_pieces(values[None], torch.tensor([word_of_piece]), num_words=3)
print(merged[0], keep[0])
assert torch.equal(merged[0, :2], words), "loop and scatter-add differ"

# %% [markdown]
# The third slot is empty, and `keep` says so. One word says nothing: the mark `___`, which stands where names and dates were
# removed. It survives cleaning, is cut into three pieces, and becomes a word like any other.
#
# Now on the real batch: same result, and how long does each take?

# %%
import time


def merge_with_loop(values, word_ids, num_words):
    merged = torch.zeros(len(values), num_words, values.shape[-1])
    for report in range(len(values)):
        for piece, word in enumerate(word_ids[report].tolist()):
            if word >= 0:
                merged[report, word] += values[report, piece]
    return merged


hidden = torch.randn(*batch.pieces.shape, 64)
arguments = hidden, batch.word_ids.cpu(), batch.num_words
started = time.perf_counter()
slow = merge_with_loop(*arguments)
middle_time = time.perf_counter()
fast, _ = merge_pieces(*arguments)
ended = time.perf_counter()

# %%
assert torch.allclose(slow, fast, atol=1e-5), "the two merges differ"
ratio = (middle_time - started) / (ended - middle_time)
print(f"the loop takes {ratio:.0f} times as long, on the CPU, where it is at its best")

# %% [markdown]
# Before a loss, each vector passes a small *head* (Linear, BatchNorm, ReLU, Linear, BatchNorm, division by its length);
# section 6 looks inside. One consequence of a *sum*: a word of many pieces starts with a longer vector. **Predict.** Does
# that matter for the losses, which compare cosines only?

# %%
with torch.inference_mode():
    projected = model.encode_report(batch)
flat_keep = report_tokens.keep.cpu()
counts = merge_pieces(torch.ones(*batch.pieces.shape, 1), batch.word_ids.cpu(), batch.num_words)[0][..., 0][flat_keep]
raw_length = report_tokens.local.norm(dim=-1).cpu()[flat_keep]
unit_length = projected.local.norm(dim=-1).cpu()[flat_keep]
frame = pd.DataFrame({"pieces": counts.int(), "before the head": raw_length, "after the head": unit_length})
frame.groupby("pieces").agg("mean").round(3)

# %% [markdown]
# The head ends on the unit sphere, so the length is gone after it. Its effect on the direction is not: the first layer of the head
# sees the longer vector. A mean instead of a sum would be as defensible. The published model sums, so we do.
#
# ## 5. Padding, and why BatchNorm must not see it
#
# Reports differ in length, tensors do not. Short reports are filled up with empty slots. The heads contain
# *BatchNorm*, which subtracts the mean of the batch and divides by its spread. Upstream lets the empty slots, all
# alike, into mean and spread. So what a word becomes depends on how much *emptiness* happened to stand beside it.
#
# The head of the words can do both: `padded=True` is upstream's way. **Predict.** We add empty slots to one batch and change
# nothing else. By how much do the real words' unit vectors change, at 50 % padding: by 1 %, 10 %, more?

# %%
import copy

real = report_tokens.local[report_tokens.keep].cpu().clone()  # real words only, (number, width)


def real_words_after(head, empty):
    slots = torch.cat([real, torch.zeros(empty, real.shape[1])])[None]
    keep = torch.arange(slots.shape[1])[None] < len(real)
    with torch.no_grad():
        return head(slots, keep)[0, : len(real)]


# %%
shares = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9]
change = {}
for name, padded in {"BatchNorm over all slots (upstream)": True, "MaskedBatchNorm": False}.items():
    head = copy.deepcopy(model.report_local).cpu().train()
    head.padded = padded
    clean = real_words_after(head, 0)
    moved = [real_words_after(head, round(len(real) * share / (1 - share))) for share in shares]
    change[name] = [100 * float((one - clean).norm() / clean.norm()) for one in moved]

# %%
run.show(
    figures.curves(
        [100 * share for share in shares],
        change,
        x_label="empty slots (% of all)",
        y_label="change of the real words' unit vectors (%)",
    ),
    "padding",
    "How far real words move when empty slots are added. With ordinary BatchNorm they move far; with the masked one not "
    "at all.",
)
own_padding = 100 * float((~report_tokens.keep).float().mean())
print(f"this batch holds {own_padding:.0f} % empty slots; upstream, which always fills up to 111 words, has more")
print({name: [f"{value:.1f} %" for value in values] for name, values in change.items()})
assert max(change["MaskedBatchNorm"]) < 1e-3, "padding reached the statistics"
run.record("padding/change_at_half_percent", change["BatchNorm over all slots (upstream)"][3])

# %% [markdown]
# The words were the same in every run; only their neighbours' emptiness differed. With the masked version empty slots change nothing,
# however many there are. This matters twice: in training, where short reports would be distorted by long
# neighbours, and at test time, where the running statistics carry the padding of the training batches.
#
# Where nothing is padded, the masked version *is* the ordinary one:

# %%
from torch import nn

from mgca_lib.encoders import MaskedBatchNorm

plain, masked = nn.BatchNorm1d(real.shape[1]), MaskedBatchNorm(real.shape[1])
together = masked.train()(real[None], torch.ones(1, len(real), dtype=torch.bool))[0]
assert torch.allclose(plain.train()(real), together, atol=1e-4), "the two differ without padding"
assert torch.allclose(plain.running_var, masked.running_var, rtol=1e-4, atol=1e-6), "running statistics differ"
print("no padding: both agree, running statistics included")

# %% [markdown]
# ## 6. Projection heads and the unit sphere
#
# A head is Linear, BatchNorm, ReLU, Linear, BatchNorm, and then division by the length. Four separate heads serve films, patches,
# reports and words. Afterwards all vectors live on one sphere in $D$ dimensions, where a product is a cosine.

# %%
with torch.inference_mode():
    film_projected = model.encode_image(batch.images)
for name, one in {"film": film_projected, "report": projected}.items():
    lengths = one.pooled.norm(dim=-1)
    print(f"{name}: pooled {tuple(one.pooled.shape)}, lengths {lengths.min():.4f} to {lengths.max():.4f}")
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4), "not on the unit sphere"

# %% [markdown]
# **Predict.** Nothing is trained. Take two films at random: what is the cosine of their vectors *before* the head, near
# 0 or near 1? And after it? And what if the last BatchNorm were left out? (The head's BatchNorm uses the statistics of the
# batch, as in training.)

# %%
from mgca_lib.evaluation.features import frozen, pair_batches

subset = test.select(np.arange(len(test)) < 500)
test_pairs = PairImages(subset, tokenizer, transform, max_pieces=config.max_pieces, seed=run.seed)
parts = {"film": [], "report": [], "words": []}
with torch.inference_mode(), frozen(model):
    for one in pair_batches(model, test_pairs, 64):
        report = model.report_encoder(one.pieces, one.piece_keep, one.word_ids, one.num_words)
        parts["film"].append(model.image_encoder(one.images).pooled.cpu())
        parts["report"].append(report.pooled.cpu())
        parts["words"].append((report.local.sum(1) / report.keep.sum(1, keepdim=True)).cpu())
features = {name: torch.cat(values) for name, values in parts.items()}

# %%
different = ~torch.eye(len(subset), dtype=torch.bool)
after, cosines = {}, {}
for name, head in {"film": model.image_global, "report": model.report_global}.items():
    raw = features[name].to(run.device)
    with torch.no_grad():
        head.train()
        after[name], without = head(raw), F.normalize(head.layers[:-1](raw), dim=-1)
        head.eval()
    stages = {"before": F.normalize(raw, dim=-1), "without_last_norm": without, "after": after[name]}
    cosines[f"two {name}s"] = {stage: float((one @ one.T).cpu()[different].mean()) for stage, one in stages.items()}
    for stage, cosine in cosines[f"two {name}s"].items():
        run.record(f"cosine_of_strangers/{name}_{stage}", cosine)
pd.DataFrame(cosines).T.round(3).rename(columns={"without_last_norm": "without its last BatchNorm"})

# %% [markdown]
# Before the head all films point nearly the same way, into a narrow *cone*: features after ReLU are positive, and the
# mean chest dominates. Reports are closer still: all start from the same `[CLS]` vector, and layers without training add
# little to it that depends on the words. A softmax over such cosines could tell nothing apart. BatchNorm subtracts the mean chest,
# and vectors spread over the sphere. The first BatchNorm of the head does part of the work, but behind it stands a ReLU, which
# leaves no number below zero. So a cone is left without the last one; to open it is what the last BatchNorm is for.
#
# Are a film and its *own* report closer than strangers? **Predict** before you look.

# %%
cosine = (after["film"] @ after["report"].T).cpu()
matched, unmatched = cosine.diagonal().numpy(), cosine[different].numpy()
run.show(
    figures.similarity_histogram(matched, unmatched),
    "untrained_cosines",
    "Cosines of films with reports in the untrained model. Matched and unmatched pairs cover each other completely: "
    "nothing has been aligned yet. Notebook 03 pulls the two apart.",
)
run.record("untrained/matched_minus_unmatched", float(matched.mean() - unmatched.mean()))

# %% [markdown]
# ## 7. Which words count?
#
# *"There is a small effusion"*: five words, of which two matter. The report encoder's `[CLS]` token reads the report by *attention*, a
# set of weights over the pieces with sum 1. Upstream takes these weights from the last layer, averages them over heads, sums them over
# a word's pieces, and so gets an importance for each word, for free.
#
# Raw attention has outliers. So each row is clipped to its own 10th and 90th percentile and divided by its
# sum. On five numbers, by hand:

# %%
from mgca_lib.alignment.token import importance_weights

attention = np.array([0.02, 0.10, 0.12, 0.16, 0.60])
clipped = attention.clip(*np.percentile(attention, [10, 90]))
by_hand = clipped / clipped.sum()
library = importance_weights(torch.tensor(attention)[None], None)[0].numpy()
print("attention", attention, "\nby hand  ", by_hand.round(3), "\nlibrary  ", library.round(3))
assert np.allclose(by_hand, library), "clipping by hand and the library differ"

# %% [markdown]
# The outlier of 0.60 is tamed, and no word is silenced. No gradient flows through the weights: a word cannot make itself
# unimportant to escape the loss. Now a real report, in the untrained model. **Predict.** Will the name of a
# disease weigh more than *the*?

# %%
lengths = report_tokens.keep.sum(1)
row = int((lengths - 20).abs().argmin())  # the report of the batch that is nearest to 20 words
weight = importance_weights(report_tokens.weight, report_tokens.keep)
names = pairs.studies.table["sentences"].iat[int(batch.rows[row])]
names = " ".join(names).split()[: int(report_tokens.keep[row].sum())]
own_weight = weight[row][report_tokens.keep[row]].cpu().numpy()
run.show(
    figures.word_weights(names, own_weight.tolist()),
    "word_weights",
    "Importance weights of the words of one report in the untrained model. All sit near the equal share: without training, "
    "attention does not know what matters.",
)
assert abs(own_weight.sum() - 1) < 1e-5, "weights must sum to 1"

# %% [markdown]
# Weights know nothing yet. A word of several pieces starts ahead, because the attention of its pieces is added; clipping cuts
# its lead back. Weights become useful only as training goes on, and then by their own making: no loss asks them to be right.
#
# The published code has a slip here. It removes the `[CLS]` column from the attention, but pairs the rest with a list that still
# starts at `[CLS]`. Every piece gets its *right neighbour's* attention. The library does the same on request. **Predict.** Will
# the words of a report keep their order of importance? A rank correlation of 1 means yes, 0 means no trace of it.

# %%
from scipy.stats import spearmanr

with torch.inference_mode():
    model.report_encoder.shifted_weights = True
    shifted = model.report_encoder(batch.pieces, batch.piece_keep, batch.word_ids, batch.num_words)
    model.report_encoder.shifted_weights = False
reports = zip(weight, importance_weights(shifted.weight, shifted.keep), shifted.keep, strict=True)
agreement = [spearmanr(right[real].cpu(), wrong[real].cpu()).statistic for right, wrong, real in reports]
agreement = float(np.nanmean(agreement))
print(f"rank correlation of right and shifted weights within a report: {agreement:.2f}")
run.record("upstream/shifted_weight_rank_correlation", agreement)

# %% [markdown]
# Each word now carries its neighbour's importance. In an untrained model neither means anything. Notebook 12 repeats this on
# the trained one, and names the training runs that can tell whether it costs anything.
#
# ## 8. What do random features know?
#
# A baseline is honest only if it gets every chance. An untrained network is not a blank: it is a fixed, rich, random
# *function* of the input. For each test film we look for the most similar film of *another* patient, by the cosine of
# random features.
#
# **Predict.** Will the neighbour share the view (AP or PA)? An effusion? Will random *text* features do better or worse?

# %%
patients = pd.factorize(subset.table["patient_id"])[0]
other = torch.from_numpy(patients[:, None] != patients[None, :])


def nearest(values):
    unit = F.normalize(values - values.mean(dim=0), dim=-1)  # the mean chest taken off, as BatchNorm would
    return (unit @ unit.T).masked_fill(~other, -2).argsort(dim=1, descending=True).numpy()


neighbours = {name: nearest(values) for name, values in features.items()}

# %%
from mgca_lib.evaluation.intervals import bootstrap_interval

traits = {"AP view": subset.table["view"].to_numpy() == "AP"}
for label in ("Pleural Effusion", "Cardiomegaly", "Pneumothorax", "Edema"):
    traits[label] = subset.labels([label])[:, 0] == 1


def shared(order, has):  # films of one patient are not independent: whole patients are drawn
    hits = has[order[:, 0]][has]
    return bootstrap_interval(lambda films: hits[films].mean(), len(hits), groups=patients[has])


# %%
rows, chance = {}, {}
for trait, has in traits.items():
    by_film = [has[other[number].numpy()].mean() for number in np.flatnonzero(has)]
    chance[trait] = float(np.mean(by_film)) if by_film else np.nan
    rows[trait] = {"films": int(has.sum()), "chance": f"{chance[trait]:.0%}"}
    for name, order in neighbours.items():
        if by_film:
            interval = shared(order, has)
            rows[trait][name] = f"{interval.mean:.0%} ({interval.low:.0%} to {interval.high:.0%})"
            run.record(f"random_neighbour/{name}/{trait.lower().replace(' ', '_')}", interval.as_metric())
pd.DataFrame(rows).T.rename(columns={"report": "report, [CLS]", "words": "report, mean of words"}).fillna("")

# %% [markdown]
# Read each row as: "of the films with this trait, how many have a nearest neighbour with it?", beside the chance of a
# blind draw. Believe a difference only where chance lies outside the interval; an interval without width, such as 0 % to
# 0 %, only says that too few films were asked. Compare *film* with *words*. The random features of the films hardly rise
# above chance, if at all, even for something as large as the view. Those of the text do so for every disease of the table:
# two reports with the same words get similar sums, whatever the vectors, and a random network is a disguised word count.
#
# The race is not fair: MIMIC's labels were read from these very reports. The view is not, and the phantoms' cleaned text
# does not name it. Compare its row: there the text has no lead.
#
# So "better than chance" is no achievement, at least not for text. The baseline of notebook 07 is this one, and not a coin.

# %%
query = int(np.flatnonzero(traits["Pleural Effusion"])[0]) if traits["Pleural Effusion"].any() else 0
chosen = [query, *neighbours["film"][query, :4].tolist()]
names = ["effusion" if traits["Pleural Effusion"][number] else "no effusion" for number in chosen]
titles = [f"query: {names[0]}", *(f"neighbour {place}: {name}" for place, name in enumerate(names[1:], start=1))]
run.show(
    figures.image_grid([to_display(test_pairs[number][1]) for number in chosen], titles, columns=5),
    "random_neighbours",
    "A test film and its four nearest films of other patients by random features. Look for what they share: brightness, "
    "framing, build. Whether they share a disease depends on how much of the film it fills.",
)

# %% [markdown]
# One query proves nothing; the table says how often the nearest neighbour of a film with an effusion has one, too. A neighbour
# without it is the failure case of the notebook: a film that looks alike and *means* something else. Alignment with reports is
# there to make meaning count.
#
# ## 9. The sizes of the profiles
#
# We build the encoders of all profiles, without weights and without memory (`meta` device), and count.

# %%
from mgca_lib.config import PROFILES
from mgca_lib.encoders import build_report_encoder


def millions(module):
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


variants = {name: one.model for name, one in PROFILES.items()}
variants["paper, ResNet-50"] = replace(variants["paper"], backbone="resnet50", upsample_to=299)
sizes = {}
with torch.device("meta"):
    for name, one in variants.items():
        pieces = 512 if one.text_model else one.max_pieces  # as many places as Bio_ClinicalBERT has
        vocabulary = 28996 if one.text_model else one.text_vocabulary  # that of Bio_ClinicalBERT
        bare = replace(one, backbone_weights=False, text_model="", max_pieces=pieces)  # nothing downloaded
        film_encoder = build_image_encoder(bare)
        text_encoder = build_report_encoder(bare, vocabulary=vocabulary, padding=0)
        sizes[name] = {"image encoder": one.backbone, "millions": millions(film_encoder)}
        sizes[name] |= {"text layers": one.text_layers, "text, millions": millions(text_encoder)}
pd.DataFrame(sizes).T

# %%
for name, one in sizes.items():
    run.record(f"parameters/{name.replace(', ', '_')}/image_millions", one["millions"])
    run.record(f"parameters/{name.replace(', ', '_')}/text_millions", one["text, millions"])

# %% [markdown]
# **Why six layers?** Bio_ClinicalBERT has twelve. The published code loads it into a configuration that says six, so
# only the *first* six are used, which is not obvious from the paper. Whoever loads the plain model builds another,
# slower network, and compares apples with pears. `text_layers` makes the choice visible.
#
# **And without network?** The `paper` encoders start from published weights. If they cannot be had, the library says
# what to do, in one sentence:

# %%
from mgca_lib.encoders import EncoderError

try:
    missing = replace(PROFILES["paper"].model, text_model="./models/not_downloaded")
    build_report_encoder(missing, vocabulary=28996, padding=0)
except EncoderError as error:
    print(error)

# %% [markdown]
# ## 10. What we showed, what we did not, where it breaks
#
# **Shown:** both encoders return the same four things; a patch has seen more than its square; pieces become words in one step that
# agrees with a loop; padding moves real words unless it is masked; the head's BatchNorms open the cone, and the last one is
# needed for it; random features of a report already know a little.
#
# **Not shown:** that attention weights become meaningful with training, or that a sum is the best way to make a
# word. **Where it breaks:** words outside the vocabulary; reports beyond the limit; heat maps that are read as if a patch knew only its
# square.

# %%
written = run.finish(question="How do pixels become patches, and letters words?", headline="patches/count")
print(f"wrote {written.name}")

# %% [markdown]
# ## Exercises
#
# **1. Recall.** A ViT with patches of 16 pixels sees films of 384 x 384 pixels. How many patches are there, class token not
# counted?

# %%
my_patches = None

assert my_patches in (None, (384 // 16) ** 2), "count along one side, then square"
print("open" if my_patches is None else "correct")

# %% [markdown]
# **2. Modify.** Change the toy of section 4 so that a word is the *mean* of its pieces. Give the vector of the first
# word as a list.

# %%
my_first_word = None  # a list of two numbers

assert my_first_word is None or np.allclose(my_first_word, (values[1] + values[2]) / 2), (
    "add the pieces, divide by how many"
)
print("open" if my_first_word is None else "correct")

# %% [markdown]
# **3. Research.** How small can random features be? Keep only the first $d$ numbers of `features["words"]`, and find the smallest $d$ of
# 2, 4, 8, 16 ... for which the nearest neighbour still shares an effusion more often than chance: the interval must lie above it.
# With seven widths to try, one may pass by luck.

# %%
my_width = None


def above_chance(width):
    interval = shared(nearest(features["words"][:, :width]), traits["Pleural Effusion"])
    return interval.low > chance["Pleural Effusion"]


smaller = [width for width in (2, 4, 8, 16, 32, 64) if my_width is not None and width < my_width]
assert my_width is None or above_chance(my_width), "the interval of this width reaches down to chance"
assert not any(map(above_chance, smaller)), "a smaller width passes, too"
print("open" if my_width is None else "correct for this seed; compare three seeds before you believe it")

# %% [markdown]
# <details><summary><b>Solutions</b></summary>
#
# **1.** `my_patches = 576`.
#
# **2.** `my_first_word = [1.5, 0.5]`. In the library: divide `merged` by
# `merge_pieces(torch.ones_like(values[..., :1])[None], ...)[0]`, clamped to at least 1.
#
# **3.**
# ```python
# for width in (2, 4, 8, 16, 32, 64, 128):
#     print(width, shared(nearest(features["words"][:, :width]), traits["Pleural Effusion"]))
# print("chance", chance["Pleural Effusion"])
# ```
# The answer depends on the seed. That is the point: a single run of a random baseline proves little.
#
# </details>
#
# ## References
#
# - F. Wang and others. *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation
#   Learning.* NeurIPS 2022. [arXiv:2210.06044](https://arxiv.org/abs/2210.06044)
# - The published code: [HKU-MedAI/MGCA](https://github.com/HKU-MedAI/MGCA).
#
# **Next:** [03 Instance alignment](03_instance_alignment.ipynb) makes a film find its own report.
