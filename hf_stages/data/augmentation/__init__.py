"""Augmentation: makes more examples by replacing words with what a language model would put there."""
