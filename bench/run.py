"""``make bench``: every measurement of this folder, one process each, as one table."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# One thread and no spinning on both sides of every comparison, unless a bench sets its own.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main() -> int:
    failed = 0
    for script in sorted(HERE.glob("*.py")):
        if script.name.startswith("_") or script == Path(__file__).resolve():
            continue
        print(f"\n{script.stem}", flush=True)
        failed |= subprocess.run([sys.executable, str(script)], env=ENVIRONMENT, check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
