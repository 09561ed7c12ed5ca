"""Run the benchmarks, each in a process of its own; ``python -m benchmarks --help`` says how."""

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.harness import NOT_HERE, RESULTS, results_table

SCRIPTS = (
    "data_reading",
    "data_loader",
    "data_memory",
    "prepare_images",
    "probe",
    "losses",
    "step_cpu",
    "step_gpu",
)
USAGE = f"""usage: python -m benchmarks [NAME ...] [OPTION ...]
       python -m benchmarks --table

Without a NAME all run: {", ".join(SCRIPTS)}.
Options are handed on to each; python -m benchmarks.losses --help lists them.
--table prints the results in benchmarks/results as a table in Markdown; those of a second computer are kept beside
the first's by --out benchmarks/results/COMPUTER."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the number of benchmarks that failed, 2 for a wrong name."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    if arguments == ["--table"]:
        print(results_table(RESULTS))
        return 0
    first_option = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:first_option] or SCRIPTS, arguments[first_option:]
    for name in names:
        if name not in SCRIPTS:
            print(f"{name!r}: no such benchmark; use {', '.join(SCRIPTS)}", file=sys.stderr)
            return 2
    failed = 0
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if subprocess.run(command, check=False).returncode not in (0, NOT_HERE):
            print(f"benchmarks.{name} failed", file=sys.stderr)
            failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
