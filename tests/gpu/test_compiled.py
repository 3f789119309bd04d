# SPDX-License-Identifier: Apache-2.0
"""What can be said of the GPU's code without a GPU: that it compiles, and what comes of it."""

import re
import subprocess

import pytest

from cpp_build import ROOT, CompiledPlugIn, run

ORDINARY = {"sm_80", "sm_90a"}
RELEASED = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}
MOST_REGISTERS = 128  # two thread blocks of 256 on a multiprocessor
RUNTIME_LIBRARIES = {"libc", "libgcc_s", "libm", "libstdc++", "ld-linux-x86-64", "ld-linux-aarch64"}
RUNTIME_LIBRARIES |= {"libdl", "libpthread", "librt"}  # of their own before glibc 2.34

# Stages of a build that warps share; those that multiply have a kernel of their own for dim 128.
BUILD_STAGES = [("0", "0"), ("1", "0"), ("1", "4"), ("3", "0"), ("4", "0"), ("4", "4"), ("5", "0")]

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def check_kernels(report, architectures):
    """Every kernel is there for every architecture, within its registers and without spills."""
    kernels = [found.groupdict() for found in KERNEL.finditer(report)]
    scans = {bits + steps for bits in "1248" for steps in "04"}
    for arch in architectures:
        names = [kernel["name"] for kernel in kernels if kernel["arch"] == arch]
        found = re.findall(r"scan_kernelILj(\d)ELj(\d)E", " ".join(names))
        assert {bits + steps for bits, steps in found} == scans
        found = re.findall(r"candidates_kernelILj(\d)ELj(\d)ELb([01])E", " ".join(names))
        assert {"".join(which) for which in found} == {
            scan + skims for scan in scans for skims in "01"
        }
        for kind, n in {"select": 1, "plan": 1, "block": 9, "warp": 3, "centroids": 4}.items():
            assert sum(f"{kind}_kernel" in name for name in names) == n
        stages = re.findall(r"build_kernelILNS0_10BuildStageE(\d)ELj(\d)E", " ".join(names))
        assert sorted(stages) == BUILD_STAGES
    assert {kernel["arch"] for kernel in kernels} == architectures
    for kernel in kernels:
        assert (kernel["stack"], kernel["stores"], kernel["loads"]) == ("0", "0", "0"), kernel
        assert int(kernel["registers"]) <= MOST_REGISTERS, kernel


def test_no_kernel_spills(compiled):
    check_kernels(compiled.report, ORDINARY)


@pytest.mark.slow
def test_no_kernel_spills_on_any_released_architecture(tmp_path):
    listed = ";".join([f"{arch.removeprefix('sm_')}-real" for arch in sorted(RELEASED)])
    report = CompiledPlugIn(tmp_path, f"-DCMAKE_CUDA_ARCHITECTURES={listed};80-virtual").report
    check_kernels(report, RELEASED)


def test_products_run_on_tensor_cores_and_floats_are_not_contracted(compiled, tmp_path):
    entries = []
    for name in ("runtime_cuda", "stages"):
        text = tmp_path / f"{name}.ptx"
        run("nvcc", "-std=c++20", "--fmad=false", "-O3", "-ptx", "-arch=compute_80",
            f"-I{ROOT / 'csrc'}", ROOT / f"csrc/cuda/{name}.cu", "-o", text)  # fmt: skip
        entries += re.split(r"\.entry ", text.read_text())[1:]
    assert not any(".local" in entry for entry in entries)
    centroids = [entry for entry in entries if re.match(r"\w*centroids_kernelI\w+Lj4E", entry)]
    assert [entry.count("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8") for entry in centroids] == [
        8,
        8,
    ]

    def builds(stage, steps):
        name = rf"\w*build_kernelILNS0_10BuildStageE{stage}ELj{steps}E"
        return [entry for entry in entries if re.match(name, entry)]

    scorers = [
        entry
        for entry in entries
        if re.match(r"\w*(scan|candidates)_kernelILj\dELj4E(?!Lb1)", entry)
    ]
    assert len(scorers) == 8
    for entry in scorers:
        # Two tiles of 16 query tokens by four steps of 32 dims; two tokens of four scores a thread.
        for kind in ("u8", "s8"):
            product = f"mma.sync.aligned.m16n8k32.row.col.s32.s8.{kind}.s32"
            assert entry.count(product) == 8
        assert len(re.findall(r"fma\.rn\.f32", entry)) == 8
    # Two tiles of 16 rows by four steps of 32 dims; groups first, then cells.
    for (entry,), n_products in ((builds(1, 4), 16), (builds(4, 4), 8)):
        assert entry.count("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32") == n_products
    for stage, has_fma in ((0, False), (5, True)):  # the rotation has none, quantising has
        (entry,) = builds(stage, 0)
        assert ("fma.rn.f32" in entry) is has_fma


def test_the_library_stands_alone(compiled):
    dynamic = run("readelf", "-dW", compiled.library)
    needed = re.findall(r"NEEDED.*\[([^\]]+?)\.so", dynamic)
    assert set(needed) <= RUNTIME_LIBRARIES
    exported = run("nm", "-D", "--defined-only", compiled.library).split()[2::3]
    assert exported == ["weft_backend_v1"]


def test_a_machine_without_nvcc_says_so(tmp_path):
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_CUDA_COMPILER=NOTFOUND"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "CUDA plug-in: left out, no nvcc that works" in done.stdout
