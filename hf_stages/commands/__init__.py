"""Commands: ``hf-stages ...``, and the comparisons behind them. Everything may be used here; nothing imports it."""
