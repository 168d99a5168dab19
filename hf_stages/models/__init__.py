"""Models: built from a config or a folder, their structure and weights, and what a forward shows of them. No stage, no run."""
