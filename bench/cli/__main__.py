"""Starts the command line from a checkout: `python -m bench.cli` does the same as `wallclock`."""

from wallclock.bench.cli.app import main

if __name__ == "__main__":
    main()
