"""Models: building and loading them, their structure and weights, and what is captured of a forward pass."""
