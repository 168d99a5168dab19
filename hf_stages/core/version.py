"""The version of hf_stages, which run folders and model cards name."""

__version__ = "0.1.0"
