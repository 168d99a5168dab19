"""Detectors: gates that read a stage's log, find what is wrong with it, and climb a ladder of actions."""
