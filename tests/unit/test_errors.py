# SPDX-License-Identifier: Apache-2.0
"""Error classes: what they are, what they carry, and that they travel between processes."""

import errno
import pickle

import pytest

from weft import errors

CODES = {
    "invalid_argument": (errors.InvalidArgumentError, ValueError),
    "not_found": (errors.NotFoundError, LookupError),
    "corrupt": (errors.CorruptIndexError, errors.WeftError),
    "incompatible": (errors.IncompatibleIndexError, errors.WeftError),
    "io": (errors.StorageError, OSError),
    "out_of_memory": (errors.OutOfMemoryError, MemoryError),
    "device": (errors.DeviceError, RuntimeError),
    "internal": (errors.InternalError, RuntimeError),
}


@pytest.mark.parametrize("code", CODES)
def test_each_code_has_its_class(code):
    kind, also = CODES[code]
    error = errors.for_code(code, "nprobe=0: expected 1..65536")
    assert type(error) is kind
    assert isinstance(error, also)
    assert str(error).startswith("nprobe=0: expected 1..65536")


def test_cancelled_is_the_interrupt_of_the_user():
    assert type(errors.for_code("cancelled", "")) is KeyboardInterrupt


@pytest.mark.parametrize("code", ["internal", "a code of a later engine"])
def test_what_is_our_fault_asks_for_a_report(code):
    error = errors.for_code(code, "broken invariant")
    assert type(error) is errors.InternalError
    assert "report" in str(error)


def test_the_path_is_named_once():
    assert str(errors.for_code("corrupt", "bad magic", "a/b.weft")) == "a/b.weft: bad magic"
    assert str(errors.for_code("corrupt", "a/b.weft: bad", "a/b.weft")) == "a/b.weft: bad"


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError("k=0"),
        errors.CorruptIndexError("bad", "a.weft"),
        errors.IncompatibleIndexError("newer", 2, 1),
        errors.StorageError("a.weft: full", "a.weft", errno.ENOSPC),
        errors.IndexExistsError("there"),
        errors.MissingExtraError("torch", "encode"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("path", "errno", "found", "supported", "package", "extra"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_a_missing_extra_says_what_to_type():
    error = errors.MissingExtraError("torch", "encode")
    assert isinstance(error, ImportError)
    assert "pip install 'weft[encode]'" in str(error)


def test_all_of_them_are_weft_errors():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type):
            assert issubclass(kind, errors.WeftError)
