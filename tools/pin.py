# SPDX-License-Identifier: Apache-2.0
"""Write constraints.txt: the exact version of everything a green run has installed.

Run in the environment whose test run was green: `python tools/pin.py`. The requirements of every
extra and of the build are followed through the installed packages; whatever else the environment
holds stays out. Local suffixes are dropped (`torch==2.13.0`, not `2.13.0+cpu`), so that the pins
resolve on any package index.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ["cmake", "ninja"]  # scikit-build-core asks for them where the machine has none
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HEADER = f"""\
# Exact versions for Python {PYTHON}, written by tools/pin.py.
# Users need none of this: the ranges are in pyproject.toml.
"""


def applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def closure(requirements: list[str]) -> dict[str, str]:
    """Names and versions of all installed packages that the requirements lead to."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    pending = [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name == "weft" or (name, extra) in seen or not applies(requirement, ""):
                continue
            seen.add((name, extra))
            package = distribution(name)
            pins[name] = Version(package.version).public
            needs = [Requirement(text) for text in package.requires or []]
            pending += [Requirement(str(r).split(";")[0]) for r in needs if applies(r, extra)]
    return pins


def main() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*document["build-system"]["requires"], *project["dependencies"], *BUILD_TOOLS]
    pins = closure(requirements + [text for extra in extras for text in extra])
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
