"""The text in a packed folder's config that stops a transformers without hf_stages."""

STOP_KEY = "transformers_weights"
STOP_TEXT = "packed by hf_stages: run `import hf_stages` before from_pretrained (pip install hf-stages)"
"""The text in ``config.json`` where transformers looks for another name of the weights' file.

It checks that name before it builds anything, and its error shows the text. Otherwise it would only warn, read bytes as
weights and report every layer as unexpected.
"""
