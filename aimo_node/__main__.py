"""The program `aimo`, also as `python -m aimo_node`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while modules load: nothing runs yet, so go at once and without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from aimo_node.cli.main import main

if __name__ == "__main__":
    main()
