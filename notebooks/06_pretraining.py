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
# # 06 · Pretraining: what happens when the three alignments train together?
#
# **After this notebook you can** (1) read the loss curves of all three terms against what a model that knows
# nothing would score, (2) name every ingredient of the published recipe and say which ones this course changes,
# (3) start the same training on one GPU or on eight, stop it, and go on where it stopped.
#
# - **First read** [03 Instance alignment](03_instance_alignment.ipynb), [04 Token alignment](04_token_alignment.ipynb)
#   and [05 Prototype alignment](05_prototype_alignment.ipynb).
# - **Time** `smoke` under half a minute, `demo` some minutes on two CPU cores, `full_width` most of an hour there, `paper`
#   about a day on two RTX 3090 as published.
# - **Data** the phantom studies that notebook 01 prepared; with `paper`, MIMIC-CXR-JPG and its reports.
# - **Departures from upstream** contrast over all processes, padding kept out of BatchNorm and out of every
#   softmax, each word's own weight, the last word kept, MIMIC's test split kept out of model selection, bf16 where the
#   device is fast in it. [Notebook 12](12_upstream_quirks.ipynb) lists them all.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/06_pretraining in the project

# %%
from mgca_lib.run import start_run

run = start_run("06_pretraining", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. What goes in
#
# Pretraining needs pairs: a film and the report that a radiologist wrote about it. No label of any disease is
# read in this notebook. The table below is all the model will ever be told.

# %%
studies = run.studies("mimic_cxr")
train, valid = studies.split("train"), studies.split("valid")
print(f"{studies.card.name} ({studies.card.source}): {len(train)} training pairs, {len(valid)} validation pairs")
train.table[["image_id", "view", "impression", "sentences"]].head(3)

# %% [markdown]
# A *batch* is a handful of such pairs, and everything in this notebook happens within batches. The films of a
# batch are stacked, the reports are cut into word pieces and padded to the longest report.
#
# The order of the pairs and the place of every random crop depend on the seed and the epoch alone. That is why a
# colleague with four loader processes, or with four GPUs, trains on the same sequence as you do.

# %%
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.tokenization import train_tokenizer
from mgca_lib.data.transforms import ImageTransform

sizes = run.config.model
tokenizer = train_tokenizer(sorted(set(report_texts(train))), vocabulary=sizes.text_vocabulary)
crop = ImageTransform(sizes.stored_size, sizes.image_size, "crop")
pairs = PairImages(train, tokenizer, crop, max_pieces=sizes.max_pieces, seed=run.seed)
batch = pairs.collate([pairs[row] for row in range(min(run.config.training.batch_size, len(pairs)))])

# %%
print(f"images   {tuple(batch.images.shape)}: B films, one grey channel, S x S pixels")
print(f"pieces   {tuple(batch.pieces.shape)}: B reports, T word pieces")
print(
    f"words    {batch.num_words} slots; {batch.piece_keep.float().mean():.0%} of the piece slots are real, the rest is padding"
)

# %% [markdown]
# ## 2. One objective, three levels
#
# The paper adds the three terms that the last three notebooks built (equation 10):
#
# $$\mathcal{L} = \lambda_1\,\mathcal{L}_{ITA} + \lambda_2\,\mathcal{L}_{CTA} + \lambda_3\,\mathcal{L}_{CPA}$$
#
# The published command line sets all three weights to one. (The class in the published code says 1, 0.7, 0.5, but
# the command line always overrides it. Whoever copies the class copies another model.)

# %%
weights = run.config.alignment
{"lambda_1": weights.instance_weight, "lambda_2": weights.token_weight, "lambda_3": weights.prototype_weight}

# %% [markdown]
# ### Guess first
#
# What should a model that knows nothing score? If all $B$ reports look alike, picking the right one among $B$ costs
# $\ln B$, and ITA asks in both directions, so $2 \ln B$. Picking one of $K$ prototypes blindly costs $\ln K$.
# CTA asks each word to find itself among the $W$ words of its own report, and each patch among the $P$ patches of
# its own film: $\ln W + \ln P$.
#
# **Before you run the next cell**, work out the three numbers for the batch above, with the number of prototypes
# that this profile uses.

# %%
import math

words_per_report = batch.word_ids.max(dim=1).values.float().add(1)
patches = (sizes.image_size // 16) ** 2
chance = {
    "instance": 2 * math.log(len(batch)),
    "token": words_per_report.log().mean().item() + math.log(patches),
    "prototype": math.log(weights.num_prototypes),
}
{name: round(value, 2) for name, value in chance.items()}

# %% [markdown]
# Now an untrained model on the same batch, in evaluation mode. Should it land below these values, near them, or far above?
# To cost much more than ignorance, a model must be *sure* of wrong answers.

# %%
import torch

from mgca_lib.model import build_model

model = build_model(run.config, tokenizer, seed=run.seed) if PROFILE != "paper" else None
if model is not None:
    with torch.inference_mode():
        untrained = model.eval()(batch)[0].named()
    for name, value in chance.items():
        print(f"{name:10s} untrained {untrained[name]:6.2f}   knows nothing {value:6.2f}")

# %% [markdown]
# Where it lands near them, random weights are not sure of anything: to an untrained encoder all studies look nearly alike, so no
# answer is preferred by much.
#
# ### Where the parameters are
#
# Most parameters sit in the encoders. The prototypes, which notebook 08 will draw as stars, are a tiny matrix.

# %%
if model is not None:
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name, count in parts.items():
        print(f"{name:22s}{count:>12,}")
    print(f"{'all':22s}{sum(parts.values()):>12,}")

# %% [markdown]
# ## 3. The recipe
#
# AdamW with weight decay on every parameter; a learning rate that rises linearly and then falls as half a cosine,
# updated after every step; prototypes that stand still for the first epoch; early stopping when the validation loss
# no longer falls.
#
# The next cell prints the profiles from the settings themselves. Before you run it: `paper` starts both encoders
# from trained weights, the others start from nothing. Which of them needs the larger learning rate?

# %%
import pandas as pd

from mgca_lib.config import PROFILES

shown = ("backbone", "text_layers", "image_size", "num_prototypes", "learning_rate", "warmup_fraction", "batch_size")
recipes = {
    name: {**vars(profile.model), **vars(profile.alignment), **vars(profile.training)}
    for name, profile in PROFILES.items()
}
pd.DataFrame(recipes).loc[[*shown, "epochs"]]

# %% [markdown]
# The learning rate of `paper` is the smallest by far: trained weights are to be bent, not built. Its batch of 72 is that of
# each of two GPUs; its image encoder starts from DeiT's weights, trained on ImageNet; its report encoder is the first half of Bio_ClinicalBERT's layers, and the `demo` image encoder is a
# ResNet-10 with half the usual width. The other difference is not in the table: Bio_ClinicalBERT has filled in the masked words of
# millions of notes before it meets a film, and the report encoder of `demo` has never read anything. `mlm_epochs` lets it read the
# training reports first; it is 0 here, and notebook 16 measures what it is worth.

# %%
from mgca_lib import figures
from mgca_lib.pretrain import learning_rate_at

training = run.config.training
steps = len(train) // (training.batch_size * training.accumulation) * training.epochs
rates = [learning_rate_at(step, steps, training) for step in range(steps)]
schedule = figures.curves(range(steps), {"learning rate": rates}, x_label="step", y_label="learning rate")
run.show(schedule, "schedule", "The learning rate rises linearly, then falls along half a cosine to almost zero.")

# %% [markdown]
# A detail of the published run is instructive. Its warm-up takes 40 % of 50 epochs, that is 20 epochs, and the best
# checkpoint that the authors name is from epoch 20: right at the peak of the learning rate. With early stopping after
# five epochs without gain, the cosine tail was hardly used. A schedule that you plan is not always the one you run.

# %% [markdown]
# ## 4. Train
#
# **Before you run the next cell**, write down: which term will fall furthest below its chance value, and which term will
# show the largest gap between training and validation?
#
# If this seed has been trained before, the cell finds the finished run and loads it. Otherwise it trains now, with a
# progress bar that shows the loss parts, pairs per second and the time left. You may stop it: run the cell again and
# it goes on from its last checkpoint.

# %%
from mgca_lib.pretrain import pretrain

trained = pretrain(run.config, studies, run.pretraining, seed=run.seed, resume=True)
print("trained now" if trained.trained else "found a finished run with the same settings, data and seed")

# %%
history = pd.DataFrame(trained.history)
columns = ["epoch", "train/total", "valid/instance", "valid/token", "valid/prototype", "valid/total", "valid/top1"]
history[columns].round(3).iloc[:: max(1, len(history) // 8)]

# %%
curves = figures.loss_curves(trained.history, chance=chance | {"total": sum(chance.values())})
run.show(curves, "losses", "Each term over the epochs, training and validation, against what knowing nothing costs.")

# %% [markdown]
# **Read the figure from left to right.** The training curve of instance alignment soon falls below its dotted line: films
# and reports of the same study find each other among all pairs of the batch. The validation curve may stay about the line
# or above it for several epochs and jump before it follows; section 7 has a likely reason. A gap is left when both have settled.
# How much of it is memory, since the training reports have been seen many times, is measured there, too.
#
# Token alignment starts low and falls on. Do not rejoice: its negatives lie *within* one pair, so telling words
# apart is enough, and the film need not be read well. Notebook 04 measured where the words really point.
#
# Prototype alignment hardly leaves $\ln K$ at first, because the prototypes stand still and the codes spread all
# studies evenly. Where the validation curve of instance alignment jumps, this one jumps with it, even above $\ln K$. What
# it ends at is bounded from below by how evenly Sinkhorn spreads the codes.

# %%
last = history.iloc[-1]
best = history.loc[history["valid/total"].idxmin()]
print(f"best epoch {best['epoch']:.0f} of {last['epoch']:.0f}; validation loss {best['valid/total']:.2f}")
for name, value in chance.items():
    print(f"{name:10s} valid {best[f'valid/{name}']:6.2f}   knows nothing {value:6.2f}")

# %% [markdown]
# The loss is a means. A quantity with a meaning is in-batch retrieval: how often is the own report the most similar
# one of the batch? Chance is one in $B$.

# %%
pool = min(training.batch_size, len(valid))
recall = figures.curves(
    history["epoch"],
    {"own report first": history["valid/top1"], "own report among five": history["valid/top5"]},
    x_label="epoch",
    y_label="share of validation pairs",
    levels={"chance, first": 1 / pool, "chance, among five": 5 / pool},
)
run.show(recall, "retrieval", "In-batch retrieval on validation pairs rises above chance as the alignments train.")

# %% [markdown]
# ## 5. Can the checkpoint be trusted?
#
# Three checks that every reader can repeat. First: the losses are numbers, and the model beats ignorance on pairs that it
# never saw. A smoke test need not, and neither need two passes at `full_width`.

# %%
assert history.notna().all().all(), "a loss is not a number"
learned = best["valid/instance"] < chance["instance"]
print("all losses are numbers; instance alignment", "beats" if learned else "does NOT beat", "knowing nothing")
assert learned or PROFILE in ("smoke", "full_width"), "instance alignment did not learn"

# %% [markdown]
# Second: what was saved is what was measured. We load the best checkpoint from disk and measure its validation
# loss again. Nothing is unpickled on the way: weights are safetensors, settings are json.

# %%
from accelerate import Accelerator

from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.pretrain import evaluate, validation_loader

reloaded, own_tokenizer, provenance = load_checkpoint(trained.best, device=run.device)
accelerator = Accelerator()
loader = validation_loader(run.config, valid, own_tokenizer, seed=run.seed, accelerator=accelerator)
again = evaluate(reloaded, loader, accelerator)
print(f"stored {best['valid/total']:.4f}, measured again {again['total']:.4f}")
assert abs(again["total"] - best["valid/total"]) < 0.05, "the checkpoint is not the model that was measured"

# %% [markdown]
# (The two may differ in the third decimal where training ran in bf16 and the check in fp32.)
#
# Third: the checkpoint knows where it comes from. Settings, seed and the hash of the data travel with the weights, so a
# folder full of checkpoints does not become a riddle.

# %%
{key: provenance[key] for key in ("seed", "step", "data")}

# %% [markdown]
# ## 6. From the laptop to the GPU
#
# The command line and this notebook call the same function. Every setting of the tables above is an option;
# `python -m mgca_lib.pretrain --help` explains each.
#
# **What to download for `paper`** (credentialed PhysioNet account, signed data use agreement):
#
# | what | where | then |
# |---|---|---|
# | MIMIC-CXR-JPG 2.1.0 (films, splits, labels) | physionet.org/content/mimic-cxr-jpg | `RAW/` |
# | MIMIC-CXR 2.1.0, the file `mimic-cxr-reports.zip` | physionet.org/content/mimic-cxr | into `RAW/`, may stay zipped |
# | Bio_ClinicalBERT | Hugging Face hub, `emilyalsentzer/Bio_ClinicalBERT` | fetched at first use, or `hf download` |
# | DeiT's ImageNet weights for the image encoder | Hugging Face hub, through timm | fetched at first use |

# %% [markdown]
# ```bash
# # films and reports to the prepared dataset (restartable)
# python -m data_scripts.prepare_mimic_cxr --raw RAW --out data/paper/prepared/mimic_cxr --size 256
#
# # one GPU, the published ViT recipe with this course's corrections; --resume goes on after an interruption.
# # Nearer to the published code: --upstream vit, and --local_groups 2 to contrast the 72 pairs of each GPU apart
# python -m mgca_lib.pretrain --profile paper --data data/paper/prepared/mimic_cxr \
#     --out outputs/paper/06_pretraining/pretraining --batch_size 144
#
# # eight GPUs: 18 pairs on each make the published batch of 144; negatives are gathered across all
# accelerate launch --num_processes 8 --mixed_precision bf16 -m mgca_lib.pretrain --profile paper \
#     --data data/paper/prepared/mimic_cxr --out outputs/paper/06_pretraining/pretraining --batch_size 18
#
# # the ResNet-50 variant
# ... --backbone resnet50 --upsample_to 299
# ```

# %% [markdown]
# No licence yet? The same path runs on phantoms at full width: profile `full_width` trains a ViT-B/16 at 224 pixels and six
# BERT layers from scratch. [This notebook at that profile](full_width/06_pretraining.ipynb) was executed on a CPU, with a
# tenth of the pairs that a GPU would be given and two passes over them: it shows that everything fits together at the
# published size, and not how good such a model becomes. On a GPU, `python -m data_scripts.make_phantoms --out RAW
# --datasets mimic_cxr --counts mimic_cxr=58000` writes as many studies as you like in MIMIC's own layout, and `--profile full_width --epochs 50 --batch_size
# 144 --num_prototypes 500` trains on them.
#
# ### How long will it take?
#
# Time is pairs divided by pairs per second. The published run saw about 217,000 pairs in each of at most 50 epochs, and the
# authors report about a day on two RTX 3090. The best epoch that they name, plus the five that early stopping waits, makes 25: then
# the speed was half of what 50 would have taken. The cell works out both, and what your machine just reached with the small model.

# %%
for epochs in (25, 50):
    print(f"published code, {epochs} epochs of 217,000 pairs in a day: {217_000 * epochs / 86_400:.0f} pairs/s")
own_speed = history["pairs_per_second"].median()
minutes = len(train) * len(history) / own_speed / 60
print(f"this run: {own_speed:.0f} pairs/s, {minutes:.1f} min of training steps")

# %% [markdown]
# Full-size training on a GPU has not been timed for this course yet, so there is no number of ours to put beside the
# published one.

# %% [markdown]
# ## 7. What failed, and what we did not show
#
# - **The model remembers.** The gap between the training and the validation curve of ITA opens early, and does not close. It need
#   not all be memory, since the two curves are measured differently: training losses are averages over an epoch in which the
#   weights move, on random crops, in training mode. The cell below measures training pairs the way validation pairs are
#   measured; the gap between those two is memory.
# - **The validation loss may jump** while the learning rate is high, and may then be worse than knowing nothing. A likely
#   reason, not tested here: in evaluation mode BatchNorm uses running averages of statistics that the weights have already left
#   behind; once the rate has fallen, the jumps stop. Had early stopping been less patient, it would have ended the run in
#   the middle of them.
# - **A low CTA loss is not grounding.** It can be had without looking at the right place.
# - **Equal reports count as negatives.** Two normal films with the same words are pushed apart. An option
#   that spares them exists (`mask_same_text`); the published recipe does not have it, and this run does not use it.
# - **One seed.** A single run says nothing about how much luck there was; `make seeds` repeats it with others, and
#   the README shows the intervals.

# %%
gap = (history["valid/instance"] - history["train/instance"]).iloc[-1]
seen = train.select(range(min(len(train), len(valid))))  # as many as the validation split has
seen_loader = validation_loader(run.config, seen, own_tokenizer, seed=run.seed, accelerator=accelerator)
memory = again["instance"] - evaluate(reloaded, seen_loader, accelerator)["instance"]
print(f"gap between validation and training ITA at the end: {gap:.2f} nats")
print(f"between validation pairs and as many training pairs, measured alike: {memory:.2f} nats")
print(f"epochs since the best validation loss: {last['epoch'] - best['epoch']:.0f}")

# %%
for name in ("instance", "token", "prototype", "total"):
    run.record(f"pretrain/valid/{name}", best[f"valid/{name}"])
run.record("pretrain/valid/top1", best["valid/top1"])
run.record("pretrain/valid/top5", best["valid/top5"])
run.record("pretrain/epochs", last["epoch"])
run.record("pretrain/pairs_per_second", own_speed)
run.finish(question="What happens when the three alignments train together?", headline="pretrain/valid/top5").name

# %% [markdown]
# ## 8. Exercises
#
# **1. Recall.** With 144 pairs in the batch and 500 prototypes, what do ITA and CPA cost a model that knows nothing?

# %%
my_ita, my_cpa = None, None  # your numbers, worked out by hand
assert my_ita is None or abs(my_ita - 2 * math.log(144)) < 0.01, "not yet: both directions are added"
assert my_cpa is None or abs(my_cpa - math.log(500)) < 0.01, "not yet: one of K prototypes, blindly"
print("not answered yet" if None in (my_ita, my_cpa) else "right")

# %% [markdown]
# <details><summary>Solution</summary>
#
# $2 \ln 144 \approx 9.94$ and $\ln 500 \approx 6.21$.
# </details>
#
# **2. Modify.** `run.config.override(token_weight=0.0, prototype_weight=0.0)` is instance alignment alone, which the published
# repository calls ConVIRT. Which one setting makes it ITA + CPA? Train that into a folder of its own and compare its validation
# ITA with the one above. The check wants the settings.

# %%
my_config = None  # run.config.override(...)
expected = {"token_weight": 0.0}
assert my_config is None or my_config == run.config.override(**expected), "not yet: which term looks at words?"
print("not answered yet" if my_config is None else "right: now train it")

# %% [markdown]
# <details><summary>Solution</summary>
#
# `my_config = run.config.override(token_weight=0.0)`, then `pretrain(my_config, studies, run.output_dir / "ita_cpa", seed=run.seed,
# resume=True)`, and compare `history[-1]["valid/instance"]`. One pair of runs is an anecdote: repeat with three seeds before you believe a difference.
# </details>
#
# **3. Research.** Sinkhorn spreads $B$ studies evenly over $K$ prototypes; the paper has 72 on each GPU against 500. Find out what
# happens to the validation CPA, as a share of $\ln K$, when $K$ is four times larger, and whether a queue of past features
# (`queue_size`) brings it back. To begin with: how many studies a prototype has a batch here?

# %%
my_studies_per_prototype = None  # a number
here = training.batch_size / weights.num_prototypes
assert my_studies_per_prototype is None or abs(my_studies_per_prototype - here) < 0.01, "not yet: B over K"
print("not answered yet" if my_studies_per_prototype is None else f"right; the paper has {72 / 500:.2f}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# `run.config.override(num_prototypes=...)` changes $K$. With fewer studies than prototypes every code is
# spread thin, and the swapped prediction learns mostly the spreading.
# </details>

# %% [markdown]
# ## 9. References and the next notebook
#
# - Wang, Zhou, Wang, Vardhanabhuti, Yu. Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
#   Representation Learning. NeurIPS 2022, arXiv 2210.06044.
# - Johnson et al. MIMIC-CXR-JPG, PhysioNet.
#
# **What we showed:** the three terms train together, each can be read against its own chance value, and the
# checkpoint is what was measured. **What we did not:** that the features are good for anything.
# That is the next question: [07 Linear probe](07_linear_probe.ipynb).
