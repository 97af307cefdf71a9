"""Starts the command line: `python -m wallclock` is `wallclock`, for torchrun and other launchers."""

from wallclock.bench.cli.app import main

if __name__ == "__main__":
    main()
