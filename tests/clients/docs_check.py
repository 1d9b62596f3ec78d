"""Runs the Python blocks of the README and of docs/start with the official SDKs, as a reader would.

Each block runs by itself and must print something. Exit status 1 if one does not.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
ADDRESS = "http://127.0.0.1:8000"
SECONDS_MAX = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    args = parser.parse_args()
    passed, failed = 0, 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs/start").glob("*.md"))]:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text[:found.start()].count(chr(10)) + 1}"
            script = found[1].replace(ADDRESS, args.base_url.rstrip("/"))
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
            if done.returncode == 0 and done.stdout.strip():
                passed += 1
                continue
            failed += 1
            print(f"FAILED {place}: status {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
