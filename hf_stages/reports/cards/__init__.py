"""Model cards and their sections."""
