"""Planning: everything before the first step. Numbers, checks and warnings.

No weight is read here, nothing is trained, and nothing is written.
"""
