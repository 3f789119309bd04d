# SPDX-License-Identifier: Apache-2.0
"""Arrows between modules go down only: every #include and every import is looked at."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CPP_LAYERS = ["base", "kernels", "quantizer", "index", "search", "cuda", "bindings"]

# Inside search, as far as its parts know each other.
SEARCH_LAYERS = ["params", "query", "exact", "base_scores", "probe", "gather", "interact"]
SEARCH_LAYERS += ["refine", "backend", "scan", "ranker", "truth", "searcher"]
SEARCH_LAYERS += ["searcher_resident"]

PYTHON_LAYERS = [
    {"errors"},
    {"checks"},
    {"fields", "fusion"},
    {"types"},
    {"host_arrays"},
    {
        "arrays",
        "lifecycle.health",
        "lifecycle.bitmaps",
        "lifecycle.storage",
        "sparse_vectors",
        "installation",
    },
    {"plain_pickle"},
    {"dense_vectors", "lifecycle.entries", "sparse", "lifecycle.row_files"},
    {"lifecycle.codec_sizes"},
    {"lifecycle.manifest", "lifecycle.documents", "lifecycle.planning", "lifecycle.windows"},
    {"lifecycle.spool_tables"},
    {"lifecycle.spool"},
    {"lifecycle.snapshot"},
    {"lifecycle.encoder_files"},
    {"lifecycle.filters"},
    {"field_searchers"},
    {"lifecycle.batches", "searcher"},
    {"lifecycle.compaction", "lifecycle.tombstones", "tuner", "lifecycle.verification"},
    {"lifecycle.additions", "lifecycle.inspection", "lifecycle.new_files", "lifecycle.stored"},
    {"lifecycle.codec_build", "lifecycle.first_generation"},
    {"lifecycle.dense_build"},
    {"lifecycle.builder", "lifecycle.repair"},
    {"writer"},
    {"index"},
    {"exporting", "hybrid"},
    {"encoders", "sources"},
    {"foreign", "encoding"},
    {"importing", "integrations"},
    {"retriever"},
    {"hybrid_retriever"},
    {"evaluation", "lexical", "demo"},
    {"comparison", "protocols", "training.scorers"},
    {"training.mining"},
    {"training.distillation", "training.files"},
    {"cli.view", "cli.hits", "cli.options"},
    {"cli.build"},
    {"cli.demo", "cli.fields", "cli.info"},
    {"cli.eval", "cli.imports", "cli.mine", "cli.upkeep"},
    {"cli.app"},
    {"cli"},
    {"__main__"},
]

NATIVE_USERS = {
    "__init__",
    "arrays",
    "host_arrays",
    "searcher",
    "lifecycle.snapshot",
    "tuner",
    "lifecycle.verification",
}
NATIVE_USERS |= {
    "lifecycle.new_files",
    "lifecycle.builder",
    "lifecycle.repair",
    "sparse",
    "lifecycle.row_files",
    "lifecycle.codec_build",
    "lifecycle.dense_build",
}
NATIVE_USERS |= {"installation"}

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)
CPP_FILES = sorted(
    p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".cu"}
)
PYTHON_FILES = sorted((ROOT / "python" / "weft").rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def includes(path):
    """Pairs (is it ours, name) of all includes of a file."""
    return [(quote == '"', name) for quote, name in INCLUDE.findall(path.read_text())]


def imports(path):
    """Names below weft that a file imports, with "<module>" for everything from outside."""
    ours, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            names = [node.module]
            if node.module.partition(".")[0] == "weft":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head != "weft":
                outside.add(head)
            elif rest:
                ours.add(place_of(rest))
    return ours, outside


def place_of(dotted):
    """Give the name by which a module, or else its package, stands in PYTHON_LAYERS."""
    head = dotted.partition(".")[0]
    both = ".".join(dotted.split(".")[:2])
    return head if python_rank(both) is None and python_rank(head) is not None else both


def python_rank(module):
    return next((i for i, layer in enumerate(PYTHON_LAYERS) if module in layer), None)


def module_of(path):
    parts = path.relative_to(ROOT / "python" / "weft").with_suffix("").parts
    return place_of(".".join(part for part in parts if part != "__init__") or "__init__")


def test_there_is_something_to_look_at():
    assert len(CPP_FILES) > 10
    assert len(PYTHON_FILES) > 5


@pytest.mark.parametrize("path", CPP_FILES, ids=name_of)
def test_cpp(path):
    layer = path.relative_to(ROOT / "csrc").parts[0]
    for ours, name in includes(path):
        if name.startswith("pybind11") or name == "Python.h":
            assert layer == "bindings", f"{name_of(path)} includes {name}"
        if not ours:
            continue
        assert (ROOT / "csrc" / name).is_file() or (path.parent / name).is_file(), name
        target = name.split("/")[0] if "/" in name else layer
        assert CPP_LAYERS.index(target) <= CPP_LAYERS.index(layer), f"{layer} includes {name}"
        if layer == target == "search":
            here, there = path.stem, Path(name).stem
            assert SEARCH_LAYERS.index(there) <= SEARCH_LAYERS.index(here), f"{here} -> {there}"


@pytest.mark.parametrize("name", ["scalar", "avx2", "avx512", "neon"])
def test_kernel_files_include_intrinsics_and_plain_structs_only(name):
    path = ROOT / "csrc" / "kernels" / f"{name}.cpp"
    allowed = {"kernels/kernels.h", "kernels/generic.inl", "stddef.h", "stdint.h", "string.h"}
    allowed |= {"immintrin.h", "arm_neon.h", "math.h"}
    assert {include for _, include in includes(path)} <= allowed


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_python(path):
    module = module_of(path)
    ours, outside = imports(path)
    if not module.startswith("cli"):
        assert not {"typer", "rich"} & outside, (
            f"{name_of(path)}: only the cli knows typer and rich"
        )
    if "_native" in ours:
        assert module in NATIVE_USERS, f"{name_of(path)} imports _native"
    if module in {"__init__", "lifecycle", "training"}:
        return
    rank = python_rank(module)
    assert rank is not None, f"{name_of(path)}: give it a place in PYTHON_LAYERS"
    for target in ours - {"_native", "__version__"}:
        assert python_rank(target) is not None, f"{name_of(path)} imports weft.{target}"
        assert target == module or python_rank(target) < rank, f"{module} imports {target}"
