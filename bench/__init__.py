"""The timer, the tasks that are timed, and the command line.

The packages have generic names, so importing this one makes sure that all five come from this checkout or install.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("kernels", "models", "loaders", "bench", "reports")


def _check_packages() -> None:
    here = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
        if [Path(place).resolve() for place in places] != [here / name]:
            found = f"is {places[0]}" if places else "cannot be imported"
            raise ImportError(
                f"wallclock needs its own package '{name}' from {here}, but '{name}' {found}; "
                "take that path off PYTHONPATH, or install wallclock in an environment of its own"
            )


_check_packages()
