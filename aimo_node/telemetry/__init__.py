"""Seeing what a node does: `logs` sets up structured logging, `metrics` counts and renders.

Every metric's name, type and meaning stands in `metrics.METRICS`.
"""
