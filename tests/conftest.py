"""Threads of the test process: set before torch is imported, so that two busy cores do not spin against each other."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
