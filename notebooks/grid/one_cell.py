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
# # One cell of the grid: what does one change do?
#
# **This notebook is a form** that `make grid` fills in, once for every variant and seed: it trains one variant of MGCA and
# measures it with the course's yardsticks. You can also run it by hand, with a variant of your own choice, and read it
# from top to bottom.
#
# - **First read** [06 Pretraining](../06_pretraining.ipynb), for what is trained, and the notebooks that the sections name.
# - **Time** `smoke` about 10 s, `demo` four to nine minutes on one CPU core with bf16, ten to fifteen without; with patches of stride 8
#   twice as long.
# - **Data** the phantom MIMIC-CXR, CheXpert and RSNA of notebook 01.
# - **Departures from the other notebooks** a third of the epochs of notebook 06, so that many cells can be paid for, in
#   smaller batches. Numbers of the grid are comparable with each other, and not with those of notebooks 06 to 10.
#
# *Research and teaching only; nothing here is fit for clinical use.*

# %% tags=["parameters"]
PROFILE = "demo"  # smoke | demo | paper
SEED = 42  # one seed drives Python, NumPy, PyTorch and the data order
DATA_ROOT = ""  # empty: data/PROFILE in the project
OUTPUT_DIR = ""  # empty: outputs/PROFILE/one_cell in the project
VARIANT = "all"  # a name of mgca_lib.variants.VARIANTS
EPOCHS = 6  # passes over the pairs. This and the next two are read at demo only: the other profiles train as they are
BATCH_SIZE = 24  # smaller batches make more steps of few passes
LEARNING_RATE = 1.5e-3

# %%
from mgca_lib.run import start_run

short = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE} if PROFILE == "demo" else {}
run = start_run("one_cell", profile=PROFILE, seed=SEED, data_root=DATA_ROOT, output_dir=OUTPUT_DIR, **short)
run

# %% [markdown]
# ## 1. The change
#
# A variant is the profile with a few settings changed, and nothing else. The seed gives all variants the same pairs in the
# same order.

# %%
from mgca_lib.variants import VARIANTS, variant_config

config = variant_config(run.config, VARIANT)
print(VARIANTS[VARIANT].changes)
print("settings changed:", dict(VARIANTS[VARIANT].settings) or "none")

# %% [markdown]
# ## 2. Train
#
# A finished run in the output folder is loaded, an interrupted one goes on.

# %%
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.pretrain import pretrain

studies = run.studies("mimic_cxr")
trained = pretrain(config, studies, run.output_dir / "pretraining", seed=run.seed, resume=True)
model, tokenizer, _ = load_checkpoint(trained.best, device=run.device)
print("trained now" if trained.trained else "found a finished run", "-", len(trained.history), "epochs")

# %%
from mgca_lib import figures

figure = figures.loss_curves(trained.history, chance={})
run.show(figure, "losses", "Loss parts of this variant over its epochs, training and validation.")

# %% [markdown]
# ## 3. Measure
#
# Five yardsticks: the linear probe of notebook 07 on the phantom CheXpert and RSNA, the retrieval of notebook 03 over the whole
# test set, the pointing of notebook 04 against the true masks, the prototypes of notebook 08, and what the vectors of the common
# space still say of four findings (notebook 15). Before you read on: which of them can this variant have changed at all?

# %%
from mgca_lib import grid

test = studies.split("test")
draws = [run.seed + number for number in range(3)]
measured = {}
for dataset in ("chexpert", "rsna"):
    measured |= grid.measure_probe(model, run.studies(dataset), dataset=dataset, seeds=draws)
measured |= grid.measure_retrieval(model, tokenizer, test)
measured |= grid.measure_reading(model, tokenizer, studies)

# %%
from mgca_lib.evaluation.grounding import load_phrases

phrases = load_phrases(run.raw / "mimic_cxr" / "ground_truth", test)
measured |= grid.measure_grounding(model, tokenizer, test, phrases)
measured |= grid.measure_prototypes(model, tokenizer, test, findings=grid.FINDINGS, seed=run.seed)

# %% [markdown]
# And on patients, where the films are there: notebook 13 prepares NIH ChestX-ray14, and radiologists drew boxes on some of
# its films. The name of the label is all that the report encoder gets to read.

# %%
if (run.data_root / "prepared" / "nih").is_dir():
    measured |= grid.measure_boxes(model, tokenizer, run.studies("nih"))

# %%
for name, value in measured.items():
    print(f"{name:45s}{value if hasattr(value, 'mean') else format(value, '.3f')}")

# %% [markdown]
# One cell is one seed: an interval above says how sure this run's number is, and nothing about another run's.
# `mgca_lib.grid_results.paired_differences` compares variants over seeds.

# %%
for name, value in measured.items():
    run.record(name, value.as_metric() if hasattr(value, "as_metric") else value)
run.record("pretrain/pairs", config.training.max_train_pairs or len(studies.split("train")))
run.record("pretrain/epochs", len(trained.history))
run.record("pretrain/pairs_per_second", trained.history[-1]["pairs_per_second"])
run.finish(question=f"What does {VARIANT!r} change?", headline="probe/chexpert/auroc/10%").name
