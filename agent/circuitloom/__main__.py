"""Run the command line with ``python -m circuitloom``."""

import signal

# Until there is a command to interrupt, Ctrl-C ends this as it ends any program: without a traceback.
_interrupt = signal.getsignal(signal.SIGINT)
if _interrupt is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from circuitloom.cli import main  # noqa: E402

if _interrupt is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupt)

if __name__ == "__main__":
    raise SystemExit(main())
