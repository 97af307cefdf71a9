"""Reads the pickles that CIFAR-10's python version consists of, and nothing else: no name in a file is ever called."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from loaders.batches import DataError
from loaders.source import damaged

# Python 2 wrote these batches; numpy may have been called either way since.
_ADMITTED = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0] for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}


class _Unpickler(pickle.Unpickler):
    """Finds only what a numpy array of bytes is rebuilt with."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        """Returns the admitted global of that name.

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
    except DataError:
        raise
    # A damaged stream makes the unpickler raise nearly anything, numpy's own checks included.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise damaged(path, f"no readable pickle ({error})") from None
    except (UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise damaged(path, f"no readable pickle ({error})") from None
    if not isinstance(loaded, dict):
        raise damaged(path, f"a {type(loaded).__name__} instead of a dictionary")
    texts = {key: value for key, value in loaded.items() if isinstance(key, str | bytes)}
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in texts.items()}
