"""The losses of a running stage: named terms, the forwards that they read, and one loss for each update."""
