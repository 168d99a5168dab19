"""Collators: how rows become a batch. One file each.

``BaseCollator`` in ``base`` is what a new one begins with.
"""
