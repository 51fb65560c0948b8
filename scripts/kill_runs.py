"""Kill a run with SIGKILL at random moments, over all its stages, and compare the results with an undisturbed run.

python -m scripts.kill_runs --kills 20      # each killed once, then resumed to the end: 20 results to compare
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.children import lasting, parts, start


def main() -> int:
    """Run, kill, resume, compare; the exit status is 0 where all results are identical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args, more = parser.parse_known_args()
    folder, draw = Path(tempfile.mkdtemp()), random.Random(args.seed)
    argv = ["run", "--device", "cpu", "--corpus-tokens", "20000", "--layers", "2,3", *more]

    def finish(name: str) -> None:
        process = start([*argv, "--out", str(folder / name)], folder / "log")
        process.join()
        if process.exitcode:
            sys.exit((folder / "log").read_text())

    finish("whole")
    expected, total, identical = lasting(folder / "whole"), len(parts(folder / "whole")), 0
    for i in range(args.kills):
        out = folder / f"killed{i}"
        process = start([*argv, "--out", str(out)], folder / "log")
        at = draw.randrange(
            total
        )  # by finished parts, not by the clock: a busy machine changes the clock
        while len(parts(out)) < at and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        done = len(parts(out))
        process.kill()
        process.join()
        finish(out.name)
        same = lasting(out) == expected and parts(out) == parts(folder / "whole")
        identical += same
        print(
            f"killed with {done} of {len(parts(out))} parts: {'identical' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(f"{identical} of {args.kills} identical")
    return int(identical < args.kills)


if __name__ == "__main__":
    sys.exit(main())
