"""Reads the pickles that CIFAR-10's python version consists of, and nothing else: no name in a file is ever called."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.source import damaged


class _DType:
    """Stands in for `numpy.dtype`; of what it is given it keeps the name."""

    def __init__(self, name: str, *flags: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Takes the byte order and flags of a dtype, which say nothing of bytes."""


class _Array:
    """Stands in for an array that `_reconstruct` begins and its state fills."""

    def __init__(self, *arguments: object) -> None:
        self._state: Any = None

    def __setstate__(self, state: object) -> None:
        """Takes version, shape, dtype, whether in Fortran's order, and content."""
        self._state = state

    def bytes_array(self) -> npt.NDArray[np.uint8]:
        """Returns the array, uint8 of any shape.

        Raises:
            ValueError: if it is another kind of array.
            TypeError: if it is none.
        """
        _, shape, dtype, fortran, content = self._state
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", "uint8") or fortran:
            raise ValueError("an array of something other than bytes")
        content = content.encode("latin1") if isinstance(content, str) else content
        if not all(isinstance(edge, int) and edge >= 0 for edge in shape):
            raise ValueError(f"an array of shape {shape}")
        return np.frombuffer(content, np.uint8).reshape(shape)


# What a damaged stream makes the unpickler raise.
_STREAM_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, MemoryError),
)

# numpy's own would trust a file's word: one flipped bit in the flags of a dtype makes it follow bytes as pointers.
# Python 2 wrote these batches; numpy's module may have been called either way since.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): object(),
    ("numpy", "dtype"): _DType,
}


class _Unpickler(pickle.Unpickler):
    """Finds only stand-ins for what a numpy array of bytes is rebuilt with."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for the global of that name.

        Raises:
            DataError: for any other; it is not looked up, let alone called.
        """
        if (module, name) not in _ADMITTED:
            raise DataError(
                f"{self._name} asks for {module}.{name}, which no CIFAR-10 batch holds; nothing was executed. "
                "Delete the file and get the set from its source: wallclock data fetch"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside the file."""
        raise DataError(
            f"{self._name} refers to an object outside the file; it is not a CIFAR-10 batch. "
            "Delete it and get the set from its source: wallclock data fetch"
        )


def load_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """Returns the dictionary that a CIFAR-10 batch or its metadata consists of, keys as text.

    Args:
        content: of the file.
        path: named in messages.

    Raises:
        DataError: if the file is damaged, holds something else, or asks for any code.
    """
    try:
        loaded = _Unpickler(content, str(path)).load()
        if not isinstance(loaded, dict):
            raise ValueError(f"a {type(loaded).__name__} instead of a dictionary")
        values = {key: v.bytes_array() if isinstance(v, _Array) else v for key, v in loaded.items()}
    except DataError:
        raise
    except _STREAM_ERRORS as error:
        raise damaged(path, f"no readable pickle ({error})") from None
    texts = {key: value for key, value in values.items() if isinstance(key, str | bytes)}
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in texts.items()}
