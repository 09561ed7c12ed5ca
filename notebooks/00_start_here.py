# %% [markdown]
# # 00 · How does a model learn to read chest X-rays from reports alone?
#
# Hospitals hold millions of chest films, each with a report that a radiologist dictated, and almost none with
# labels. MGCA (*Multi-Granularity Cross-modal Alignment*, Wang and others, NeurIPS 2022) learns from such pairs:
# nobody marks a finding on the film, nobody fills in a label; the disease names stand in the reports, among much
# else. This course rebuilds the method piece by piece, and measures every piece.
#
# **After this notebook you can** (1) say in three sentences what MGCA aligns with what, (2) find your way through
# the notebooks, (3) tell what the made-up films of this course can and cannot prove, (4) trust that your
# computer is set up.
#
# - **First read** nothing; this is the start. Python and a first course in deep learning are enough.
# - **Time** `smoke` and `demo` under 20 s on two CPU cores, reading aside. `paper` takes no longer.
# - **Data** none to download: a few films and reports are made while you read.
# - **Departures from upstream** none here. Later notebooks name each place where the published code and the
#   method differ, and measure what the difference is worth.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project

# %%
from mgca_lib.run import start_run

run = start_run("00_start_here", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# Every notebook opens with these two cells. The first holds all its knobs. The second checks them, seeds every
# random generator, and prints what a reader of your numbers must know.
#
# ## 1. One study
#
# A *study* is one visit to the X-ray room: one film or more, and one report. Here is one, made by this project.
# `sample_case` decides what is wrong with the patient. `render_case` draws the film, and knows which pixels each
# finding changes. `write_report` dictates what a radiologist might say about it.

# %%
import numpy as np

from data_scripts.phantom.cases import sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.render import render_case
from data_scripts.phantom.reports import write_report

hospital = HOSPITALS["mimic_cxr"]
rng = np.random.default_rng(run.seed)
case = sample_case(rng, hospital, findings=["cardiomegaly", "pleural effusion", "nodule"])
film = render_case(case, hospital, np.random.default_rng(run.seed), size=320)
report = write_report(case, rng)

# %% [markdown]
# Read the report first, as a student on the ward would.

# %%
print(report.text)

# %% [markdown]
# **Predict.** The patient has three findings: an enlarged heart, fluid around the lungs (effusion), and a nodule.
# Before you run the next cell, write down where on the film you expect each of them, left or right, above or
# below. On a chest film the patient faces you: **the patient's left is on the right-hand side of the image**.

# %%
from mgca_lib import figures

names = [finding.name for finding in case.findings]
run.show(
    figures.image_with_masks(film.image, film.finding_masks, names),
    "study",
    "Left, the film alone; right, the same film with the true outline of each finding. The patient's left is on the "
    "right-hand side of the image; the letter burnt into the film, where there is one, says the same.",
)

# %% [markdown]
# A real data set would stop at the film on the left. The outlines are known only because the film was drawn. Pretraining
# never sees them; they check, at the end, whether the model looked at the right place. (Notebooks 09 and 15 train small heads on
# them, on top of frozen encoders.)
#
# **Predict.** Now back to the words. Which phrases of the report point at something on the film? Which phrases
# name a disease that is *not* there? Note one of each, then run the cell.

# %%
from dataclasses import asdict

spans = [{**asdict(phrase), "finding": phrase.name} for phrase in report.phrases]
run.show(
    figures.report_with_spans({"findings": report.findings, "impression": report.impression}, spans),
    "report",
    "The report with its finding phrases in colour. Phrases that are struck through deny a finding: they name a "
    "disease, and nothing on the film corresponds to them.",
)

# %%
denied = sum(phrase.negated for phrase in report.phrases)
named = {phrase.name for phrase in report.phrases if not phrase.negated}
print(f"{len(report.phrases)} phrases name a disease; {denied} of them say that it is absent")
print("on the film, but not in the report:", ", ".join(sorted(set(names) - named)) or "nothing")
run.record("study/phrases", len(report.phrases))
run.record("study/phrases_denied", denied)

# %% [markdown]
# A report is not a list of labels. A finding may be named twice in different words, or not at all; many disease
# names stand in denials; and much of the text speaks of normal things. A method that learns from reports must live
# with all of this. Change `SEED` and run again to meet other patients.
#
# ## 2. The idea in one picture

# %%
run.show(
    figures.course_map(film.image, report.impression or report.findings),
    "course_map",
    "The whole method: two encoders turn a film and its report into tokens; three alignments pull together what "
    "belongs together, at the level of the study, of words and patches, and of diseases. The small numbers name the "
    "notebooks.",
)

# %% [markdown]
# Read it from left to right.
#
# 1. **Two encoders.** One turns the film into a vector for the whole image and one for each *patch*. The other
#    turns the report into a vector for the whole text and one for each *word*.
# 2. **Instance alignment (ITA).** Among all reports of a batch, a film must find its own, and the reverse.
# 3. **Token alignment (CTA).** Within one study, each word must find the patches that it speaks of, and each patch
#    its words. This is where "left" may learn what left looks like.
# 4. **Prototype alignment (CPA).** The model keeps a set of *prototypes* (section 8 prints how many), points among
#    which it sorts all studies. A film and its report must be sorted alike. The hope is that prototypes become
#    diseases, although the model is never given a list of diseases or a label; notebooks 05 and 08 measure how far
#    they do.
#
# The sum of the three terms is the whole training signal:
#
# $$\mathcal{L} = \lambda_1 \mathcal{L}_\text{ITA} + \lambda_2 \mathcal{L}_\text{CTA} + \lambda_3 \mathcal{L}_\text{CPA}.$$
#
# ## 3. The map of the course
#
# | notebook | question | what you get |
# |---|---|---|
# | **00 Start here** | How does a model learn to read X-rays from reports alone? | the idea, a checked computer |
# | [01 Data preparation](01_data_preparation.ipynb) | What happens to a film and its report before a model sees them? | four prepared data sets |
# | [02 Encoders and tokens](02_encoders_and_tokens.ipynb) | How do pixels become patches, and letters words? | the vectors that everything else aligns |
# | [03 Instance alignment](03_instance_alignment.ipynb) | How does a film find its own report? | the contrastive loss, image search by text |
# | [04 Token alignment](04_token_alignment.ipynb) | Which word looks at which patch? | heat maps of words, checked against true masks |
# | [05 Prototype alignment](05_prototype_alignment.ipynb) | Can diseases emerge without labels? | Sinkhorn by hand, prototypes |
# | [06 Pretraining](06_pretraining.ipynb) | What does the full training take? | a trained model, on a laptop or on eight GPUs |
# | [07 Linear probe](07_linear_probe.ipynb) | How few labels are enough afterwards? | the paper's main table in miniature |
# | [08 Seeing prototypes](08_seeing_prototypes.ipynb) | What did the prototypes become? | maps of diseases, with honest numbers |
# | [09 Finding and outlining](09_finding_and_outlining.ipynb) | Can a frozen encoder say where? | boxes and outlines, the paper's tables 2 and 3 in miniature |
# | [10 Zero-shot](10_zero_shot.ipynb) | Can the encoder read labels it was never given? | a classifier made of sentences; retrieval over the whole test set |
# | [11 Prototype sweep](11_prototype_sweep.ipynb) | How many prototypes, and do they need their own loss? | clusters against a control that grows with them |
# | [12 Upstream's quirks](12_upstream_quirks.ipynb) | What are the published code's quirks worth? | each deviation on paper, and how often it can bite |
# | [13 Phantoms to patients](13_phantoms_to_patients.ipynb) | Does anything learned on phantoms help on patients? | real films, the shortcut lesson, domain shift |
# | [14 Ablation](14_ablation.ipynb) | What does each alignment add? | the paper's table 4 in miniature, with seeds and intervals |
# | [15 Grounding](15_grounding.ipynb) | Is token alignment grounding? | a token loss that makes words point, and proof by frozen encoders |
# | [16 Learning to point](16_learning_to_point.ipynb) | Can a model be trained to point? | the same losses trained from the start, and what their probes pay |
#
# Go through them in order. 02 to 05 each take one part of the picture; 06 puts them together; 07 to 11 ask
# whether it worked; 12 looks at the published code, 13 at real films; 14 to 16 compare trainings with and without each
# term, and with other ones.
#
# ## 4. Profiles
#
# The same notebooks run at several sizes. The table is read from the settings themselves.

# %%
import pandas as pd

from data_scripts.make_phantoms import PROFILES as PHANTOMS
from mgca_lib.config import PROFILES

rows = {}
for name, config in PROFILES.items():
    films = PHANTOMS.get(name, {}).get("mimic_cxr", {}).get("train", "MIMIC-CXR")
    model, training = config.model, config.training
    rows[name] = {"training films": films, "image encoder": model.backbone, "pixels": model.image_size}
    rows[name] |= {"text layers": model.text_layers, "epochs": training.epochs, "batch": training.batch_size}
pd.DataFrame(rows).T

# %% [markdown]
# - **`smoke`** proves that every cell runs, in seconds. Its numbers mean nothing.
# - **`demo`** is the default: small encoders, trained from scratch on a laptop, no download, no GPU. Its
#   numbers mean something *about phantoms*.
# - **`full_width`** is for whoever wants to see the published *sizes* without a data licence: ViT-B/16 and six text
#   layers, from scratch, on phantoms. An hour or more on a CPU, so it is not run by default; the
#   [executed notebooks](full_width/) show one run.
# - **`paper`** is the published recipe: ViT-B/16 or ResNet-50, and the first six layers of Bio_ClinicalBERT, on
#   MIMIC-CXR. The authors report about a day on two RTX 3090. It needs the data (section 6), GPUs, and the
#   published starting weights.
#
# To turn the knob, change `PROFILE` in the first code cell of a notebook, or run all of them with
# `make course PROFILE=smoke`.
#
# ## 5. What phantoms are, and what they are not
#
# The films of `smoke` and `demo` are *phantoms*: X-rays sent through ribs, lungs and heart made of simple solids.
# Because they are drawn, we can do what no hospital can: X-ray the same patient with and without a disease.
#
# **Predict.** Below, one patient is drawn twice from the same random numbers, once with an effusion, once healthy.
# Before you run it: will the two films differ only inside the outline of the effusion?

# %%
from dataclasses import replace

effusion = next(finding for finding in case.findings if finding.name == "pleural effusion")
ill = render_case(replace(case, findings=(effusion,)), hospital, np.random.default_rng(run.seed), size=320)
healthy = render_case(replace(case, findings=()), hospital, np.random.default_rng(run.seed), size=320)
difference = np.abs(ill.image - healthy.image)

# %%
run.show(
    figures.image_grid(
        [healthy.image, ill.image, np.clip(4 * difference, 0, 1)],
        ["without effusion", "with effusion", "difference, four times"],
        columns=3,
    ),
    "twins",
    "The same patient without and with an effusion. The difference is brightest where the fluid stands beside the lung, "
    "fades behind the diaphragm, and is all but nil elsewhere.",
)

# %%
from scipy import ndimage

area = ill.finding_masks[0].mean()
far = ndimage.distance_transform_edt(~ill.finding_masks[0]) > 40  # pixels from the outline
inside, far_away = (difference[where].sum() / difference.sum() for where in (ill.finding_masks[0], far))
print(f"{inside:.0%} of the difference lies inside the outline, which covers {area:.0%} of the film")
print(f"{far_away:.0%} of it lies more than 40 pixels away, on {far.mean():.0%} of the film")
assert inside > area, "the effusion does not change its own place most"
run.record("twins/difference_inside_mask", inside)
run.record("twins/difference_far_away", far_away)

# %% [markdown]
# Not only: much of the difference lies inside, though the outline covers so little of the film, and the rest lies outside.
# Most of that rest borders the outline: fluid also sinks behind the diaphragm and whitens what is white already, while the
# outline ends a little below the dome. Film processing, which adapts brightness and local contrast as real equipment does,
# changes the whole picture too, but by very little here. So the outline tells where the finding can be *seen*, not every
# pixel that changed. This is a first failure case to remember: a model may use what is whitened below the dome, where no
# outline is, and be right for a reason that nobody drew.
#
# **What phantoms are good for:** checking that a method works as described; asking whether words find their place;
# teaching without a licence; running everything on a laptop.
#
# **What they cannot show:** how good a model is on patients. The anatomy is simpler, the reports come from a
# grammar, and rare diseases do not exist. Where they depart from life is
# [listed](../data_scripts/phantom/LIMITS.md). Never compare the height of a `demo` number with the paper's. Compare the
# pattern: which method wins, and where.
#
# ## 6. Data access
#
# On day one you need no licence at all. For the real data sets, each owner asks for something. The scripts read
# them exactly as they are shipped.

# %%
from data_scripts.access import ACCESS, OPEN_ACCESS

rows = [[one.title, one.terms, one.where, one.script] for one in (ACCESS | OPEN_ACCESS).values()]
pd.set_option("display.max_colwidth", None)  # show whole addresses
pd.DataFrame(rows, columns=["data set", "what the owner asks for", "where", "script"])

# %% [markdown]
# Data under such agreements must stay on your computer, and so must every picture and table made from them. The
# library marks them `restricted`, and refuses to write their outputs where git could pick them up.
#
# ## 7. Is this computer ready?
#
# Each check below stops with a remedy if it fails.

# %%
passed = []


def check(holds, what, remedy):
    assert holds, f"{what}: no. {remedy}"
    passed.append(what)
    print(f"ok  {what}")


# %%
import sys
import tomllib
from importlib.metadata import distributions

from packaging.requirements import Requirement

project = tomllib.loads((run.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
installed = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
check((3, 11) <= sys.version_info[:2] <= (3, 13), "Python is 3.11 to 3.13", "Install one and run `make setup`.")
for package in map(Requirement, project["dependencies"]):
    fits = package.specifier.contains(installed.get(package.name, "0"), prereleases=True)
    check(fits, f"{package.name} {package.specifier}", "Run `make setup` (or pip install -e .) again.")

# %%
import shutil

import psutil

memory, disk = psutil.virtual_memory().available / 2**30, shutil.disk_usage(run.output_dir).free / 2**30
print(f"memory free: {memory:.0f} GB, disk free: {disk:.0f} GB, device: {run.device.type}")
check(memory > 3, "more than 3 GB of memory free", "Close other programs, or take PROFILE = 'smoke'.")
check(disk > 2, "more than 2 GB of disk free", "Delete outputs/ of old runs, or set DATA_ROOT to another disk.")

# %% [markdown]
# The next two checks are about trust in numbers: the same seed must give the same film, and the same network.

# %%
import torch

from mgca_lib.encoders import build_image_encoder

again = render_case(case, hospital, np.random.default_rng(run.seed), size=320)
check(np.array_equal(film.image, again.image), "the same seed draws the same film", "Please report this.")
small = PROFILES["smoke"].model
twins = [torch.manual_seed(run.seed) and build_image_encoder(small).eval() for _ in range(2)]
outputs = [twin(torch.zeros(1, 1, small.image_size, small.image_size)).pooled for twin in twins]
check(torch.equal(*outputs), "the same seed builds the same network", "Please report this.")
run.record("environment/checks_passed", len(passed))

# %% [markdown]
# ## 8. Symbols and names
#
# One table for all notebooks. $B$ is the number of studies in a batch, $D$ the width of the joint space, $P$ the
# number of patches, $W$ of word slots, $T$ of word pieces, $S$ the side of the image in pixels.
#
# | symbol | what it is | name in the code | shape |
# |---|---|---|---|
# | $x_{v,i}$ | film of study $i$ | `batch.images` | `(B, 1, S, S)` |
# | $x_{t,i}$ | its report, in word pieces | `batch.pieces` | `(B, T)` |
# | $v_i$ | the whole film | `image.pooled` | `(B, D)` |
# | $t_i$ | the whole report | `report.pooled` | `(B, D)` |
# | $p_{ik}$ | patch $k$ of the film | `image.local` | `(B, P, D)` |
# | $w_{ij}$ | word $j$ of the report | `report.local` | `(B, W, D)` |
# | | is slot $j$ a real word? | `report.keep` | `(B, W)` |
# | $\omega_{ij}$ | importance of a word | `importance_weights(report.weight, report.keep)` | `(B, W)` |
# | $\omega'_{ik}$ | importance of a patch | `importance_weights(image.weight, image.keep)` | `(B, P)` |
# | $c_k$ | prototype | `model.prototypes` | `(K, D)` |
# | $q_i$ | code: the prototypes a study is given to | `sinkhorn(...)` | `(B, K)` |
# | $\tau_1, \tau_2, \tau_3$ | temperatures of the three terms | `instance_`, `token_`, `prototype_temperature` | numbers |
# | $\varepsilon$ | softness of Sinkhorn | `sinkhorn_epsilon` | number |
# | $\lambda_1, \lambda_2, \lambda_3$ | weights of the three terms | `instance_`, `token_`, `prototype_weight` | numbers |
#
# All vectors that meet in a loss have length 1, so a product such as $v_i \cdot t_j$ is a cosine.

# %%
alignment = run.config.alignment
settings = {
    "tau_1": alignment.instance_temperature,
    "tau_2": alignment.token_temperature,
    "tau_3": alignment.prototype_temperature,
    "epsilon": alignment.sinkhorn_epsilon,
    "K": alignment.num_prototypes,
    "D": run.config.model.joint_dim,
}
pd.Series(settings, name=f"value in profile {run.profile}", dtype=object).to_frame().T

# %% [markdown]
# ## 9. How to read these notebooks
#
# - **Predict.** Before most results you are asked for a guess. Write it down. A wrong guess teaches more than a
#   result read twice.
# - **`assert`.** A line that begins with `assert` states something that must hold, and stops the notebook if it does
#   not. Try to break it.
# - **Small first.** An equation is first run on numbers you can check by hand, then replaced by the library's
#   version, and one `assert` shows that both agree.
# - **Numbers** are printed by code and kept in `metrics.json`, never typed into the text. Where one is
#   uncertain, its 95 % interval stands beside it.
# - **Failures** are part of the course. Each notebook discusses at least one.
# - **Exercises** come in three grades: recall, modify, research. Each has a check that you can run. Solutions are
#   folded away at the end.
#
# ## 10. What we showed, what we did not, where it breaks
#
# **Shown:** what a study is; how three alignments use it; that the films of this course know their own truth; that
# your computer is set up.
#
# **Not shown:** that any of it works. That is what the other notebooks are for.
#
# **Where it breaks.** Phantoms are not patients. Reports name what the reader looked for, so unmentioned is not
# absent. A model that matches films with reports may learn the hospital instead of the disease. And the published
# code differs from the published method in many small ways; this course uses the corrected version and keeps the
# original behind a switch.

# %%
print(f"{len(passed)} checks passed")
written = run.finish(
    question="How does a model learn to read X-rays from reports alone?", headline="environment/checks_passed"
)
print(f"wrote {written.name}")

# %% [markdown]
# ## Exercises
#
# Fill in the variable, run the cell, and read what it says. As it stands, each cell runs and says that it is open.
#
# **1. Recall.** On the film above, the word "left" in the report refers to which half of the *image*?

# %%
my_half = ""  # "left" or "right"

assert my_half in ("", "right"), "the patient faces you: look for the side marker"
print("open" if not my_half else "correct")

# %% [markdown]
# **2. Modify.** Draw a patient with a pneumothorax (air beside the lung), and find out with `mask.mean()` which share of the
# film it covers. Use seed 7 for the case and for the film, `size=320`, and the same hospital.

# %%
my_share = None  # a number between 0 and 1

seven = sample_case(np.random.default_rng(7), hospital, findings=["pneumothorax"])
truth = render_case(seven, hospital, np.random.default_rng(7), size=320).finding_masks[0].mean()
assert my_share is None or abs(my_share - truth) < 0.005, "compare your call with the cell in section 1"
print("open" if my_share is None else f"correct: {truth:.1%}")

# %% [markdown]
# **3. Research.** How often does a phantom report leave out a finding that is on the film? Draw 200 cases and
# reports, count findings that no phrase points at, and say what such silence does to a model that treats
# the report as the truth.

# %%
my_silent_share = None  # findings without a phrase, divided by all findings

draw = np.random.default_rng(0)  # other draws of 200 differ a little
pairs = [(one, write_report(one, draw)) for one in (sample_case(draw, hospital) for _ in range(200))]
told = sum(len({phrase.finding for phrase in text.phrases if not phrase.negated}) for _, text in pairs)
counted = 1 - told / sum(len(one.findings) for one, _ in pairs)
close = my_silent_share is None or abs(my_silent_share - counted) < 0.03
assert close, "count findings, not reports; leave out denials"
print("open" if my_silent_share is None else f"correct: {counted:.1%} here; notebook 01 counts the whole data set")

# %% [markdown]
# <details><summary><b>Solutions</b></summary>
#
# **1.** `my_half = "right"`.
#
# **2.** Two calls, then the mean of the mask:
# ```python
# seven = sample_case(np.random.default_rng(7), hospital, findings=["pneumothorax"])
# my_share = render_case(seven, hospital, np.random.default_rng(7), size=320).finding_masks[0].mean()
# ```
#
# **3.** A phrase knows the finding it points at by its number in `case.findings`:
# ```python
# rng, silent, total = np.random.default_rng(0), 0, 0
# for _ in range(200):
#     one = sample_case(rng, hospital)
#     told = {phrase.finding for phrase in write_report(one, rng).phrases}
#     silent += sum(number not in told for number in range(len(one.findings)))
#     total += len(one.findings)
# my_silent_share = silent / total
# ```
# A film with an unmentioned nodule is pushed towards reports without nodules. Labels read from reports inherit the same
# error: they miss what the reader did not write.
#
# </details>
#
# ## References
#
# - F. Wang, Y. Zhou, S. Wang, V. Vardhanabhuti, L. Yu. *Multi-Granularity Cross-modal Alignment for Generalized Medical
#   Visual Representation Learning.* NeurIPS 2022. [arXiv:2210.06044](https://arxiv.org/abs/2210.06044)
# - The published code: [HKU-MedAI/MGCA](https://github.com/HKU-MedAI/MGCA)
#
# **Next:** [01 Data preparation](01_data_preparation.ipynb) makes the data that all others use.
