"""Whom a run tells what its gates decided: a webhook, a tracker, a function. One file each."""
