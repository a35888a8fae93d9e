"""Run the command line with ``python -m circuitloom``."""

from circuitloom.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
