"""What a packed folder's config says to a transformers that does not know it."""

STOP_KEY = "transformers_weights"
STOP = "packed by hf_stages: run `import hf_stages` before from_pretrained (pip install hf-stages)"
"""In ``config.json`` these words stand where stock transformers looks for another name of the file of weights. It checks
that name before it builds anything, and shows the words; else it would warn, take bytes for weights and report every
layer as unexpected."""
