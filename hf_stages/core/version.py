"""The version of hf_stages, as run folders and cards name it."""

__version__ = "0.1.0"
