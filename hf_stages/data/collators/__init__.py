"""Collators: how rows become a batch. One file each; ``base`` holds what they share."""
