"""What all tests rely on in the process that runs them."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A shell lets its background jobs ignore Ctrl-C, and processes they start inherit that; tests that
# press Ctrl-C mean it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Building the table of Unicode takes seconds where nothing is cached yet, and so does anything on a
# machine that is busy: neither says that a property does not hold.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
