"""Core: stages and recipes, time and curves, names of parts, sealed folders. It knows no model."""
