# The course as a graph: which notebook needs which. `make course` runs it; on a cluster, call snakemake yourself:
#   snakemake --cores 8 --config profile=paper
# A notebook runs again when it, a source file it imports, a parameter, or a notebook it needs has changed.

import os
import sys
from pathlib import Path

from mgca_lib.course.sources import source_files

PYTHON = sys.executable
PROFILE = config.get("profile", "demo")
SEED = int(config.get("seed", 42))
MORE_SEEDS = [int(seed) for seed in config.get("seeds", [])]
VARIANTS_WANTED = config.get("variants", ["ita", "ita+cta", "ita+cpa", "all", "cta_grounded", "gloria"])
# A Slurm job takes the processors it asked for, also on a cluster that lets it see the whole node.
CORES = min(workflow.cores, int(os.environ.get("SLURM_CPUS_PER_TASK", workflow.cores)))
DATA_ROOT = config.get("data_root", f"data/{PROFILE}")
OUTPUTS = f"outputs/{PROFILE}"

NEEDS = {
    "00_start_here": [],
    "01_data_preparation": [],
    "02_encoders_and_tokens": ["01_data_preparation"],
    "03_instance_alignment": ["01_data_preparation", "06_pretraining"],
    "04_token_alignment": ["01_data_preparation", "06_pretraining"],
    "05_prototype_alignment": ["01_data_preparation", "06_pretraining"],
    "06_pretraining": ["01_data_preparation"],
    "07_linear_probe": ["06_pretraining"],
    "08_seeing_prototypes": ["06_pretraining"],
    "09_finding_and_outlining": ["06_pretraining"],
    "10_zero_shot": ["06_pretraining"],
    "11_prototype_sweep": ["06_pretraining"],
    "12_upstream_quirks": ["06_pretraining"],
    "13_phantoms_to_patients": ["06_pretraining"],
    "14_ablation": ["01_data_preparation"],
    "15_grounding": ["06_pretraining", "13_phantoms_to_patients"],  # 13 prepares the films of patients
    "16_learning_to_point": ["01_data_preparation"],
}
# Results of the grid that come with the project (mgca_lib/grid_results.py), and who reads them.
READ_GRID = {
    "11_prototype_sweep": ["switches"],
    "12_upstream_quirks": ["switches"],
    "14_ablation": ["terms"],
    "16_learning_to_point": ["terms", "inputs", "denials", "long", "long_denials"],
}
# These take all cores, except at smoke, where starting up is most of the work and goes side by side.
HEAVY = {"01_data_preparation", "06_pretraining", "07_linear_probe", "09_finding_and_outlining", "15_grounding"}
# Repeated for further seeds, on the same data.
SEEDED = [
    "03_instance_alignment",
    "04_token_alignment",
    "06_pretraining",
    "07_linear_probe",
    "08_seeing_prototypes",
    "13_phantoms_to_patients",
]

if not Path(DATA_ROOT, "prepared").is_dir():
    Path(OUTPUTS, "01_data_preparation", "metrics.json").unlink(missing_ok=True)  # the data were deleted: make them again


def folder_of(name, more):
    """Further seeds have folders of their own; the data come from the first."""
    return f"{OUTPUTS}{more if name in SEEDED else ''}/{name}"


def needed_by(name, more):
    """A further seed of a notebook also needs its first one, which may have prepared data of its own."""
    first = [f"{OUTPUTS}/{name}/metrics.json"] if more else []
    return [*first, *(f"{folder_of(need, more)}/metrics.json" for need in NEEDS[name])]


wildcard_constraints:
    name="|".join(NEEDS),
    more=r"(/seed-\d+)?",
    variant=r"[a-z0-9_+-]+",
    cell_seed=r"\d+",


localrules:
    course,


rule course:
    input:
        [f"{OUTPUTS}/{name}/metrics.json" for name in NEEDS],


rule notebook:
    input:
        notebook="notebooks/{name}.py",
        sources=lambda wildcards: source_files(Path(f"notebooks/{wildcards.name}.py"), Path()),
        grid=lambda wildcards: [f"notebooks/grid/{table}.csv" for table in READ_GRID.get(wildcards.name, [])],
        needs=lambda wildcards: needed_by(wildcards.name, wildcards.more),
    output:
        OUTPUTS + "{more}/{name}/metrics.json",
    log:
        OUTPUTS + "{more}/{name}/{name}.ipynb",  # a log, so that it survives a failure
    params:
        seed=lambda wildcards: int(wildcards.more.rpartition("-")[2] or SEED),
        data_root=DATA_ROOT,
        folder=lambda wildcards: f"{OUTPUTS}{wildcards.more}/{wildcards.name}",
    threads: lambda wildcards: CORES if wildcards.name in HEAVY and PROFILE != "smoke" else 1
    shell:
        "{PYTHON:q} -m mgca_lib.course execute {input.notebook:q} --profile {PROFILE} --seed {params.seed}"
        " --data-root {params.data_root:q} --output-dir {params.folder:q} --threads {threads}"


rule seeds:
    input:
        first=[f"{OUTPUTS}/{name}/metrics.json" for name in SEEDED],
        more=[f"{OUTPUTS}/seed-{seed}/{name}/metrics.json" for seed in MORE_SEEDS for name in SEEDED],
    output:
        f"{OUTPUTS}/seeds.json",
    params:
        seeds=MORE_SEEDS,
    shell:
        "{PYTHON:q} -m mgca_lib.course summarise --outputs {OUTPUTS:q} --seeds {params.seeds}"


# Variants times seeds (mgca_lib/variants.py), one papermill run each: notebooks/grid/one_cell.py is the form.
rule grid:
    input:
        [f"{OUTPUTS}/grid/{variant}/seed-{seed}/metrics.json" for variant in VARIANTS_WANTED for seed in [SEED, *MORE_SEEDS]],


rule cell:
    input:
        notebook="notebooks/grid/one_cell.py",
        sources=lambda wildcards: source_files(Path("notebooks/grid/one_cell.py"), Path()),
        # 13 prepares the films of patients whose boxes a cell points at.
        data=[f"{OUTPUTS}/{name}/metrics.json" for name in ("01_data_preparation", "13_phantoms_to_patients")],
    output:
        OUTPUTS + "/grid/{variant}/seed-{cell_seed}/metrics.json",
    log:
        OUTPUTS + "/grid/{variant}/seed-{cell_seed}/one_cell.ipynb",
    params:
        data_root=DATA_ROOT,
        folder=lambda wildcards: f"{OUTPUTS}/grid/{wildcards.variant}/seed-{wildcards.cell_seed}",
    threads: CORES
    shell:
        "{PYTHON:q} -m mgca_lib.course execute {input.notebook:q} --profile {PROFILE} --seed {wildcards.cell_seed}"
        " --data-root {params.data_root:q} --output-dir {params.folder:q} --threads {threads}"
        " -p VARIANT {wildcards.variant:q}"
