"""Core: the nouns of a run, time and curves, names, whole folders. It knows no model, and imports torch in ``randomness`` alone."""
