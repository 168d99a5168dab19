"""Cards: model cards and their sections."""
