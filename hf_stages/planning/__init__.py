"""Planning: everything before the first step. Absolute numbers, checks, warnings; no weight is read and nothing is trained."""
