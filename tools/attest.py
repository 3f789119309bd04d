# SPDX-License-Identifier: Apache-2.0
"""Note which sources of the GPU code were proved on a GPU: python tools/attest.py OUT.json.

OUT.json is what tools/gpu_suite.sh wrote. gpu/attest.json gets the hashes of the sources, the
device and the outcome of each step; every test run compares the hashes with the sources and says
what has changed since.
"""

import datetime
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ATTEST = ROOT / "gpu" / "attest.json"


def source_hashes() -> dict[str, str]:
    """SHA-256 of every file that the plug-in is made of."""
    paths = sorted(path for path in (ROOT / "csrc" / "cuda").rglob("*") if path.is_file())
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def state() -> str:
    """Say in a line what was proved of the present sources."""
    if not ATTEST.exists():
        return "never proved on a GPU"
    attest = json.loads(ATTEST.read_text())
    now = source_hashes()
    changed = sorted(
        name
        for name in now.keys() | attest["sources"].keys()
        if now.get(name) != attest["sources"].get(name)
    )
    run = f"the run of {attest['date']} on {attest['device']}"
    if not changed:
        return f"as proved by {run}"
    return f"{len(changed)} files changed since {run}: {', '.join(changed)}"


def main() -> None:
    """Take over the outcome of a run, if it was made of the present sources and nothing failed."""
    result = json.loads(Path(sys.argv[1]).read_text())
    if not result["ok"]:
        sys.exit(f"{sys.argv[1]}: a step failed, nothing is attested")
    if result["sources"] != source_hashes():
        sys.exit(f"{sys.argv[1]}: made of other sources than these, run tools/gpu_suite.sh again")
    attest = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": result["info"][0]["cuda_build"]["devices"][0]["name"],
        "commit": result["commit"],
        "steps": {name: step["state"] for name, step in result["steps"].items()},
        "ceilings": result["ceilings"],
        "scan": result["scan"],
        "pruned": result["pruned"],
        "sources": result["sources"],
    }
    ATTEST.parent.mkdir(exist_ok=True)
    ATTEST.write_text(json.dumps(attest, indent=1) + "\n")


if __name__ == "__main__":
    main()
