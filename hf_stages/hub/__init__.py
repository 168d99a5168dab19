"""Hub: what a run shows of itself on the Hugging Face Hub. It reads folders and reports; it trains nothing."""
