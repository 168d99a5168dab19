"""Hub: what a run puts on the Hugging Face Hub, such as its model card.

It reads folders and reports; it trains nothing.
"""
