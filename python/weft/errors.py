# SPDX-License-Identifier: Apache-2.0
"""The exceptions of weft, all derived from `WeftError`.

The engine knows codes, Python knows classes: `for_code` joins them.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CorruptIndexError",
    "DeviceError",
    "IncompatibleIndexError",
    "IndexExistsError",
    "IndexLockedError",
    "InternalError",
    "InvalidArgumentError",
    "MissingExtraError",
    "NotFoundError",
    "OutOfMemoryError",
    "StorageError",
    "WeftError",
    "WriterClosedError",
    "for_code",
]


class WeftError(Exception):
    """Base of every error that weft raises on purpose.

    Examples
    --------
    >>> import weft
    >>> try:
    ...     weft.Index.open("no-such.index")
    ... except weft.WeftError as error:
    ...     print(type(error).__name__)
    NotFoundError
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the message and the attributes, whatever `__init__` takes."""
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[WeftError], args: tuple[Any, ...], state: dict[str, Any]) -> WeftError:
    error = kind.__new__(kind)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class InvalidArgumentError(WeftError, ValueError):
    """A parameter, shape, dtype or id that cannot be right, or an id that is already there."""


class NotFoundError(WeftError, LookupError):
    """An unknown document id, or no index at the path."""


class CorruptIndexError(WeftError):
    """Structure or checksum of a file is wrong; `path` names the file, where one is known."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class IncompatibleIndexError(WeftError):
    """A format that this version does not read, or an index made with another encoder."""

    def __init__(self, message: str, found: object = None, supported: object = None) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class StorageError(WeftError, OSError):
    """The operating system said no; `path` and `errno` tell where and why, where known."""

    def __init__(self, message: str, path: str | None = None, errno: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep `errno`, which `OSError` stores outside the instance's dictionary."""
        return _rebuild, (type(self), self.args, {**self.__dict__, "errno": self.errno})


class OutOfMemoryError(WeftError, MemoryError):
    """A planned allocation that does not fit."""


class DeviceError(WeftError, RuntimeError):
    """No such device, or the device failed."""


class InternalError(WeftError, RuntimeError):
    """A bug of weft."""


class IndexExistsError(WeftError, FileExistsError):
    """There is something at the path already."""


class IndexLockedError(WeftError):
    """Another writer holds the index; the message names its host and process."""


class WriterClosedError(WeftError):
    """A writer was used after it was closed."""


class MissingExtraError(WeftError, ImportError):
    """A package of an optional extra is not installed; `extra` names the extra.

    Examples
    --------
    >>> from weft.errors import MissingExtraError
    >>> print(MissingExtraError("torch", "encode"))
    torch is not installed; install it with: pip install 'weft[encode]'
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'weft[{extra}]'"
        )
        self.package = package
        self.extra = extra


def for_code(
    code: str, message: str, path: str | None = None, errno: int | None = None
) -> BaseException:
    """Give the exception for an error code of the engine.

    Parameters
    ----------
    code
        Name of an `ErrorCode`. "cancelled" means that a long call saw Ctrl-C.
    message
        Subject, found, expected.
    path, errno
        The file concerned and the operating system's reason, where there are any.
    """
    if path is not None and path not in message:
        message = f"{path}: {message}"
    match code:
        case "invalid_argument":
            return InvalidArgumentError(message)
        case "not_found":
            return NotFoundError(message)
        case "corrupt":
            return CorruptIndexError(message, path)
        case "incompatible":
            return IncompatibleIndexError(message)
        case "io":
            return StorageError(message, path, errno)
        case "out_of_memory":
            return OutOfMemoryError(message)
        case "device":
            return DeviceError(message)
        case "cancelled":
            return KeyboardInterrupt()
        case _:
            return InternalError(f"{message}; this is a bug of weft, please report it")
