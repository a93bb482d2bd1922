"""What all tests rely on in the process that runs them."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell lets its background jobs ignore Ctrl-C, and nohup lets its own ignore hanging up; both is
# inherited. Tests that send these signals mean it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Building the table of Unicode takes seconds where nothing is cached yet, and so does anything on a
# machine that is busy: neither says that a property does not hold.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

WORKERS_MAX = 8
"""Processes that tests are shared out to: each keeps a mesh or two of its own."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: half of their time tests wait."""
    return min((os.cpu_count() or 1) + 1, WORKERS_MAX)
