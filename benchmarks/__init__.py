"""Benchmarks anybody can run: each prints ratios against a baseline measured in the same run.

``python -m benchmarks.path`` measures the whole path, ``python -m benchmarks.link`` the link alone.
Figures and how to read them: `docs/performance.md`.
"""
