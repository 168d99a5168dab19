"""A stage in progress: what it reads, how far it is, at which rate, when it is over, and what survives a cut.

``StageRun`` holds it together.
"""
