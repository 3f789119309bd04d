# SPDX-License-Identifier: Apache-2.0
"""Every way in which there is no device: one clear message each, no crash, nothing printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weft
from cpp_build import ROOT, run
from helpers import unit_rows

FOREIGN = """
#include <string.h>
#include "cuda/abi.h"
static void probe(weft_probe *out) { out->n_devices = STATE == 0; out->state = STATE; }
static int32_t describe(int32_t device, weft_device *out, weft_error *error) {
  (void)device; (void)error;
  out->free_bytes = 2000000000;
  return 0;
}
static int32_t plan(const weft_codec *codec, const weft_segment *segments, uint32_t n,
                    uint64_t *bytes, weft_error *error) {
  (void)codec; (void)segments; (void)n; (void)error;
  *bytes = NEEDED;
  return 0;
}
static int32_t load(int32_t device, const weft_codec *codec, const weft_segment *segments,
                    uint32_t n, weft_resident **out, weft_error *error) {
  (void)device; (void)codec; (void)segments; (void)n; (void)out;
  strcpy(error->text, "a GPU: compute capability 7.5, expected 8.0 or newer");
  return 1 + CODE;
}
static const weft_backend table = {
    .abi = ABI, .struct_size = SIZE, .name = "cuda", .version = VERSION, .toolkit = "0",
    .probe = probe, .describe = describe, .plan = plan, .load = load};
const weft_backend *ENTRY(void) { return &table; }
"""

# A driver that answers with a version and one code for everything.
DRIVER = """
#include <string.h>
static int refuse(void) { return OTHERWISE; }
int cuInit(unsigned flags) { (void)flags; return START; }
int cuDriverGetVersion(int *version) { *version = DRIVER_VERSION; return 0; }
int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long flags,
                        int *found) {
  (void)version; (void)flags;
  *out = strcmp(name, "cuInit") == 0               ? (void *)cuInit
         : strcmp(name, "cuDriverGetVersion") == 0 ? (void *)cuDriverGetVersion
         : strncmp(name, "cuGetProcAddress", 16) == 0 ? (void *)cuGetProcAddress_v2
                                                      : (void *)refuse;
  if (found) *found = 0;
  return 0;
}
int cuGetProcAddress(const char *name, void **out, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, out, version, flags, 0);
}
"""

ASK = """
import json, sys, weft
from weft import _native
_native.use_backend(sys.argv[1])
print(json.dumps(weft.info()))
"""


def library(folder, source, name="libforeign.so", **macros):
    """A shared library of this C source."""
    path = folder / "source.c"
    path.write_text(source)
    defined = [f"-D{macro}={value}" for macro, value in macros.items()]
    run("cc", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", *defined, path, "-o", folder / name)
    return folder / name


def foreign(folder, **macros):
    known = {"ABI": 1, "SIZE": "sizeof(weft_backend)", "STATE": 3, "ENTRY": "weft_backend_v1"}
    known |= {"NEEDED": 0, "CODE": 0}
    return library(folder, FOREIGN, **{**known, "VERSION": '"9.9"', **macros})


@pytest.fixture
def index(make_index, rng, small_codec):
    index = make_index(config=weft.IndexConfig(dim=8))
    index.add([f"d{i}" for i in range(500)], [unit_rows(rng, 2, 8) for _ in range(500)])
    return index


def test_wrong_files(tmp_path, plug_in, index, capfd):
    own = weft.info()["version"]
    cut = tmp_path / "cut.so"
    cut.write_bytes(b"\x7fELF\x02")
    wrong = [
        (tmp_path / "none.so", "absent", "no CUDA plug-in is installed"),
        (cut, "broken", "file too short"),
        (Path(__file__), "broken", "invalid ELF header"),
        (lambda: foreign(tmp_path, ENTRY="weft_other"), "broken", "no weft_backend_v1"),
        (lambda: foreign(tmp_path, ABI=99), "mismatch", "interface 99"),
        (lambda: foreign(tmp_path, SIZE=16), "mismatch", "of 16 bytes"),
        (lambda: foreign(tmp_path), "mismatch", f"of weft 9.9, expected {own}"),
    ]
    for number, (made, state, message) in enumerate(wrong):
        path = made
        if callable(made):  # the loader knows a file by its name: none may be used twice
            path = made().rename(tmp_path / f"{number}.so")
        plug_in(path)
        found = weft.info()
        assert (found["devices"], found["cuda_build"]["state"]) == (["cpu"], state)
        assert message in found["cuda_build"]["message"]
        for device in ("cuda", "cuda:0", "cuda:7"):
            with pytest.raises(weft.DeviceError, match=f"device='{device}'") as caught:
                index.searcher(device=device)
            assert message in str(caught.value)
        assert index.searcher(device="auto").device == "cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("needed", "code", "error", "message"),
    [
        (70_250_000_000, 0, weft.OutOfMemoryError, r"take 70\.25 GB, 2\.00 GB are free"),
        (1_000, 5, weft.OutOfMemoryError, r"compute capability 7\.5"),  # filled since it was asked
        (1_000, 6, weft.DeviceError, r"compute capability 7\.5, expected 8\.0 or newer"),
    ],
)
def test_a_device_that_does_not_take_the_codes(
    tmp_path, plug_in, index, needed, code, error, message
):
    """Asked for, that is an error; "auto" takes the CPU."""
    own = weft.info()["version"]
    made = foreign(tmp_path, STATE=0, VERSION=f'"{own}"', NEEDED=needed, CODE=code)
    plug_in(made.rename(tmp_path / f"{needed}-{code}.so"))
    with pytest.raises(error, match=message):
        index.searcher(device="cuda")
    assert index.searcher(device="auto").device == "cpu"


def test_other_errors_of_a_device_are_told(tmp_path, plug_in, index):
    own = weft.info()["version"]
    plug_in(foreign(tmp_path, STATE=0, VERSION=f'"{own}"', NEEDED=1_000, CODE=0))
    with pytest.raises(weft.InvalidArgumentError, match=r"compute capability 7\.5"):
        index.searcher(device="auto")


def ask(path, **environment):
    """What a fresh process says of this plug-in."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path)],
        capture_output=True, text=True, env=os.environ | environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("version", "start", "otherwise", "state", "message"),
    [
        (13000, 100, 100, "no_device", 'no device (CUDA_VISIBLE_DEVICES="7")'),
        (12000, 0, 35, "old_driver", "serves CUDA 12.0, this plug-in needs 1"),
        (99000, 3, 3, "driver_error", "CUDA error 3, cudaErrorInitializationError"),
    ],
)
def test_drivers(compiled, tmp_path, version, start, otherwise, state, message):
    library(tmp_path, DRIVER, "libcuda.so.1", DRIVER_VERSION=version, START=start,
            OTHERWISE=otherwise)  # fmt: skip
    found = ask(compiled.library, LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="7")
    assert (found["devices"], found["cuda_build"]["state"]) == (["cpu"], state)
    assert message in found["cuda_build"]["message"]
    assert found["cuda_build"]["devices"] == []


def test_no_driver(compiled):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver")
    found = ask(compiled.library)["cuda_build"]
    assert found["state"] == "no_driver"
    assert found["message"] == "no NVIDIA driver on this machine"
    assert found["library"] == str(compiled.library)


def test_importing_opens_nothing():
    code = "import weft, weft.index; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "_native" in done.stdout
    assert not {name for name in ("libweft_cuda", "libcuda") if name in done.stdout}
