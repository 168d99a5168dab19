"""Teachers: declared by a name, live as a model, or as a cache on disk. They give signals; losses compare."""
