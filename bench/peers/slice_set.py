# SPDX-License-Identifier: Apache-2.0
"""The first documents of a set, as a set of its own, with the same queries.

python bench/peers/slice_set.py SET N OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

LISTS = ("ids.txt", "parents.txt")
SAME = ("query_values.npy", "query_offsets.npy", "query_ids.txt")


def slice_set(folder: Path, n_docs: int, out: Path) -> None:
    """Write the first n_docs windows of a set."""
    out.mkdir(parents=True)
    offsets = np.load(folder / "offsets.npy")[: n_docs + 1]
    np.save(out / "offsets.npy", offsets)
    for name in ("values.f16.npy", "token_ids.npy"):
        if (folder / name).is_file():
            np.save(out / name, np.load(folder / name, mmap_mode="r")[: int(offsets[-1])])
    for name in LISTS:
        lines = (folder / name).read_text(encoding="utf-8").split("\n")[:n_docs]
        (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name in SAME:
        shutil.copyfile(folder / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="SET")
    parser.add_argument("n_docs", type=int, metavar="N")
    parser.add_argument("out", type=Path)
    slice_set(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
