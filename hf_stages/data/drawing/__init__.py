"""Drawing: finds the row and the source at each position of a stage.

Ranks and workers find the same rows without asking each other, and so does a run that is resumed.
"""
