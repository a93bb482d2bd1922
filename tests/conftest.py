"""What all tests rely on in the process that runs them."""

from __future__ import annotations

import signal

# A shell lets its background jobs ignore Ctrl-C, and processes they start inherit that; tests that
# press Ctrl-C mean it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
