"""What a batch holds besides the model's inputs: columns that the collators add and the losses read."""

from __future__ import annotations

SOURCE = "source"
"""The column that names a row's source; in a batch its number among the stage's sources, sorted."""
DRAWN = "drawn"
"""In a batch: the source's number and the tokens of each row that it was made of; taken out again before the update."""
