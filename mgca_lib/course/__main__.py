"""Command line of the course: ``python -m mgca_lib.course run --profile demo``."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mgca_lib.config import PROFILES
from mgca_lib.course.execute import ExecutionError, declared_by, execute, free_cores, parse_value, remove_results
from mgca_lib.course.pairing import PairError, check_pair, check_record, pair, publish
from mgca_lib.course.parameters import ParameterError
from mgca_lib.course.pictures import PictureError, publish_pictures
from mgca_lib.course.summary import (
    METRICS_FILE,
    SEEDS_FILE,
    RestrictedDataError,
    busy_seconds,
    course_table,
    format_metric,
    publish_seeds,
    summarise_seeds,
)
from mgca_lib.variants import VARIANTS

LONGEST = ("08_seeing_prototypes", "09_finding_and_outlining", "13_phantoms_to_patients")
"""Started before others where there is a choice, so that none of them runs alone at the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mgca_lib.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute what is missing or out of date, then print the table")
    run.add_argument("--profile", choices=PROFILES, default="demo")
    run.add_argument("--seed", type=int, default=42)
    run.add_argument("--seeds", type=int, nargs="+", default=[], help="repeat 03, 04, 06 to 08 and 13 with these seeds")
    run.add_argument(
        "--cores", type=int, default=free_cores(), help="processor cores to use (default: all, %(default)s)"
    )
    run.add_argument("--data-root", default="", help="folder with raw/ and prepared/ (default: data/PROFILE)")
    run.add_argument("--force", action="store_true", help="execute everything again")

    grid = commands.add_parser("grid", help="train and measure variants (mgca_lib/variants.py) over several seeds")
    grid.add_argument("--profile", choices=PROFILES, default="demo")
    grid.add_argument("--seed", type=int, default=42)
    grid.add_argument("--seeds", type=int, nargs="+", default=[], help="further seeds")
    grid.add_argument("--variants", nargs="+", default=[], help="default: the ablation and the token terms that ground")
    grid.add_argument("--cores", type=int, default=free_cores())
    grid.add_argument("--data-root", default="", help="folder with raw/ and prepared/ (default: data/PROFILE)")

    one = commands.add_parser("execute", help="execute one notebook, whatever state the others are in")
    one.add_argument("notebook", type=Path, help="its .py file")
    one.add_argument("--profile", choices=PROFILES, default="demo")
    one.add_argument("--seed", type=int, default=42)
    one.add_argument("--data-root", default="")
    one.add_argument("--output-dir", type=Path, help="default: outputs/PROFILE/NAME")
    one.add_argument("--threads", type=int, default=free_cores())
    one.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a further parameter")

    table = commands.add_parser("table", help="print the table of the last run")
    table.add_argument("--profile", choices=PROFILES, default="demo")

    over = commands.add_parser("summarise", help="means and intervals over seeds, into OUTPUTS/seeds.json")
    over.add_argument("--outputs", type=Path, required=True)
    over.add_argument("--seeds", type=int, nargs="+", required=True, help="the further seeds")

    commands.add_parser("pair", help="rewrite the .ipynb files from the .py files, outputs kept")
    outputs = commands.add_parser("outputs", help="put the outputs of the last demo run into the .ipynb files")
    outputs.add_argument(
        "--profile", choices=PROFILES, default="demo", help="another: its finished notebooks, into notebooks/PROFILE"
    )
    commands.add_parser("check", help="check all pairs, as the tests do")
    commands.add_parser("clean", help="delete data and outputs of smoke and demo")

    options = parser.parse_args(arguments)
    try:
        return _COMMANDS[options.command](options, project_root())
    except (ExecutionError, PairError, ParameterError, PictureError, RestrictedDataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept", file=sys.stderr)
        return 130


def project_root() -> Path:
    """Return the project's folder: the nearest one upwards with a Snakefile.

    Raises:
        ExecutionError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "Snakefile").is_file():
            return folder
    raise ExecutionError(f"{here}: no Snakefile here or above; go to the project's folder first")


def notebooks(root: Path) -> list[Path]:
    """Return the course's notebooks in order, as ``.py`` files."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))


def _run(options: argparse.Namespace, root: Path) -> int:
    if options.seed in options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise ExecutionError(
            f"--seeds {' '.join(map(str, options.seeds))}: give each further seed once, and not that of --seed, "
            f"{options.seed}, which runs anyway"
        )
    started = time.perf_counter()
    targets = ["course", *(["seeds"] if options.seeds else [])]
    first = [f"outputs/{options.profile}/{name}/metrics.json" for name in LONGEST]
    status = _snakemake(options, root, targets, force=options.force, first=first)
    print(f"\n{time.perf_counter() - started:.0f} s in all", flush=True)
    _table(options, root)
    if status:
        print("\nThe course did not finish: see the first error above. The same command goes on from there.")
    return 1 if status else 0


def _grid(options: argparse.Namespace, root: Path) -> int:
    unknown = sorted(set(options.variants) - set(VARIANTS))
    if unknown:
        raise ExecutionError(f"--variants: no variant called {unknown[0]!r}; use some of {', '.join(VARIANTS)}")
    settings = {"variants": json.dumps(options.variants)} if options.variants else {}
    status = _snakemake(options, root, ["grid"], **settings)
    cells = root / "outputs" / options.profile / "grid"
    print(f"\n{len(list(cells.glob('*/seed-*/metrics.json')))} finished cells: {cells}")
    if status:
        print("The grid did not finish: see the first error above. The same command goes on from there.")
    return 1 if status else 0


def _snakemake(
    options: argparse.Namespace,
    root: Path,
    targets: Sequence[str],
    *,
    force: bool = False,
    first: Sequence[str] = (),
    **settings: str,
) -> int:
    """Bring targets of the Snakefile up to date; returns Snakemake's exit status."""
    values = {"profile": options.profile, "seed": options.seed, **settings}
    values |= {"data_root": options.data_root} if options.data_root else {}
    values |= {"seeds": json.dumps(options.seeds)} if options.seeds else {}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--directory", str(root)]
    command += ["--cores", str(options.cores), "--rerun-incomplete", "--keep-going", "--nolock", "--quiet", "all"]
    command += ["--forceall"] if force else []
    command += ["--prioritize", *first] if first else []
    command += ["--config", *(f"{name}={value}" for name, value in values.items())]
    return subprocess.run([*command, "--", *targets], check=False, stdin=subprocess.DEVNULL).returncode


def _execute(options: argparse.Namespace, root: Path) -> int:
    source = options.notebook.resolve()
    if not source.is_file():
        raise ExecutionError(f"{options.notebook}: no such file; the notebooks are in {root / 'notebooks'}")
    if source.suffix == ".ipynb":
        raise ExecutionError(f"{options.notebook}: notebooks are executed from their source, {source.stem}.py")
    declared = declared_by(source)
    parameters = {"PROFILE": options.profile, "SEED": options.seed, "DATA_ROOT": options.data_root}
    parameters |= {name: parse_value(text, declared.get(name)) for name, text in options.p}
    folder = root / (options.output_dir or Path("outputs", options.profile, source.stem))
    print(f"{source.stem}: started", flush=True)
    seconds = execute(source, folder, parameters, threads=options.threads)
    print(f"{source.stem}: done in {seconds:.1f} s", flush=True)
    return 0


def _table(options: argparse.Namespace, root: Path) -> int:
    outputs = root / "outputs" / options.profile
    names = [path.stem for path in notebooks(root)]
    print(f"\n{course_table(outputs, names)}\n")
    # A notebook that a person ran in Jupyter leaves numbers and no executed copy.
    finished = [outputs / name / f"{name}.ipynb" for name in names if (outputs / name / METRICS_FILE).is_file()]
    executed = [path for path in finished if path.is_file()]
    print(f"{len(executed)} of {len(names)} executed notebooks, {busy_seconds(executed):.0f} s: {outputs}")
    return 0


def _summarise(options: argparse.Namespace, root: Path) -> int:
    outputs = root / options.outputs
    further = [outputs / f"seed-{seed}" for seed in options.seeds]
    names = [path.parent.name for path in sorted(further[0].glob("*/metrics.json"))]
    if not names:
        raise ExecutionError(f"{further[0]}: no finished notebook to summarise; run the course with these seeds first")
    for folder in (outputs, *further):
        if missing := [name for name in names if not (folder / name / METRICS_FILE).is_file()]:
            raise ExecutionError(f"{folder / missing[0]}: not finished, so it cannot be summarised")
    try:
        content = {name: summarise_seeds([folder / name for folder in (outputs, *further)]) for name in names}
    except ValueError as error:
        raise ExecutionError(f"{outputs}: {error}") from None
    (outputs / SEEDS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, part in content.items():
        print(f"\n{name}, seeds {part['seeds']}")
        for metric, value in part["metrics"].items():
            print(f"  {metric} = {format_metric(value)}")
    return 0


def _pair(options: argparse.Namespace, root: Path) -> int:
    for source in notebooks(root):
        print(f"{source.stem}: {'rewritten' if pair(source) else 'unchanged'}")
    return 0


def _outputs(options: argparse.Namespace, root: Path) -> int:
    from mgca_lib.grid_results import GridError, publish_grid  # brings in pandas, which all other commands do without

    runs, whole = root / "outputs" / options.profile, options.profile == "demo"
    for source in [one for one in notebooks(root) if whole or (runs / one.stem / METRICS_FILE).is_file()]:
        changed = publish(source, runs / source.stem, root, profile=options.profile)
        print(f"{source.stem}: {'new outputs' if changed else 'unchanged'}")
    if not whole:
        return 0
    changed = publish_seeds(root / "outputs" / "demo", root / "notebooks" / SEEDS_FILE)
    print(f"numbers over seeds: {'new' if changed else 'unchanged'}")
    print(f"pictures of the pages: {', '.join(publish_pictures(root)) or 'unchanged'}")
    tables = {"terms": "terms of the grid", "inputs": "inputs of its losses", "switches": "its switches"}
    tables |= {"denials": "its losses without denied words", "long": "its long runs"}
    tables |= {"long_denials": "its long runs without denied words"}
    for kind, words in tables.items():
        try:
            print(f"{words}: {'new' if publish_grid(root, kind) else 'unchanged'}")
        except GridError as error:
            raise ExecutionError(str(error)) from None
    return 0


def _check(options: argparse.Namespace, root: Path) -> int:
    problems = [f"{source.stem}: {problem}" for source in notebooks(root) for problem in check_pair(source)]
    records = sorted((root / "notebooks").glob("*/[0-9][0-9]_*.ipynb"))
    problems += [f"{path.parent.name}/{path.stem}: {problem}" for path in records for problem in check_record(path)]
    print("\n".join(problems) or "all pairs are in step")
    return 1 if problems else 0


def _clean(options: argparse.Namespace, root: Path) -> int:
    remove_results(root)
    return 0


_COMMANDS = {
    "run": _run,
    "grid": _grid,
    "execute": _execute,
    "table": _table,
    "summarise": _summarise,
    "pair": _pair,
    "outputs": _outputs,
    "check": _check,
    "clean": _clean,
}

if __name__ == "__main__":
    raise SystemExit(main())
