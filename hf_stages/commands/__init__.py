"""Commands: ``hf-stages ...``, one file each, and the comparisons behind them. Nothing imports this room."""
