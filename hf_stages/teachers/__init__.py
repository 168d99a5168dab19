"""Teachers: declared by a name, run as a model, or read from a cache on disk.

They give signals; losses compare them.
"""
