"""Run every benchmark that this computer can run, each in a process of its own, and list the ratios."""

import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.harness import NOT_HERE, RESULTS, verdict

SCRIPTS = ("data_reading", "prepare_images", "probe", "losses", "step_demo", "step_cpu", "step_gpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; options are handed on to each. Returns the number of those that failed."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    codes = {
        script: subprocess.run([sys.executable, "-m", f"benchmarks.{script}", *options], check=False).returncode
        for script in SCRIPTS
    }
    failed = [script for script, code in codes.items() if code not in (0, NOT_HERE)]
    print("\nAll results on this disk:" if "--out" not in options else "")
    for path in sorted(RESULTS.glob("*.json")) if "--out" not in options else ():
        result = json.loads(path.read_text(encoding="utf-8"))
        target = result["target"]
        words = "" if target is None else verdict(result["ratio"], target, result["at_most"])
        print(f"  {path.stem:24} {result['ratio']:>8g}{words}")
    for script in failed:
        print(f"benchmarks.{script} failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
