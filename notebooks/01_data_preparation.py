# %% [markdown]
# # 01 · What happens to a film and its report before a model sees them?
#
# A model never sees a hospital's files. It sees a square of grey values and a list of word pieces, and somebody
# decided how the one became the other. Those decisions are seldom in the paper, and they move results: a split
# that shares patients, a label that was a guess, a report cut off before its findings.
#
# **After this notebook you can** (1) turn four raw data sets, phantom or real, into prepared ones, (2) follow one
# study from its files to its row, (3) say what cleaning keeps of a report and what it destroys, (4) explain why
# patients, not images, are split, (5) read DICOM grey values correctly, (6) tell four hospitals apart, and say why
# that should worry you.
#
# - **First read** [00 Start here](00_start_here.ipynb).
# - **Time** `smoke` under half a minute; `demo` a few minutes on two CPU cores, nearly all of it for drawing the
#   phantoms, and seconds when they are there already. `paper` depends on your disk: hours for MIMIC-CXR.
# - **Data** phantoms, made here. With access to the originals, name their folders in the first cell.
# - **Departures from upstream** MIMIC's validation and test splits stay apart (upstream merges them); CheXpert is
#   split by patient (upstream by image); every dropped row is counted and named.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper: the only knob most readers turn
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/NN_name in the project
DATA_SEED = 0  # seed of the phantoms; apart from SEED, so that runs with several seeds share their data
RAW_MIMIC = ""  # folder of MIMIC-CXR-JPG with its reports; empty: phantoms
RAW_CHEXPERT = ""  # folder of CheXpert-v1.0; empty: phantoms
RAW_RSNA = ""  # folder of the RSNA challenge, stage 2; empty: phantoms
RAW_COVIDX = ""  # folder of COVIDx v9A; empty: phantoms

# %%
from mgca_lib.run import start_run

run = start_run("01_data_preparation", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR)
run

# %% [markdown]
# ## 1. Four hospitals, one road
#
# This notebook prepares four data sets; notebooks 09 and 13 add others. **MIMIC-CXR** has films with reports: the model is
# pretrained on it. The other three have films with labels: they test afterwards whether the model learned something that
# carries over.
#
# Phantoms are written in *exactly* the layout in which each owner ships the original: the same folders, tables and
# file formats. So the phantom and the original travel one road, and whoever gets access to MIMIC-CXR changes one
# path.

# %%
from data_scripts.access import locate_raw

given = {"mimic_cxr": RAW_MIMIC, "chexpert": RAW_CHEXPERT, "rsna": RAW_RSNA, "covidx": RAW_COVIDX}
raw = locate_raw(run.raw, given, phantoms=run.profile != "paper")
to_draw = [name for name, folder in given.items() if not folder and run.profile != "paper"]
print("phantoms:", ", ".join(to_draw) or "none", "| originals:", ", ".join(sorted(set(given) - set(to_draw))) or "none")

# %% [markdown]
# In profile `paper` that cell stops when an original is missing, and says what to download. Otherwise the phantoms
# are drawn now. What is finished from an earlier run is left as it is.

# %%
import contextlib
import io
import os
import time

from data_scripts.make_phantoms import make_phantoms

started = time.perf_counter()
size, workers = (128, 1) if run.profile == "smoke" else (256, min(8, os.cpu_count() or 1))
with contextlib.redirect_stdout(io.StringIO()):  # its lines name folders of this computer
    if to_draw:
        make_phantoms(run.raw, profile=run.profile, seed=DATA_SEED, datasets=to_draw, size=size, workers=workers)
print(f"raw data are there after {time.perf_counter() - started:.0f} s")

# %%
import pandas as pd
from IPython.display import display

if to_draw:
    found = [(name, path) for name in raw for path in raw[name].rglob("*.*") if path.is_file()]
    files = [(name, path.suffix or path.name, path.stat().st_size) for name, path in found]
    listing = pd.DataFrame(files, columns=["data set", "kind", "bytes"]).groupby(["data set", "kind"])["bytes"]
    display(listing.agg(files="size", megabytes=lambda sizes: round(sizes.sum() / 1e6, 1)))

# %% [markdown]
# JPEG, PNG and DICOM films; compressed tables; one text file for each report. The `.parquet` tables and the PNG masks under
# `mimic_cxr` are the ground truth of the phantoms, which no original has.
#
# ## 2. Prepare all four
#
# Each `prepare_*.py` script reads one raw layout and writes a *prepared data set*: one table with a row for each
# image, and the images, shrunk to the size that the model needs. The notebooks read nothing else. On the command
# line the same is, for example, `python -m data_scripts.prepare_rsna --raw DIR --out DIR`.
#
# **Predict.** A raw table lists films. Before you run the next cell, write down two reasons why a row might not
# make it into the prepared table.

# %%
from data_scripts import prepare_chexpert, prepare_covidx, prepare_mimic_cxr, prepare_rsna

scripts = {
    "mimic_cxr": prepare_mimic_cxr,
    "chexpert": prepare_chexpert,
    "rsna": prepare_rsna,
    "covidx": prepare_covidx,
}
prepared, stored_size = run.data_root / "prepared", run.config.model.stored_size
summaries = {
    name: script.prepare(raw[name], prepared / name, size=stored_size, overwrite=True)
    for name, script in scripts.items()
}

# %%
table = {
    name: {
        "rows in": one.rows_in,
        "rows out": one.rows_out,
        "dropped": "; ".join(f"{reason}: {count}" for reason, count in one.dropped.items()) or "none",
        **one.images,
    }
    for name, one in summaries.items()
}
pd.set_option("display.max_colwidth", None)  # show whole reasons
pd.DataFrame(table).T

# %%
for name, one in summaries.items():
    assert one.rows_in == one.rows_out + sum(one.dropped.values()), f"{name}: a row was lost silently"
    run.record(f"{name}/rows_in", one.rows_in)
    run.record(f"{name}/rows_dropped", sum(one.dropped.values()))

# %% [markdown]
# The sum must close: rows in = rows out + rows dropped, each with its reason. Two kinds of rows go: lateral views, by
# design, because MGCA reads frontal films; and films whose report keeps too few words after cleaning. RSNA counts more
# rows than images: its table has a row for each *box*, and one film can have several.
#
# Preparation can be interrupted. A second run finds what is done and converts nothing:

# %%
again = scripts["rsna"].prepare(raw["rsna"], prepared / "rsna", size=stored_size)
print(f"converted {again.converted}, reused {again.reused}")
assert again.converted == 0, "an image was converted twice"

# %% [markdown]
# ## 3. What a prepared data set is
#
# A folder with `studies.parquet`, `images/` and `card.json`. Loading checks everything: columns, values, the
# checksum, and that no patient is in two splits.

# %%
studies = {name: run.studies(name) for name in scripts}
mimic = studies["mimic_cxr"]
pd.DataFrame({name: vars(one.card) for name, one in studies.items()}).drop(["options", "table_sha256"]).T

# %% [markdown]
# `restricted` decides what may leave your computer. It is false for phantoms and true for the originals of these four,
# and the library then refuses to write outputs where git could pick them up.
#
# One row of the table. We choose a training film whose report has both sections and speaks of an effusion and more.

# %%
import numpy as np

train = mimic.split("train")
both = (train.table["findings"].str.len() > 0) & (train.table["impression"].str.len() > 0)
states = train.labels(["Pleural Effusion", "Cardiomegaly", "Lung Lesion"]) == 1
wanted = both.to_numpy() & states[:, 0]  # both sections, and an effusion
example = int(np.where(wanted, states.sum(axis=1), 0).argmax())  # the first with the most findings
train.table.iloc[example].drop(["findings", "impression", "sentences", "labels"]).to_frame("value")

# %% [markdown]
# ## 4. One report on its way
#
# This is the report as the hospital stores it.

# %%
row = train.table.iloc[example]
patient, study = row["patient_id"], row["study_id"]
stored = raw["mimic_cxr"] / "mimic-cxr-reports" / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
fallback = f"FINDINGS: {row['findings']}\n\nIMPRESSION: {row['impression']}"
text = stored.read_text(encoding="utf-8") if stored.is_file() else fallback
print(text)

# %% [markdown]
# **Predict.** Which of these sections should a model read, if it is to learn what is *on the film*? Which would
# teach it something else? Write down your choice.

# %%
from mgca_lib.data.reports import clean_sentences, split_sections

sections = split_sections(text)
for name, content in vars(sections).items():
    print(f"{name.upper()}: {content or '(none)'}\n")

# %% [markdown]
# *Findings* describe the film, and the *impression* sums it up. MGCA reads these two, impression first. The indication
# says what somebody feared, and the technique how the film was taken: a model that reads them learns about the
# ward, not about the lungs. The *comparison* names an older film, and is not read either. `last_paragraph` is a spare:
# some reports have no headers, and on request preparation then takes their last paragraph as findings. `___` stands
# where names and dates were removed.
#
# Cleaning comes next. By hand, on one line:

# %%
import re

line = "1. Small left effusion. 2. No pneumothorax."
pieces = re.split(r"\d+\.|\.", line)  # cut at list markers and at full stops
words = [re.findall(r"\w+", piece.lower()) for piece in pieces]  # letters, digits and _
sentences = [" ".join(piece) for piece in words if len(piece) >= 2]  # drop pieces of a single word
print(sentences)

# %%
assert sentences == clean_sentences(findings="", impression=line), "our cleaning and the library's differ"
for sentence in clean_sentences(findings=sections.findings, impression=sections.impression):
    print("·", sentence)

# %% [markdown]
# The library does the same, and also remembers where each word stood. These sentences are the column `sentences`.
#
# **Predict.** What will be left of *"A 3.5 cm mass, unchanged. Normal."*? Write it down; there are three surprises.

# %%
damaged = clean_sentences(findings="A 3.5 cm mass, unchanged. Normal.", impression="")
print(damaged)

# %% [markdown]
# The number loses its whole part: "3." looks like a list marker. The text is cut there, so "A" is left alone and goes as a
# piece of one word. And so does "Normal.", a complete report for a radiologist. This is a real failure, inherited on
# purpose: the published results were obtained with this cleaning. A comparison must change one thing at a time.
#
# ## 5. Views, splits, and why patients must not be shared
#
# A *PA* film is taken standing, an *AP* film usually in bed: there the heart looks larger, and patients are sicker.

# %%
views = {name: one.table["view"].replace("", "not stated").value_counts() for name, one in studies.items()}
pd.DataFrame(views).fillna(0).astype(int).T

# %% [markdown]
# The four data sets mix the views differently. Whoever compares prevalence between them compares wards, too.
#
# Each split must be a fresh set of *patients*: a patient's films resemble one another, whatever the disease.
# **Predict.** CheXpert's training films are split at random *by image*, a fifth for validation. What share of the
# validation films would show a patient who is also in training?

# %%
own = studies["chexpert"].table
own = own[own["split"] != "test"]["patient_id"].to_numpy()
order = np.random.default_rng(run.seed).permutation(len(own))
held_out, kept = own[order[: len(own) // 5]], own[order[len(own) // 5 :]]
shared = float(np.isin(held_out, kept).mean())
print(f"split by image: {shared:.0%} of the held-out films show a patient of the training set")

# %%
for name, one in studies.items():
    patients = one.table.groupby("split")["patient_id"].agg(set)
    assert sum(map(len, patients)) == len(set.union(*patients)), f"{name}: a patient is in two splits"
print("split by patient: 0 %, in all four data sets")
run.record("chexpert/shared_if_split_by_image", shared)

# %% [markdown]
# A probe validated on such films looks better than it is: it can score by recognising the patient. Upstream draws
# CheXpert's *validation* images this way, 5,000 of them. Its test films are those of other patients, so the leak flatters
# only the choice of the stopping point. Upstream also chooses its best checkpoint with MIMIC's official test images merged
# into validation. Here, splits share no patient, and loading fails if they do; MIMIC's test images stay apart.
#
# ## 6. Labels, and labels that say "perhaps"
#
# CheXpert's labels were read from reports by a program. Each is 1 (present), 0 (denied), -1 (uncertain) or blank (not
# mentioned). The test films were labelled by radiologists who looked at the film: there, nothing is uncertain.

# %%
from data_scripts.preparation import find_root, read_labels, read_table
from mgca_lib.data.tasks import CHEXPERT_LABELS, TASKS

chexpert_root = find_root(raw["chexpert"], "train.csv", inside=("CheXpert-v1.0*",), what="CheXpert")
records = read_table(chexpert_root / "train.csv", CHEXPERT_LABELS).to_dict("records")
labels = pd.DataFrame([read_labels(record) for record in records])[list(TASKS["chexpert"].classes)]
meaning = {1.0: "present", 0.0: "denied", -1.0: "uncertain"}
stated = labels.apply(lambda column: column.map(meaning).fillna("blank").value_counts(normalize=True)).fillna(0)
(100 * stated).round(1).loc[["present", "denied", "uncertain", "blank"]].rename_axis("share of training films, %")

# %% [markdown]
# A blank becomes 0. For -1 somebody must choose. Upstream sets it to 1 for atelectasis, edema and effusion, and to
# 0 for cardiomegaly and consolidation. **Predict.** Which label's prevalence depends most on that choice?

# %%
from data_scripts.prepare_chexpert import map_labels
from mgca_lib import figures

read = [read_labels(record) for record in records]
prevalence = {}
for mode in ("upstream", "ones", "zeros", "ignore"):
    mapped = pd.DataFrame([map_labels(one, mode) for one in read], dtype=float)[list(labels)]
    prevalence[mode] = (100 * (mapped == 1).sum() / mapped.notna().sum()).round(1).to_dict()
experts = studies["chexpert"].split("test").labels(list(labels)) == 1
prevalence["radiologists (test)"] = dict(zip(labels, (100 * experts.mean(axis=0)).round(1).tolist(), strict=True))

# %%
run.show(
    figures.label_counts(prevalence, unit="films with the finding (%)"),
    "uncertain_labels",
    "Prevalence of the five CheXpert labels under four treatments of uncertain labels, and on the test films that "
    "experts labelled. Nothing on the films changed; only the meaning of 'perhaps' did.",
)
spread = {name: prevalence["ones"][name] - prevalence["zeros"][name] for name in labels}
print({name: f"{value:.1f} points" for name, value in spread.items()})
run.record("chexpert/largest_uncertain_spread_points", max(spread.values()))

# %% [markdown]
# The gap between "ones" and "zeros" is the share of uncertain labels. Where it is wide, two papers that map
# differently train on different diseases. Preparation keeps the choice switchable (`uncertain="ones"`), and notes it in the
# card. The last bars belong to other patients and other eyes: experts see what reports do not mention, and leave
# nothing open.

# %%
card = studies["chexpert"].card
print({key: card.options[key] for key in ("uncertain", "blank", "splits")})

# %% [markdown]
# ## 7. DICOM: a number is not yet a grey
#
# X-ray machines write DICOM, a format in which the stored numbers become greys only by way of the header. Here is a
# header from the RSNA set.

# %%
import pydicom

boxed = np.flatnonzero(studies["rsna"].table["boxes"].map(len) > 0)
rsna_row = studies["rsna"].table.iloc[int(boxed[0]) if len(boxed) else 0]
rsna_root = find_root(raw["rsna"], "stage_2_train_labels.csv", inside=("rsna*",), what="RSNA")
header = pydicom.dcmread(rsna_root / rsna_row["source"], stop_before_pixels=True)
tags = ("Modality", "ViewPosition", "Rows", "Columns", "BitsStored", "PhotometricInterpretation", "WindowCenter")
pd.Series({tag: str(header.get(tag, "(absent)")) for tag in tags}).to_frame("value")

# %% [markdown]
# Two tags matter most. **PhotometricInterpretation**: in `MONOCHROME2` small numbers are black, in `MONOCHROME1`
# they are white. **WindowCenter** and **WindowWidth** choose the range of numbers that is spread from black to
# white; everything outside saturates.
#
# **Predict.** We change these tags in copies of the file, and never touch the pixels. What will a narrow window around low
# numbers do to the lungs, and what to the heart?

# %%
import tempfile
from pathlib import Path

from data_scripts.images import read_image


def read_with(**changed):
    copy = pydicom.dcmread(rsna_root / rsna_row["source"])
    for tag, value in changed.items():
        setattr(copy, tag, value)
    with tempfile.TemporaryDirectory() as folder:
        copy.save_as(Path(folder, "copy.dcm"))
        return read_image(Path(folder, "copy.dcm"))


# %%
as_stored = read_with()
black, lungs, heart, white = np.percentile(as_stored, [3, 40, 70, 99.5])
low = read_with(WindowCenter=f"{(black + heart) / 2:.0f}", WindowWidth=f"{heart - black:.0f}")
high = read_with(WindowCenter=f"{(lungs + white) / 2:.0f}", WindowWidth=f"{white - lungs:.0f}")
negative = read_with(PhotometricInterpretation="MONOCHROME1")
assert np.abs(255.0 - as_stored - negative).max() <= 1, "MONOCHROME1 must be the exact negative"

# %%
run.show(
    figures.image_grid(
        [image / 255 for image in (as_stored, low, high, negative)],
        ["no window", "low, narrow window", "high, narrow window", "declared MONOCHROME1"],
        columns=4,
    ),
    "dicom",
    "One DICOM file, four headers. A low window opens the lungs and blinds the heart, a high one does the reverse. "
    "A reader that ignores the photometric interpretation feeds the model negatives.",
)

# %% [markdown]
# A low window shows the lungs in detail, and the heart drowns in white; a high one does the reverse. Code that
# skips the window does no harm on 8-bit files such as RSNA's, and much on a detector's 12 to 16 bits; code that skips the
# photometric interpretation shows a negative at any depth. `read_image` follows the standard: rescaling, windows, tables,
# inversion, padding.
#
# ## 8. Boxes
#
# RSNA's radiologists drew a box around each opacity. Preparation shrinks the image, so boxes must shrink with it.

# %%
from PIL import Image

image = np.asarray(Image.open(studies["rsna"].root / rsna_row["image"]))
boxes = [tuple(box[key] for key in "xywh") for box in rsna_row["boxes"]]
masks = [np.zeros(image.shape, bool) for _ in boxes]
run.show(
    figures.image_with_masks(image / 255, masks, ["pneumonia"] * len(boxes), boxes=boxes),
    "boxes",
    "A film of the RSNA set as stored, and with the boxes of its label table, scaled to the stored size.",
)

# %% [markdown]
# Check one by hand. Prepared and raw box must cover the same share of their images.

# %%
lines = read_table(rsna_root / "stage_2_train_labels.csv", ["patientId", "width", "height"])
first = lines[lines["patientId"] == rsna_row["patient_id"]].iloc[0]
if boxes:
    raw_share = float(first["width"]) * float(first["height"]) / (header.Rows * header.Columns)
    share = boxes[0][2] * boxes[0][3] / image.size
    print(f"raw {raw_share:.4f}, prepared {share:.4f}")
    assert abs(raw_share - share) < 1e-6 + 0.02 * share, "the box was not scaled with its image"

# %% [markdown]
# ## 9. Four hospitals side by side
#
# **Predict.** Six films from each data set follow, a row each. Look for one thing that gives a hospital away: brightness,
# borders, markers, tubes. Would a model need to know any medicine to tell them apart?

# %%
bases = {"mimic_cxr": raw["mimic_cxr"], "chexpert": chexpert_root.parent, "rsna": rsna_root, "covidx": raw["covidx"]}
sheet, titles = [], []
for name, one in studies.items():
    picked = np.random.default_rng(run.seed).permutation(len(one))[:6]
    paths = [one.table["source"].iat[int(number)] for number in picked]
    sheet += [read_image(bases[name] / path) / 255 for path in paths]
    titles += [name, *[""] * (len(picked) - 1)]

# %%
run.show(
    figures.image_grid(sheet, titles, columns=6),
    "hospitals",
    "Six films from each of the four data sets, one row each. Contrast, borders, markers and the share of bedside "
    "films differ from row to row.",
)

# %% [markdown]
# Grey levels alone already differ. We count them, black borders left out.

# %%
from mgca_lib.data.tasks import load_picture


def grey_levels(one, row):
    grey = np.asarray(load_picture(one, row))
    return np.histogram(grey[grey > 4], bins=32, range=(0, 256), density=True)[0]


levels, hospital, is_test, patients = [], [], [], []
for number, one in enumerate(studies.values()):
    picked = np.random.default_rng(run.seed).permutation(len(one))[:400]
    levels += [grey_levels(one, int(row)) for row in picked]
    hospital += [number] * len(picked)
    is_test += (one.table["split"].to_numpy()[picked] == "test").tolist()
    patients += [f"{number} {patient}" for patient in one.table["patient_id"].to_numpy()[picked]]
levels, hospital, is_test, patients = np.array(levels) * 256, *map(np.array, (hospital, is_test, patients))

# %%
means = {name: levels[hospital == number].mean(0).tolist() for number, name in enumerate(studies)}
run.show(
    figures.curves(
        np.arange(4, 256, 8).tolist(),
        means,
        x_label="grey level (0 black, 255 white)",
        y_label="density, times the uniform one",
    ),
    "grey_levels",
    "Mean distribution of grey levels in each data set. The curves differ although all show chests: this is domain shift "
    "in its simplest form.",
)

# %% [markdown]
# **Predict.** A logistic regression sees the 32 numbers of such a curve, and nothing else: no position, no shape. How
# often will it name the right hospital on films of patients it has not seen? Guessing gives a quarter.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mgca_lib.evaluation.intervals import bootstrap_interval

reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
reader.fit(levels[~is_test], hospital[~is_test])
truth = hospital[is_test]
hits = reader.predict(levels[is_test]) == truth


def balanced_accuracy(films):
    right = np.bincount(truth[films], weights=hits[films], minlength=4)
    shown = np.bincount(truth[films], minlength=4)
    return float((right / shown).mean()) if shown.all() else np.nan  # each hospital counts a quarter


# %%
accuracy = bootstrap_interval(balanced_accuracy, len(truth), groups=patients[is_test], seed=run.seed)
print(f"balanced accuracy {accuracy}, chance 0.250; n counts patients")
run.record("hospital_from_grey_levels/accuracy", accuracy.as_metric())

# %% [markdown]
# Above chance, with no anatomy at all. If disease were more frequent in one hospital than in another, a model
# trained on both could read the hospital off the greys and guess the disease. It would look good until it met a
# third hospital. So the course never adds data sets together class by class. One of its sets was made that way: the
# original COVIDx takes its classes from different sources. Its phantom does not copy that flaw; notebook 13 comes back to
# what such a mixture does. The course pretrains in one hospital and tests in others.
#
# ## 10. How common is what
#
# Labels of the pretraining set for each split. They come from reports; MGCA does not train on them.

# %%
shown = list(TASKS["chexpert"].classes) + ["Pneumonia", "Pneumothorax", "Lung Lesion", "No Finding"]
counts = {split: 100 * (mimic.split(split).labels(shown) == 1).mean(0) for split in ("train", "valid", "test")}
run.show(
    figures.label_counts(
        {split: dict(zip(shown, values.round(1).tolist(), strict=True)) for split, values in counts.items()},
        unit="films whose report states it (%)",
    ),
    "labels",
    "Share of films whose report states a finding, for each split of MIMIC-CXR. Splits by patient agree roughly.",
)
for name, share in zip(shown, counts["train"], strict=True):
    run.record(f"mimic_cxr/prevalence/{name.lower().replace(' ', '_')}", share / 100)

# %% [markdown]
# The splits agree only roughly; films without a finding differ most. Part of that gap is made: each split of the phantoms
# opens with a few patients chosen so that no finding is missing from it, and they weigh more where films are few. Besides, a patient's
# films tend to share their findings, so that chance has fewer throws than there are films.
#
# The three other sets, in the classes that notebook 07 will probe:

# %%
rows = {}
for task in TASKS.values():
    for split in ("train", "valid", "test"):
        part = studies[task.name].split(split)
        positives = (part.labels(task.classes) == 1).sum(0).astype(int).tolist()
        rows[task.name, split] = {"films": len(part), **dict(zip(task.classes, positives, strict=True))}
pd.DataFrame(rows).T.map(lambda count: "" if pd.isna(count) else int(count))

# %% [markdown]
# ## 11. How long is a report, and what does the limit cut off?
#
# The report encoder reads at most `max_pieces` *word pieces* (notebook 02 explains them). Longer reports lose their
# end. Impression comes first, so what is lost is always *findings*.
#
# **Predict.** The published limit is 112. What share of the reports is longer?

# %%
from mgca_lib.data.pairs import report_texts
from mgca_lib.data.tokenization import load_tokenizer, tokenize_reports, train_tokenizer

texts, config = report_texts(train), run.config.model
if config.text_model:
    tokenizer = load_tokenizer(config.text_model)
else:
    tokenizer = train_tokenizer(texts, vocabulary=config.text_vocabulary)
reports = [report.split() for report in texts]
whole = tokenize_reports(tokenizer, reports, max_pieces=512)
lengths = np.diff(whole.offsets)

# %%
limits = np.arange(16, 161, 8)
cut = {"reports cut short": [100 * float((lengths > limit).mean()) for limit in limits]}
truncated = float(tokenize_reports(tokenizer, reports, max_pieces=config.max_pieces).truncated.mean())
print(f"mean length {lengths.mean():.1f} pieces, {np.mean([len(report) for report in reports]):.1f} words")
print(f"cut at {config.max_pieces} pieces: {truncated:.1%}")
assert abs(truncated - (lengths > config.max_pieces).mean()) < 1e-9, "two ways to count disagree"
run.record("mimic_cxr/mean_report_pieces", lengths.mean())
run.record("mimic_cxr/mean_report_words", np.mean([len(report) for report in reports]))
run.record("mimic_cxr/truncation_rate", truncated)

# %% [markdown]
# What is lost, though? For phantoms we know every finding phrase and its words, so we can count the phrases that
# fall off the end. `load_phrases` joins the ground truth to the cleaned words.

# %%
from mgca_lib.evaluation.grounding import load_phrases

truth_folder = raw["mimic_cxr"] / "ground_truth"
phrases = load_phrases(truth_folder, train) if truth_folder.is_dir() else None
if phrases is not None:
    present = phrases.table[~phrases.table["negated"] & (phrases.table["positions"].map(len) > 0)]
    ends = present["positions"].map(max).to_numpy()
    for limit in limits:
        # The last word of each report that is kept: [SEP] takes the last of the slots; -1 where no word is left.
        kept = [int(whole.report(row)[1][: limit - 1].max(initial=-1)) for row in range(len(whole))]
        lost = ends > np.array(kept)[present["row"].to_numpy()]
        cut.setdefault("finding phrases lost", []).append(100 * float(lost.mean()))

# %%
run.show(
    figures.curves(
        limits.tolist(),
        cut,
        x_label="limit (word pieces)",
        y_label="share (%)",
        marks={f"this profile: {config.max_pieces}": config.max_pieces},
    ),
    "truncation",
    "Share of reports that a limit cuts short, and share of finding phrases that are lost with their ends.",
)

# %% [markdown]
# Fewer phrases are lost than reports are cut short: a report counts as cut when it loses a single word, and it loses only the
# phrases at its end. The impression, which says what matters, comes first and stays. On MIMIC-CXR, with other reports and another
# vocabulary, the rate differs; the cell above measures it.
#
# One more count. If two studies have the *same* cleaned report ("no acute process"), a contrastive loss treats one
# as a wrong answer for the other. Such *false negatives* return in notebook 03.

# %%
first_rows = train.table.assign(text=texts).drop_duplicates("study_id")
duplicates = float(first_rows["text"].duplicated(keep=False).mean())
print(f"{duplicates:.1%} of the studies share their cleaned report with another study")
run.record("mimic_cxr/studies_with_a_twin_report", duplicates)

# %% [markdown]
# Phantom readers vary their words so much that twins are rare or absent. Real normal reports are often copied: expect
# a larger share on MIMIC-CXR.
#
# ## 12. Ground truth that no hospital has
#
# For each phrase, phantoms store the words and the mask of what they speak of. Here it is for the report from
# section 4: the same study, now with its film. The patient's left is on the right-hand side. Where the report speaks of a
# *mass*, that is a large nodule: one finding, one colour.

# %%
if phrases is not None:
    mine = phrases.table[phrases.table["row"] == example]
    film = read_image(raw["mimic_cxr"] / row["source"]) / 255
    outlined = mine[mine["mask"] != ""].drop_duplicates("mask")
    outlines = [np.asarray(Image.open(phrases.folder / mask)) > 0 for mask in outlined["mask"]]
    run.show(
        figures.image_with_masks(film, outlines, outlined["finding"].tolist()),
        "truth_film",
        "The example's film, alone and with the outline of every finding that its report names.",
    )

# %%
if phrases is not None:
    run.show(
        figures.report_with_spans(
            {"findings": row["findings"], "impression": row["impression"]}, mine.to_dict("records")
        ),
        "truth_report",
        "The example's report, phrases coloured by finding. A coloured phrase points at the outline of that colour."
        + " A phrase that is struck through denies a finding, and points at nothing." * bool(mine["negated"].any()),
    )

# %% [markdown]
# Trust, but verify: each stored phrase must be exactly the words at the stored place.

# %%
if phrases is not None:
    for number, phrase in zip(phrases.table["row"], phrases.table.itertuples(), strict=True):
        runs = re.findall(r"\w+", train.table[phrase.section].iat[number])
        assert runs[phrase.first_word : phrase.last_word + 1] == re.findall(r"\w+", phrase.phrase), phrase
    print(f"{len(phrases.table)} phrases stand where the ground truth says")

# %% [markdown]
# **Predict.** Of all phrases that name a disease, how many deny it? And of all findings on the films, how many does
# no phrase mention?

# %%
if phrases is not None:
    denied = float(phrases.table["negated"].mean())
    hedged = float(phrases.table["uncertain"].mean())
    cases = pd.read_parquet(truth_folder / "cases.parquet")
    unmentioned = float((~cases[cases["split"] == "train"]["mentioned"]).mean())
    print(f"denied {denied:.0%}, uncertain {hedged:.0%} of the phrases; {unmentioned:.0%} of the findings unmentioned")
    run.record("phrases/denied", denied)
    run.record("phrases/uncertain", hedged)
    run.record("findings/unmentioned", unmentioned)

# %% [markdown]
# A model that counted disease names would mostly count denials. And a finding without words cannot be learned
# from that report at all: silence is not health. Both are true of real reports; here we know by how much.
#
# ## 13. Break it
#
# Real data are damaged. We copy a few CheXpert rows into a scratch folder and break three: a film is cut off in the
# middle, a film is missing, and a label says 2. **Predict.** What should a good program do: stop, skip, or guess?

# %%
import shutil

scratch = tempfile.TemporaryDirectory()
broken = Path(scratch.name, "CheXpert-v1.0")
for part, count in (("train", 8), ("valid", 3)):
    lines = pd.read_csv(chexpert_root / f"{part}.csv", dtype=str, keep_default_na=False)
    lines = lines[lines["Frontal/Lateral"] == "Frontal"].head(count).reset_index(drop=True)
    if part == "train":
        lines.loc[5, "Edema"] = "2.0"
    for path in lines["Path"]:
        target = broken / path[path.index(f"{part}/") :]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(chexpert_root / target.relative_to(broken), target)
    lines.to_csv(broken / f"{part}.csv", index=False)

# %%
first, second = pd.read_csv(broken / "train.csv")["Path"].str.extract(r"(train/.*)")[0][:2]
(broken / first).write_bytes((broken / first).read_bytes()[:700])  # cut off
(broken / second).unlink()  # gone
summary = prepare_chexpert.prepare(broken, Path(scratch.name, "prepared"), size=64)
dropped = pd.read_csv(Path(scratch.name, "prepared", "dropped.csv"))
print(f"{summary.rows_in} rows in, {summary.rows_out} out")
dropped[["file", "row", "reason", "detail"]].fillna("")

# %% [markdown]
# Three rows are gone, and each is named with file, line and reason. Nothing was guessed, and nothing was lost in
# silence. A careful user wants more: `--strict` stops instead, at the first step that fails. Here that is the reading of
# the table, before any film is opened, so it names one of the three rows.

# %%
from mgca_lib.data.studies import DatasetError

try:
    prepare_chexpert.prepare(broken, Path(scratch.name, "strict"), size=64, strict=True)
except DatasetError as error:
    print(error)
scratch.cleanup()
assert len(dropped) == 3, "each of the three damages must be reported once"

# %% [markdown]
# A user of the published code found more than nine thousand rows with neither section, by an error when pretraining read
# them ([issue 42](https://github.com/HKU-MedAI/MGCA/issues/42)). A line in a table costs less.
#
# ## 14. What we showed, what we did not, where it breaks
#
# **Shown:** one road from raw files to a checked table, for phantoms and originals alike; splits by patient; a
# choice behind each "uncertain"; greys that depend on a header; four hospitals that a grey histogram can tell
# apart better than chance; a truncation rate instead of a hope.
#
# **Not shown:** that these choices are the best ones. The mapping of uncertain labels and the cleaning are upstream's,
# kept for comparability.
#
# **Where it breaks.** Cleaning loses decimals and one-word sentences. Report labels miss what was not written.
# Phantom hospitals differ in fewer ways than real ones. CheXpert 5x200, films with one disease each that other papers
# keep out of training for zero-shot classification (notebook 10), is no part of the CheXpert release. Neither GLoRIA's nor
# MGCA's repository holds its list; other projects point to a copy in a shared folder, and MedCLIP's repository holds one of
# its own. Preparation draws one from the original release, with a fixed seed, and leaves it out, so its films are not those
# of any paper. The phantom is too small for that and keeps all its films.

# %%
for name, one in studies.items():
    for split, count in one.card.counts.items():
        run.record(f"{name}/images/{split}", count)
written = run.finish(
    question="What happens to a film and its report before a model sees them?", headline="mimic_cxr/images/train"
)
print(f"wrote {written.name}")

# %% [markdown]
# ## Exercises
#
# **1. Recall.** A report has only the line "FINDINGS: Normal." How many cleaned sentences does it leave, and will the
# study be kept (a study needs three words)?

# %%
my_count = None  # number of cleaned sentences
my_kept = None  # True or False

assert my_count in (None, len(clean_sentences(findings="Normal.", impression=""))), "a piece of one word is dropped"
assert my_kept in (None, False), "count the words that are left"
print("open" if my_count is None or my_kept is None else "correct")

# %% [markdown]
# **2. Modify.** Prepare CheXpert with `uncertain="zeros"` into a temporary folder, and find the share of *training*
# films with `Pneumothorax` equal to 1.

# %%
my_pneumothorax = None  # share between 0 and 1

zeros = np.array([map_labels(one, "zeros")["Pneumothorax"] == 1 for one in read]).mean()
close = 0.015 if run.profile != "smoke" else 0.1  # the check counts films that went to validation, and lateral ones
correct = my_pneumothorax is None or abs(my_pneumothorax - zeros) < close
assert correct, "use prepare_chexpert.prepare(..., uncertain='zeros')"
print("open" if my_pneumothorax is None else "correct, up to the films that went to validation or were lateral")

# %% [markdown]
# **3. Research.** Can a linear model tell AP from PA films by grey levels alone, within *one* hospital? Use all films of
# MIMIC-CXR: train on those outside the test split, test on the test split. Give the AUROC with its interval, and twenty
# AUROCs of the same model trained on *shuffled* labels. Say what your numbers mean for a finding that is more common at
# the bedside.

# %%
my_auroc = None  # from bootstrap_interval, with the patients of the test films as groups
my_shuffled = []  # AUROCs on the same test films, all training labels shuffled

tested_patients = mimic.split("test").table["patient_id"].nunique()
assert my_auroc is None or my_auroc.n == tested_patients, "test on all films, and draw whole patients"
assert my_auroc is None or len(my_shuffled) >= 20, "one shuffle proves little"
assert my_auroc is None or abs(np.mean(my_shuffled) - 0.5) < 0.1, "shuffle all training labels, and no test label"
if my_auroc is None:
    print("open")
else:
    print(f"views {my_auroc}; shuffled {min(my_shuffled):.3f} to {max(my_shuffled):.3f}")

# %% [markdown]
# <details><summary><b>Solutions</b></summary>
#
# **1.** `my_count = 0`, `my_kept = False`: the study is dropped and counted as "fewer than 3 words".
#
# **2.**
# ```python
# with tempfile.TemporaryDirectory() as folder:
#     prepare_chexpert.prepare(raw["chexpert"], folder, size=32, uncertain="zeros")
#     my_pneumothorax = float((load_studies(folder).split("train").labels(["Pneumothorax"]) == 1).mean())
# ```
# with `from mgca_lib.data.studies import load_studies`.
#
# **3.** The grey levels of all films take a while, the fits do not:
# ```python
# from sklearn.metrics import roc_auc_score
#
# x = np.array([grey_levels(mimic, row) for row in range(len(mimic))]) * 256
# bedside = (mimic.table["view"] == "AP").to_numpy()
# tested = (mimic.table["split"] == "test").to_numpy()
#
# def scores(labels):
#     return reader.fit(x[~tested], labels).predict_proba(x[tested])[:, 1]
#
# own, truth = scores(bedside[~tested]), bedside[tested]
# def auroc(films):
#     return roc_auc_score(truth[films], own[films]) if 0 < truth[films].mean() < 1 else np.nan
#
# my_auroc = bootstrap_interval(auroc, len(truth), groups=mimic.table["patient_id"].to_numpy()[tested])
# rng = np.random.default_rng(0)
# my_shuffled = [roc_auc_score(truth, scores(rng.permutation(bedside[~tested]))) for _ in range(20)]
# ```
# The interval says what other test patients would change, the shuffles what a model without anything to learn can reach.
# If greys betray the view, and a finding is more common in one view, greys predict the finding without showing it.
#
# </details>
#
# ## References
#
# - F. Wang and others. *Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation
#   Learning.* NeurIPS 2022. [arXiv:2210.06044](https://arxiv.org/abs/2210.06044)
# - The published preparation: [HKU-MedAI/MGCA](https://github.com/HKU-MedAI/MGCA); rows without text: its issue 42.
# - Data sets: the addresses are in the table of [00 Start here](00_start_here.ipynb).
#
# **Next:** [02 Encoders and tokens](02_encoders_and_tokens.ipynb) turns these rows into vectors.
