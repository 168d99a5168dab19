"""A stage's losses at work: named terms, the forwards they read, what they are means over, one sum for each update."""
