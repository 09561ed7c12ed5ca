# %% [markdown]
# # 10 · Zero-shot: can the encoder read labels it was never given?
#
# **After this notebook you can** (1) turn a sentence into a classifier and check it by hand, (2) judge it against
# chance, an untrained encoder and a probe with labels, (3) say how far a result depends on the wording of the prompt,
# and (4) tell an honest retrieval score from one that was ranked inside batches.
#
# - **First read** [03 Instance alignment](03_instance_alignment.ipynb) and [07 Linear probe](07_linear_probe.ipynb).
# - **Time** `smoke` under 15 seconds, `demo` about half a minute on two CPU cores with a trained encoder at hand;
#   `paper` is mostly the time to encode the films of CheXpert once, which notebook 07 has done already if you ran it.
# - **Data** the phantom CheXpert, which the encoder never saw, and the test pairs of the phantom MIMIC-CXR; with
#   `paper`, the real ones.
# - **Departures from upstream** MGCA was published without zero-shot classification and logs retrieval inside
#   training batches. Here every prompt is used instead of a random draw, and every query is ranked over the whole
#   test set.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/10_zero_shot in the project
RESAMPLES = 500  # bootstrap resamples behind each interval

# %%
from mgca_lib.run import start_run

run = start_run("10_zero_shot", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. A sentence becomes a classifier
#
# Notebook 07 gave the frozen encoder some labels and fitted a probe. Now it gets none. It has a second half that no
# probe used: the report encoder. Pretraining put films and reports into one space, so we can *write* what we look
# for, encode the sentence as if it were a report, and see which films lie near it. This is called **zero-shot**
# classification: zero labelled examples.
#
# The recipe has three steps: encode several sentences that say that the finding is there; average them and bring the
# average back to length 1, which is the **class vector**; do the same for sentences that deny it. A film shows the
# finding if it is nearer to the first vector than to the second.
#
# A tiny case in the plane: two sentences affirm, one denies, and there are three films. **Before you run the cell**,
# compute the class vector and decide which films show the finding.

# %%
import numpy as np
import torch
import torch.nn.functional as F

affirm = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # two prompts, both of length 1
deny = torch.tensor([[0.0, 1.0]])
films = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
mean = affirm.mean(dim=0)
present = mean / mean.norm()
print(f"mean {mean.numpy().round(3)}, its length {mean.norm():.3f}, class vector {present.numpy().round(3)}")

# %% [markdown]
# The mean of two unit vectors is shorter than 1 unless they agree, hence the second step. Then, for each film, the
# cosine with both vectors, and a softmax over the two: with $\tau$ the temperature of the loss,
#
# $$ p = \frac{e^{\cos(v, t^+) / \tau}}{e^{\cos(v, t^+) / \tau} + e^{\cos(v, t^-) / \tau}}
#      = \sigma\!\left(\frac{\cos(v, t^+) - \cos(v, t^-)}{\tau}\right) $$

# %%
from mgca_lib.evaluation.zero_shot import zero_shot_scores

difference = films @ present - films @ deny[0]
by_hand = 1 / (1 + torch.exp(-difference / 0.5))
library = zero_shot_scores(films, present[None], deny, temperature=0.5)[:, 0]
assert np.allclose(by_hand, library, atol=1e-6), "three lines and the library disagree"
print("difference of cosines", difference.numpy().round(3), " probability", by_hand.numpy().round(3))

# %% [markdown]
# Only the sign of the difference decides between yes and no, and only its *order* over films matters for the AUROC.
# So the temperature changes neither; it changes how sure the answer sounds.
#
# ## 2. Real sentences
#
# The trained model comes from notebook 06; the untrained twin has the weights that training started from. Below are
# the course's prompts for one finding. They are written in the language of reports on purpose, and they are cleaned
# like reports, since lower-case words without punctuation are all that the encoder has ever read.

# %%
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.evaluation.zero_shot import PROMPT_SETS, encode_classes, encode_prompts
from mgca_lib.model import build_model
from mgca_lib.pretrain import pretrain

trained = pretrain(run.config, run.studies("mimic_cxr"), run.pretraining, seed=run.seed, resume=True)
print("pretrained now" if trained.trained else "found the finished run of notebook 06")
model, tokenizer, _ = load_checkpoint(trained.best, device=run.device)
models = {"random": build_model(run.config, tokenizer, seed=run.seed).to(run.device), "mgca": model}
prompts = PROMPT_SETS["chexpert"]
for kind, part in (("there", prompts.positive), ("not there", prompts.negative)):
    print(f"{kind:9s}", *part["Pleural Effusion"], sep=" | ")

# %% [markdown]
# First by hand, then with the library's twin.

# %%
each = encode_prompts(model, tokenizer, prompts.positive["Pleural Effusion"])
vectors = encode_classes(model, tokenizer, prompts)
row = prompts.classes.index("Pleural Effusion")
assert torch.allclose(F.normalize(each.mean(dim=0), dim=0), vectors.positive[row], atol=1e-5), "the mean differs"
print(f"{len(each)} prompts of width {each.shape[1]}; cosine between them {float(each[0] @ each[1]):.2f}")

# %% [markdown]
# ### Does it hear the "no"?
#
# "There is a pleural effusion" and "no pleural effusion" share nearly all their words and mean the opposite. An
# encoder that only collects words must confuse them. **Before you run the next cell**, guess: is *edema* more
# like *no edema*, or more like *another finding*?

# %%
from mgca_lib import figures

names = [*prompts.classes, *(f"no {name}" for name in prompts.classes)]
apart = ~np.eye(len(prompts.classes), dtype=bool)
for name, one in models.items():
    both = encode_classes(one, tokenizer, prompts)
    stacked = torch.cat([both.positive, both.negative])
    cosine = (stacked @ stacked.T).numpy()
    own = np.diagonal(cosine, offset=len(prompts.classes))
    others = cosine[: len(apart), : len(apart)][apart]
    print(f"{name:7s} finding and its denial {own.mean():+.2f}, finding and another finding {others.mean():+.2f}")
    run.record(f"prompts/cosine/finding_and_denial/{name}", own.mean())
    run.record(f"prompts/cosine/finding_and_other_finding/{name}", others.mean())
figure = figures.similarity_matrix(
    cosine, rows=names, columns=names, row_label="", column_label="", title="class vectors of the trained model"
)
run.show(
    figure, "prompts", "Class vectors of the trained model: findings, and their denials, compared with each other."
)

# %%
heard = own.mean() < others.mean()
print(f"a finding is {'less' if heard else 'more'} like its own denial than like another finding")

# %% [markdown]
# The untrained encoder finds all sentences alike, even those that share no word: with random weights, what all sentences have in
# common drowns the rest. If the trained one puts the denial
# further away than other findings, it has learned from pairs alone that "no" turns a sentence round. If the denial is
# still *nearer* than another finding, as can happen, that is no contradiction to the classifier of section 3: it never asks
# which of two sentences is nearer to the other, only on which side of the two a film lies. (The printed lines are means over
# the five findings; the figure has each.) Look at the lower right block too: where denials resemble each other, the reason may be that
# reports deny several findings in one breath.
#
# ## 3. Five findings, no labels
#
# The films come from a dataset that the encoder never saw, with labels set by experts. They are used to judge, not to
# fit. Features are the same as in notebook 07, and if it has run, its cache is read; then a projection takes
# them to the joint space.

# %%
from mgca_lib.data.tasks import DISEASES, TASKS, TaskImages, task_targets
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.features import extract_features
from mgca_lib.evaluation.zero_shot import project_features

transform = ImageTransform(run.config.model.stored_size, run.config.model.image_size)
splits = {split: run.studies("chexpert").split(split) for split in ("train", "valid", "test")}
films = {split: TaskImages(part, TASKS["chexpert"], transform) for split, part in splits.items()}
cache = run.output_dir.parent / "07_linear_probe" / "features"
features = {split: extract_features(model.image_encoder, part, cache_dir=cache) for split, part in films.items()}
before = extract_features(models["random"].image_encoder, films["test"], cache_dir=cache)
image = {split: project_features(model, part) for split, part in features.items()}
print({split: len(part) for split, part in image.items()}, "films in a space of", image["test"].shape[1], "dimensions")

# %% [markdown]
# Three lines to beat or to admire: **chance** is an AUROC of 0.5; **random** is the untrained model with the very
# same prompts; and a **probe** on the same features gets 10 % of the training labels. **Before you run the next
# cell**: which finding will the sentences find best, and will they beat the probe anywhere?

# %%
from mgca_lib.evaluation.linear_probe import linear_probe
from mgca_lib.evaluation.zero_shot import zero_shot

truth, patients = features["test"].targets, splits["test"].table["patient_id"].to_numpy()
drawing = {"groups": patients, "resamples": RESAMPLES, "seed": run.seed}
results = {
    "random": zero_shot(
        project_features(models["random"], before),
        encode_classes(models["random"], tokenizer, prompts),
        truth,
        **drawing,
    ),
    "mgca": zero_shot(image["test"], vectors, truth, **drawing),
}
draws = [1000 * run.seed + number for number in range(5)]
probe = linear_probe(*features.values(), task=TASKS["chexpert"], fraction=0.1, seeds=draws)
for name, one in (*((name, result.auroc) for name, result in results.items()), ("probe, 10 % of the labels", probe)):
    print(f"{name:26s} macro AUROC {one.mean:.3f} ({one.low:.3f} to {one.high:.3f})")

# %%
PROBE = "probe, 10 % of the labels"
rows = {"macro average": {name: one.auroc.as_metric() for name, one in results.items()}}
rows["macro average"][PROBE] = probe.as_metric()
for label in results["mgca"].per_class:
    rows[label] = {name: one.per_class[label].as_metric() for name, one in results.items()}
    rows[label] |= {PROBE: {"mean": probe.per_class[label]}} if label in probe.per_class else {}
figure = figures.interval_dots(rows, value_label="AUROC on test films", levels={"chance": 0.5})
run.show(
    figure,
    "zero_shot",
    "Zero-shot AUROC of the trained and the untrained model beside a probe with a tenth of the labels. Bars: 95 % over "
    "test patients; the probe's, for the average alone, over draws of the labels.",
)


# %%
def key(label):
    return label.lower().replace(" ", "_")


for name, one in results.items():
    run.record(f"zero_shot/chexpert/auroc/macro/{name}", one.auroc.as_metric())
    for label, interval in one.per_class.items():
        run.record(f"zero_shot/chexpert/auroc/{key(label)}/{name}", interval.as_metric())
run.record("zero_shot/chexpert/auroc/macro/chance", 0.5)
run.record("zero_shot/chexpert/auroc/macro/probe_10%", probe.as_metric())
above = [label for label, one in results["mgca"].per_class.items() if one.low > 0.5]
below = [label for label, one in results["mgca"].per_class.items() if one.high < 0.5]
print(f"surely better than guessing: {', '.join(above) or 'none'}; surely worse: {', '.join(below) or 'none'}")

# %% [markdown]
# Read the figure row by row. A blue dot right of the dashed line, with its whole bar, is a finding that this pair of
# sentences sorts better than guessing. Whether the sentence that names it does the work, section 6 asks for one finding; and
# exercise 2 shows what sentences reach that do not name it at all. The grey dots show what an untrained space gives: it need not be
# 0.5 in a single row, since any fixed direction sorts films somehow; over the rows it has no reason to leave chance. Its
# bars cover other films, not other random weights: a second untrained network would sort the same films differently, and
# these bars do not show by how much. (*Surely* in the line above means that a 95 % interval keeps clear of 0.5; one of twenty misses
# what it should hold.)
#
# Bars that overlap do not say that two dots are level: all dots of a row are of the same films, and luck with these films moves them
# together. So the next cell takes *differences*, and draws the films anew for both sides at once. **Guess first**: for which findings
# will the difference between sentences and probe keep clear of zero?

# %%
from mgca_lib.evaluation.zero_shot import auroc_gain

outputs = {"random": results["random"].scores, "probe": np.stack(probe.outputs)}
for label in ("macro average", *(name for name in results["mgca"].per_class if name in probe.per_class)):
    columns = [row for row, name in enumerate(prompts.classes) if label in ("macro average", name)]
    columns = [row for row in columns if prompts.classes[row] in probe.per_class]
    ours, labels = results["mgca"].scores[:, columns], truth[:, columns]
    for name, theirs in outputs.items():
        gain = auroc_gain(ours, theirs[..., columns], labels, **drawing)
        run.record(f"zero_shot/chexpert/gain/{key(label)}/over_{name}", gain.as_metric())
        print(f"{label:17s} sentences less {name:6s} {gain}")

# %% [markdown]
# These intervals are over test patients; the five probes are those that were drawn, and their AUROCs are averaged.
#
# Where the probe is far ahead, the knowledge is in the features but the sentence does not point at it. Where both are
# low, a probe with so few labels does not find it either. That distinction is what the comparison is for. Where the interval of a
# difference holds zero, nothing is decided.
#
# And a blue bar that lay wholly on the left of chance would not be noise: the sentences would sort the films, the wrong way round.
# Section 6 asks how a pair of sentences fails.
#
# ## 4. One answer a film: CheXpert 5x200
#
# Pairs ask five yes-or-no questions. The literature more often reports another one: **which of these five?**, on
# films that show exactly one, 200 of each. GLoRIA drew such a set from the training part of CheXpert and called it
# 5x200. There is no denial in it: a film goes to the class whose vector is nearest.
#
# Phantoms show several findings at once as often as patients do, so few films are left. **Guess** how many of the
# test films show exactly one of the five findings, before you run the cell.

# %%
from mgca_lib.evaluation.zero_shot import five_by_200

five = PROMPT_SETS["chexpert_5x200"]
available = {}
for split in ("train", "test"):
    alone = five_by_200(splits[split], per_class=200, at_most=True)
    available[split] = np.bincount(task_targets(alone, five.task), minlength=len(five.classes))
    print(
        f"{split:6s}{len(splits[split]):5d} films;",
        *(f"{n} {c}" for n, c in zip(available[split], five.classes, strict=True)),
        sep="  ",
    )

# %% [markdown]
# The rarest class decides, since all classes must be of one size. We draw from the training split, as GLoRIA did: the
# encoder has seen no CheXpert film of either split. The price is that these labels were read from reports by a
# program, while those of the test split were set by experts; the smaller expert set is scored as a check.

# %%
alone_vectors = encode_classes(model, tokenizer, five)
outcome, right = {}, {}
for split in ("train", "test"):
    chosen = five_by_200(splits[split], per_class=int(available[split].min()), seed=run.seed)
    where = np.flatnonzero(splits[split].table["image_id"].isin(chosen.table["image_id"]))
    targets = task_targets(chosen, five.task)
    settings = {"groups": chosen.table["patient_id"], "resamples": RESAMPLES, "seed": run.seed}
    for form in ("none", "images"):
        outcome[split, form] = zero_shot(image[split][where], alone_vectors, targets, standardize=form, **settings)
        said = outcome[split, form].scores.argmax(axis=1)
        right[split, form] = (said == targets).astype(float)
        print(
            f"{split:6s} {len(targets):4d} films, standardize={form!r:9s} accuracy {outcome[split, form].accuracy}",
            end=" ",
        )
        print("said:", *np.bincount(said, minlength=5))

# %% [markdown]
# Both forms answer for the same films, so we hold them against each other film by film, and put an interval around the difference.

# %%
from mgca_lib.evaluation.intervals import bootstrap_interval

for split in ("train", "test"):
    changed = right[split, "images"] - right[split, "none"]
    people = five_by_200(splits[split], per_class=int(available[split].min()), seed=run.seed).table["patient_id"]
    gain = bootstrap_interval(
        lambda rows, changed=changed: changed[rows].mean(),
        len(changed),
        groups=people,
        resamples=RESAMPLES,
        seed=run.seed,
    )
    kind = {"train": "mgca", "test": "mgca_expert_labels"}[split]
    run.record(f"zero_shot/5x200/accuracy/{kind}_standardized_gain", gain.as_metric())
    print(f"{split:6s} z-scores: {(changed > 0).sum()} films mended, {(changed < 0).sum()} spoilt, difference {gain}")

# %% [markdown]
# Guessing gives 0.2. (`n` counts patients: they are drawn whole, as some have several films.) `said` counts how often each class was
# named, in the order of the lines before; a reader who is right names each equally often. Where one class is named far too often, its
# vector lies near *all* films. GLoRIA's remedy, `standardize="images"`, turns the cosines of each class into z-scores over the test
# films: cosine minus mean, over standard deviation. It makes `said` more even. Whether it also makes the answers better, the difference
# says: where its interval holds zero, that is left open, and what the intervals of the two forms do is beside the point. And it has a
# price: the answer for a film then depends on the other films in the test set, which no single patient has.

# %%
run.record("zero_shot/5x200/accuracy/mgca", outcome["train", "none"].accuracy.as_metric())
run.record("zero_shot/5x200/accuracy/mgca_standardized", outcome["train", "images"].accuracy.as_metric())
run.record("zero_shot/5x200/accuracy/mgca_expert_labels", outcome["test", "none"].accuracy.as_metric())
standardized = outcome["test", "images"].accuracy
run.record("zero_shot/5x200/accuracy/mgca_expert_labels_standardized", standardized.as_metric())
run.record("zero_shot/5x200/accuracy/chance", outcome["train", "none"].majority)
run.record("zero_shot/5x200/per_class", int(available["train"].min()))

# %%
chosen = five_by_200(splits["train"], per_class=int(available["train"].min()), seed=run.seed)
confusion = np.zeros((len(five.classes), len(five.classes)))
said = outcome["train", "none"].scores.argmax(axis=1)
np.add.at(confusion, (task_targets(chosen, five.task), said), 1 / int(available["train"].min()))
figure = figures.similarity_matrix(
    confusion,
    rows=five.classes,
    columns=five.classes,
    row_label="film shows",
    column_label="model says",
    value_label="share of the films of a class",
    signless=True,
)
run.show(
    figure,
    "confusion",
    "Which of five findings the model names, by the one that the film shows; right answers are on the diagonal.",
)

# %% [markdown]
# Rows add up to 1. Look at the largest number beside the diagonal and ask whether a human would make that mistake:
# atelectasis and consolidation are both white patches, and an effusion covers the lung beside it.
#
# ## 5. The wording decides more than you think
#
# A prompt is a hyperparameter in disguise. Below, the same question in seven wordings, from the radiologist's to the
# layman's. Nothing else changes. **Before you run the next cell**: which wording will be worst?

# %%
import pandas as pd

from mgca_lib.evaluation.zero_shot import PromptSet, template_pairs

LAY = {
    "Atelectasis": "collapsed parts of the lung",
    "Cardiomegaly": "a heart that is too big",
    "Consolidation": "lung filled with fluid instead of air",
    "Edema": "water in the lungs",
    "Pleural Effusion": "fluid around the lung",
}

# %%
wordings = {
    "there is / there is no": template_pairs("is", ["There is {a}{finding}."], ["There is no {finding}."]),
    "telegram": template_pairs("telegram", ["Mild {finding}."], ["No {finding}."]),
    "consistent with": template_pairs(
        "consistent", ["Findings are consistent with {a}{finding}."], ["There is no evidence of {finding}."]
    ),
    "seen / not seen": template_pairs("seen", ["{finding} is seen."], ["{finding} is not seen."]),
    "against a normal film": template_pairs(
        "normal", ["There is {a}{finding}."], ["No acute cardiopulmonary process."]
    ),
    "photo of": template_pairs("photo", ["A photo of {a}{finding}."], ["A photo without {finding}."]),
    "lay words": PromptSet(
        "lay", {k: (f"There is {v}.",) for k, v in LAY.items()}, {k: (f"There is no {v}.",) for k, v in LAY.items()}
    ),
}

# %%
from mgca_lib.evaluation.linear_probe import score


def asked(prompt_set, split="test"):
    """Scores of the films, and the labels of the very findings that the sentences are about."""
    one = encode_classes(model, tokenizer, prompt_set)
    columns = [TASKS["chexpert"].classes.index(name) for name in prompt_set.classes]
    return zero_shot_scores(image[split], one.positive, one.negative).numpy(), features[split].targets[:, columns]


def aurocs(prompt_set, split="test"):
    return score(*asked(prompt_set, split), prompt_set.task)[:2]


by_wording = {name: aurocs(prompt_set) for name, prompt_set in wordings.items()}
found = {name: {"macro average": macro} | per_class for name, (macro, per_class) in by_wording.items()}
table = pd.DataFrame(found)
table.round(3)

# %%
figure = figures.interval_dots(
    {name: {wording: {"mean": value} for wording, value in row.items()} for name, row in table.iterrows()},
    value_label="AUROC on test films",
    levels={"chance": 0.5},
)
run.show(
    figure,
    "wording",
    "The same question in seven wordings: one dot each. The spread is the doubt that no interval shows.",
)

# %% [markdown]
# Compare the spread of the dots with the bars of section 3. The bars say how exactly these *films* measure one
# wording; they know nothing of the other sentences that could have been written. The next cell prints both side by
# side. They are not the same kind of doubt, so do not judge one by the other: whether two wordings differ on *these* films is asked
# below, film by film.

# %%
spread = table.max(axis=1) - table.min(axis=1)
for name, width in spread.items():
    one = results["mgca"].auroc if name == "macro average" else results["mgca"].per_class[name]
    print(f"{name:17s} over wordings {width:.3f}, width of the interval over films {one.high - one.low:.3f}")
    run.record(f"zero_shot/chexpert/wording_spread/{key(name)}", width)
    for number, wording in enumerate(wordings, start=1):
        run.record(f"zero_shot/chexpert/auroc/{key(name)}/wording_{number}", table.loc[name, wording])

# %% [markdown]
# All wordings are held against the first, which was fixed before any result, and not against the best, which is known from these films.
# *Against a normal film* affirms with the very same sentence as the first, and only the denial differs. **Guess** its sign.

# %%
plain, labels = asked(wordings["there is / there is no"])
for number, (name, prompt_set) in enumerate(wordings.items(), start=1):
    if number > 1:
        gain = auroc_gain(asked(prompt_set)[0], plain, labels, **drawing)
        run.record(f"zero_shot/chexpert/gain/macro_average/wording_{number}", gain.as_metric())
        print(f"{name:22s} less the first {gain}")

# %% [markdown]
# The line of *against a normal film* is what the choice of the denial does, for better or worse. (Six differences: of twenty intervals
# around nothing, one misses zero by chance.)
#
# ### Choosing a wording without cheating
#
# Whoever tries seven wordings on the test films and reports the best has fitted the prompt to the test set. Three
# honest ways: fix the wording beforehand, average all of them, or choose on validation films (which uses labels, so
# it is no longer zero-shot).


# %%
def pooled(part):
    texts = {name: [text for one in wordings.values() for text in getattr(one, part)[name]] for name in prompts.classes}
    return {name: tuple(dict.fromkeys(each)) for name, each in texts.items()}  # two wordings share a sentence


averaged = PromptSet("all wordings", pooled("positive"), pooled("negative"))
print(len(averaged.positive["Edema"]), "sentences for edema,", len(averaged.negative["Edema"]), "against it")

# %%
macro = table.loc["macro average"]
picked = max(wordings, key=lambda name: aurocs(wordings[name], "valid")[0])
together = aurocs(averaged)[0]
print(
    f"best of seven on the test films themselves: {macro.max():.3f} ({macro.idxmax()!r}); the worst: {macro.min():.3f}"
)
print(f"chosen on validation films: {macro[picked]:.3f} ({picked!r})")
print(
    f"all wordings averaged: {together:.3f}; the course's prompts, fixed beforehand: {results['mgca'].auroc.mean:.3f}"
)
run.record("zero_shot/chexpert/auroc/macro/wording_best_on_test", macro.max())
run.record("zero_shot/chexpert/auroc/macro/wording_worst", macro.min())
run.record("zero_shot/chexpert/auroc/macro/wording_chosen_on_valid", macro[picked])
run.record("zero_shot/chexpert/auroc/macro/wordings_averaged", together)
fixed = asked(prompts)[0]
for name, prompt_set in {"chosen_on_valid": wordings[picked], "averaged": averaged}.items():
    gain = auroc_gain(asked(prompt_set)[0], fixed, labels, **drawing)
    run.record(f"zero_shot/chexpert/gain/macro_average/{name}", gain.as_metric())
    print(f"{name.replace('_', ' ')}, less the prompts fixed beforehand: {gain}")

# %% [markdown]
# The first number is the one that papers are tempted to print. How much of it was luck shows in the second, where the
# choice had to be made without the test films. (Both may agree: with a wide spread between wordings, validation
# films find a good one.) Averaging needs no choice at all, but takes the bad wordings in with the good: its line shows
# what they cost. The prompts fixed beforehand are none of the seven, and may end above or below the best of them; the last two lines
# hold both honest choices against them, on the same films.
#
# ## 6. A failure, looked at
#
# We take the finding with the lowest zero-shot AUROC on the *validation* films, so that the test films, which we look at next, had no
# say in the choice. (The lowest of five on the test films would be low partly by luck with these films.) A pair has two halves, and each can fail alone: the affirming
# vector may not point at the films with the finding, and the denying one may point at them, if the encoder hears the
# finding and not the "no". Scored alone, each half gives an AUROC of its own. **Before you run the next cell**, guess which
# half is to blame.

# %%
on_valid = aurocs(prompts, "valid")[1]
worst = min((name for name in on_valid if name in results["mgca"].per_class), key=on_valid.get)
column = prompts.classes.index(worst)
toward, away = (image["test"] @ part[column] for part in (vectors.positive, vectors.negative))
halves = {"affirming half alone": toward, "denying half alone": -away, "both": toward - away}
print(f"{worst}: near to the affirming half, or far from the denying half?")
for name, value in halves.items():
    alone = score(value.numpy()[:, None], truth[:, [column]], prompts.only([worst]).task)[0]
    print(f"  {name:21s} AUROC {alone:.3f}", end="")
    gain = auroc_gain(halves["both"].numpy()[:, None], value.numpy()[:, None], truth[:, [column]], **drawing)
    print("" if name == "both" else f"; both less this half {gain}")
spread_of = {"toward": toward.std(), "away": away.std(), "difference": (toward - away).std()}
print("  standard deviation over films:", ", ".join(f"{name} {value:.3f}" for name, value in spread_of.items()))

# %% [markdown]
# A half below 0.5 points the wrong way, and where the pair scores below one of its halves, with an interval wholly below zero, the
# other does harm. If both
# halves are above 0.5 and the pair is not, they cancel: two vectors that lie
# close together leave a small difference, and what remains of it can be anything. The standard deviations show how
# much of each half survives the subtraction.
#
# Now the films on which the pair errs most. **Before you look**: what would you expect among the false alarms, if the
# sentence had latched on to *something wrong in the chest* rather than to this finding? (Three findings at most are named above a film;
# where the one in question is there, it comes first.)

# %%
from mgca_lib.data.tasks import load_picture

scores, shown = results["mgca"].scores[:, column], truth[:, column]
order = np.argsort(-scores, kind="stable")
alarms = [row for row in order if shown[row] == 0][:4]
misses = [row for row in order[::-1] if shown[row] == 1][:4]
diseases = splits["test"].labels(DISEASES) == 1
SHORT = {"Pleural Effusion": "effusion", "Lung Lesion": "nodule"}


def finding_names(row):
    present = sorted(np.array(DISEASES)[diseases[row]], key=lambda name: name != worst)  # the others keep their order
    return "\n".join([SHORT.get(name, name.lower()) for name in present][:3]) or "no disease"


# %%
rows_shown = [*alarms, *misses]
titles = [f"{'false alarm' if row in alarms else 'missed'}\n{finding_names(row)}" for row in rows_shown]
figure = figures.image_grid([np.asarray(load_picture(splits["test"], row)) for row in rows_shown], titles)
run.show(
    figure,
    "errors",
    f"{worst}: the test films where the sentences err most, with what the experts saw. False alarms above, missed below.",
)

# %% [markdown]
# Eight films make an anecdote. Over all films without the finding: which label is more frequent among the fifth
# that scores highest than among the rest? The cell prints the ratio of the two shares; 0.01 is added to both, so that a label which no
# film has comes out as 1. A number far above 1 hints at a confusion. With a hundred films 1.3 is noise, above all as the largest of so
# many labels, and a label that a handful of films have can reach 2 by luck. (Equal numbers may be one thing twice: the phantoms' experts
# count each cardiomegaly as an enlarged cardiomediastinum, too.)

# %%
from mgca_lib.data.tasks import CHEXPERT_LABELS

others_of = [name for name in CHEXPERT_LABELS if name != worst]
present = splits["test"].labels(others_of) == 1
without = np.array([row for row in order if shown[row] == 0])
top, rest = np.split(without, [max(1, len(without) // 5)])
ratio = pd.Series((present[top].mean(axis=0) + 0.01) / (present[rest].mean(axis=0) + 0.01), index=others_of)
print(
    f"{worst}, AUROC {results['mgca'].per_class[worst]}; more frequent in the {len(top)} highest of {len(without)} films:"
)
print(ratio.sort_values(ascending=False).head(4).round(2).to_string())
print(f"no finding at all: {ratio['No Finding']:.2f}")

# %% [markdown]
# Read the list as a differential diagnosis of the sentence. Labels that *look* alike are the forgivable confusion.
# Labels that *occur together* with the finding in reports are the treacherous one: pretraining never told the encoder
# which of two findings a word belonged to, only that words and film came together. If "No Finding" stands far below
# 1, the encoder at least knows sick from well, and errs in the name; near 1, it does not know even that; in between, it is a bit of both.
#
# ## 7. Retrieval, both ways, over everything
#
# Zero-shot classification is retrieval with made-up reports. Now the real ones: every test film searches all test
# reports, and every report searches all films. Three rules make the number honest:
#
# - **All candidates.** Not those of one batch; section 8 shows the difference.
# - **Equal texts are equally right.** Two films of one study share a report, and so do strangers with a normal film.
# - **Chance is computed**, not taken as $K/N$: equal texts give a blind guess more than one right answer.

# %%
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.evaluation.features import embed_pairs
from mgca_lib.evaluation.retrieval import retrieval_recall

pairs_of = run.studies("mimic_cxr").split("test")
pairs = PairImages(pairs_of, tokenizer, transform, max_pieces=run.config.model.max_pieces, seed=run.seed)
film, report = embed_pairs(model, pairs)
texts = report_texts(pairs_of)
pair_drawing = {"groups": pairs_of.table["patient_id"].to_numpy(), "resamples": RESAMPLES, "seed": run.seed}
recall = retrieval_recall(film, report, texts=texts, **pair_drawing)
strict = retrieval_recall(film, report, **pair_drawing)
print(f"{len(texts)} pairs, {len(set(texts))} different reports")

# %% [markdown]
# **Before you look**: which direction is easier, and what changes when a twin report no longer counts? (`i2t` is image to report, `t2i`
# report to image; `r@5` is recall at 5, the share of searches that find a right answer among their first five.)

# %%
directions = {"i2t": "image_to_report", "t2i": "report_to_image"}
rows = [
    {
        "": f"{way} r@{k}",
        "recall": getattr(recall, name)[k],
        "chance": round(recall.chance[k], 4),
        "times chance": round(getattr(recall, name)[k].mean / recall.chance[k], 1),
        "own report only": round(getattr(strict, name)[k].mean, 3),
    }
    for way, name in directions.items()
    for k in recall.chance
]
pd.DataFrame(rows).astype(str).set_index("")

# %%
figure = figures.retrieval_curve(
    {
        name.replace("_", " "): {k: one.as_metric() for k, one in getattr(recall, name).items()}
        for name in directions.values()
    },
    chance=recall.chance,
    title=f"{len(texts)} test pairs, all of them candidates",
)
run.show(
    figure, "retrieval", "Recall at K in both directions, over the whole test set, with 95 % intervals over patients."
)

# %% [markdown]
# Which direction is easier? Both search among the same pairs, so the answer is a difference over the same patients.

# %%
for k in recall.chance:
    apart = (recall.image_ranks <= k).astype(float) - (recall.report_ranks <= k)
    gain = bootstrap_interval(lambda rows, apart=apart: apart[rows].mean(), len(apart), **pair_drawing)
    run.record(f"retrieval/i2t_less_t2i/r@{k}", gain.as_metric())
    print(f"r@{k:<3d} image to report less report to image {gain}")

# %% [markdown]
# Where an interval holds zero, neither direction is shown to be easier. The last column of the table counts the own
# report only. It can only be lower, and so is its chance; the distance shows how often a twin made the difference.
#
# Whoever needs the *very* report of this film should read recall. Whoever wants similar cases asks for less: are the
# first $K$ reports **about the same disease**? That is precision at K. It needs one class a study, and we take the
# rarest finding present, as in notebook 08. Chance is now high, because whole classes are right.

# %%
from mgca_lib.evaluation.prototypes import dominant_finding
from mgca_lib.evaluation.retrieval import retrieval_precision

classes = dominant_finding(pairs_of.labels(DISEASES), DISEASES)
precision = retrieval_precision(film, report, labels=classes, ks=(5, 10), **pair_drawing)
without_own = retrieval_precision(film, report, labels=classes, ks=(5, 10), leave_out_own=True, **pair_drawing)
for way, name in directions.items():
    for k, one in getattr(precision, name).items():
        left = getattr(without_own, name)[k].mean
        print(
            f"{way} p@{k:<3d}{one}, chance {precision.chance:.3f};",
            f"own partner left out {left:.3f}, chance {without_own.chance:.3f}",
        )

# %%
for way, name in directions.items():
    for k, one in getattr(recall, name).items():
        run.record(f"retrieval/{way}/r@{k}", one.as_metric())
        run.record(f"retrieval/{way}/r@{k}/chance", recall.chance[k])
    for k, one in getattr(precision, name).items():
        run.record(f"retrieval/{way}/p@{k}", one.as_metric())
        run.record(f"retrieval/{way}/p@{k}/chance", precision.chance)

# %% [markdown]
# The second half of each line shows how much of the precision was the own report. What stays above chance without it
# is mostly knowledge about diseases (a second film of the same study may still be among the candidates); the rest was recognising
# the pair.
#
# ## 8. Why ranking inside a batch flatters
#
# MGCA logs retrieval inside its training batches, and some benchmarks report it that way. Four pairs show what is
# wrong with it. Every image likes its own report well (0.6), and that of its left neighbour better (0.8; the first takes the last for one):

# %%
v = torch.eye(4)
t = 0.6 * v + 0.8 * v.roll(-1, dims=0)
figure = figures.similarity_matrix(
    (v @ t.T).numpy(), rows=[f"$v_{i}$" for i in range(1, 5)], columns=[f"$t_{i}$" for i in range(1, 5)]
)
run.show(figure, "toy", "A model that is always wrong: each image prefers the report of its neighbour.")

# %% [markdown]
# Over all four candidates every image is wrong: recall at 1 is 0. Now cut the four into random batches of two. An
# image fails only if its companion happens to be the one neighbour that it prefers. **Before you run the cell**,
# compute its recall at 1 in batches.

# %%
from mgca_lib.evaluation.retrieval import recall_in_batches

whole = retrieval_recall(v, t, ks=(1,), resamples=10).image_to_report[1].mean
pairwise = recall_in_batches(v, t, batch_size=2, ks=(1,), draws=2000, seed=run.seed).image_to_report[1]
by_hand = 1 - 1 / 3  # one of three possible companions is the preferred one
assert whole == 0, "every image prefers another report"
assert abs(pairwise - by_hand) < 0.03, "batches of two and the calculation disagree"
print(f"whole set {whole:.2f}; in batches of two {pairwise:.2f}, by hand {by_hand:.2f}")

# %% [markdown]
# A model that is always wrong gets two thirds. Now the trained model, with all test pairs cut into random batches of
# several sizes. **Before you look**, sketch the curve.

# %%
sizes = [size for size in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if size < len(film)] + [len(film)]
inside = [recall_in_batches(film, report, batch_size=size, texts=texts, seed=run.seed) for size in sizes]
figure = figures.curves(
    sizes,
    {"mgca": [one.image_to_report[1] for one in inside], "chance": [one.chance[1] for one in inside]},
    x_label="candidates that compete (rightmost: the whole test set)",
    y_label="recall at 1, image to report",
    log_x=True,
)
run.show(
    figure, "in_batch", "The same model, the same films: recall falls as more candidates compete, and chance with it."
)

# %%
batch = min(run.config.training.batch_size, len(film))
logged = recall_in_batches(film, report, batch_size=batch, texts=texts, seed=run.seed)
for k in (1, 5):
    honest = recall.image_to_report[k].mean
    run.record(f"retrieval/i2t/r@{k}/in_batch", logged.image_to_report[k])
    run.record(f"retrieval/i2t/r@{k}/in_batch/chance", logged.chance[k])
    print(
        f"R@{k}: {logged.image_to_report[k]:.3f} in batches of {batch} (chance {logged.chance[k]:.3f}),",
        f"{honest:.3f} over all {len(film)} (chance {recall.chance[k]:.3f})",
    )

# %% [markdown]
# Nothing about the model changed between the two columns. Two papers with batches of 48 and 144 cannot be compared at
# all, nor one paper with itself after it bought more memory. If a number must be taken from inside a batch, it needs
# the batch size and the chance level beside it. Times-chance does not rescue it either: print it for both columns,
# and it moves the other way.
#
# ## What we showed, and what not
#
# **Shown.** A sentence becomes a classifier by two cosines; sections 3 and 4 print how far that goes without labels,
# with chance, an untrained twin and a probe beside it. The wording is a hidden hyperparameter. Retrieval inside
# batches flatters.
#
# **Not shown.** That any of it carries over to patients: phantom reports come from a grammar with a limited
# vocabulary, and the prompts speak its dialect. Nor that zero-shot replaces labels: the test labels were needed to
# find out whether it works.
#
# **Where it breaks.** Findings that the reports rarely name, denials in unusual grammar, classes whose vector lies
# near every film, and films with several findings, of which a sentence describes one.

# %%
run.finish(
    question="Can the encoder read labels it was never given?", headline="zero_shot/chexpert/auroc/macro/mgca"
).name

# %% [markdown]
# ## Exercises
#
# **1. Recall.** Two prompts of one class are unit vectors at a right angle. What is the cosine between the class
# vector and each of them?

# %%
my_cosine = None  # your number
given = torch.eye(2)
expected = float(F.normalize(given.mean(dim=0), dim=0) @ given[0])
assert my_cosine is None or abs(my_cosine - expected) < 0.005, "not yet: draw the two arrows and their mean"
print("not answered yet" if my_cosine is None else "right")

# %% [markdown]
# **2. Modify.** Write one sentence for and one against the finding of section 6 that beat the course's prompts on the
# *validation* films. (Any two sentences are a direction, and a direction may sort sick from well: yours should also beat the two fillers
# in the cell, which say nothing about it. And section 6 took the finding because the course's prompts were weak on these very films, so
# part of any lead is luck.) Only when yours are better, look at the test films, once: `aurocs(mine, "test")`.

# %%
my_affirming, my_denying = None, None  # your sentences
fillers = PromptSet("fillers", {worst: ("This is a chest film.",)}, {worst: ("No prior film for comparison.",)})
to_beat = {"the course's prompts": prompts.only([worst]), "two fillers": fillers}
to_beat = {name: aurocs(one, "valid")[0] for name, one in to_beat.items()}
print(f"{worst}, validation films:", ", ".join(f"{name} {value:.3f}" for name, value in to_beat.items()))
if None in (my_affirming, my_denying):
    print("not answered yet")
else:
    mine = PromptSet("mine", {worst: (my_affirming,)}, {worst: (my_denying,)})
    yours = aurocs(mine, "valid")[0]
    print(f"yours {yours:.3f}:", "right" if yours > max(to_beat.values()) else "not yet")

# %% [markdown]
# **3. Research.** The encoder has read whole reports, hardly ever a lone sentence. Let the *training reports* be the
# prompts: those in which "no" stands right before the finding stand for its absence, those that name it and hold no
# "no", "without" or "resolved" at all for its presence. ("No significant change in the atelectasis" affirms.) No label is used. Some
# findings are never denied by name; the cell then falls back on "the lungs are clear" and says so. Is it better than a written
# sentence? The cell does it for one finding. Do it for all five: what is the gain in AUROC of each, on the test films?

# %%
reports = report_texts(run.studies("mimic_cxr").split("train"))


def borrowed(name):
    word = {"Pleural Effusion": "effusion"}.get(name, name.lower())
    naming = [text for text in reports if word in text.split()]
    yes = [text for text in naming if not {"no", "without", "resolved"} & set(text.split())]
    no = [text for text in naming if f"no {word}" in text]
    print(f"{name}: {len(yes)} reports for, {len(no) or 'none that denies it by name'} against; at most 40 of each")
    yes, no = (tuple(dict.fromkeys(part))[:40] for part in (yes, no))
    return PromptSet("borrowed", {name: yes or (f"there is {word}",)}, {name: no or ("the lungs are clear",)})


def gain_by_borrowing(name):
    own, labels = asked(borrowed(name))
    return auroc_gain(own, asked(prompts.only([name]))[0], labels, **drawing)


print(f"{worst}, test films: borrowed less written {gain_by_borrowing(worst)}")

# %%
my_gains = None  # finding -> gain in AUROC, for all five
if my_gains is None:
    print("not answered yet")
else:
    assert set(my_gains) == set(prompts.classes), "all five findings, by the names in `prompts.classes`"
    off = [name for name in prompts.classes if abs(my_gains[name] - gain_by_borrowing(name).mean) > 0.005]
    print("right" if not off else f"not yet: {', '.join(off)}")

# %% [markdown]
# <details><summary>Solutions</summary>
#
# **1.** $\cos 45° = 0.707$: the mean is $(0.5, 0.5)$, its length 0.707, the class vector $(0.707, 0.707)$.
#
# **2.** Look at section 6 first and mend the half that fails. If it is the affirming one, read ten training reports that name
# the finding, and borrow their grammar: place, side and severity as a radiologist would dictate them. If it is the denying one,
# describe the normal, such as "the heart is normal in size" for the heart.
#
# **3.** `my_gains = {name: gain_by_borrowing(name).mean for name in prompts.classes}`. `asked` takes the labels of the finding from the
# prompts themselves, so no finding is scored by the labels of another, whatever the order of the loop. Read each gain with its interval.
# Where no report denies a finding by name, look for what describes the normal
# instead, such as "the heart is normal in size". Averaging forty reports also averages what else they say, so their difference may carry age, devices or
# the length of the report. Check the result against section 6: are the false alarms the same? And exchange one side at a
# time, since a rise may come from the denial alone.
#
# </details>

# %% [markdown]
# ## References and the next notebook
#
# - Zhang, Jiang, Miura, Manning, Langlotz. Contrastive Learning of Medical Visual Representations from Paired Images
#   and Text (ConVIRT). MLHC 2022, arXiv 2010.00747. Retrieval and precision at K.
# - Huang, Shen, Lungren, Yeung. GLoRIA. ICCV 2021. CheXpert 5x200, prompts and z-scores.
# - Radford et al. Learning Transferable Visual Models From Natural Language Supervision (CLIP). ICML 2021, arXiv
#   2103.00020. Zero-shot classification by prompts, and averaging over wordings.
#
# A word can find a film. Whether it finds the *place* on the film was the question of
# [04 Token alignment](04_token_alignment.ipynb).
#
# **Next:** [11 Prototype sweep](11_prototype_sweep.ipynb).
