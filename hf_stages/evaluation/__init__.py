"""Evaluation: what is measured and how. Metrics by name, losses over all items, domains of earlier stages.

A new metric is a file in ``metrics``.
"""
