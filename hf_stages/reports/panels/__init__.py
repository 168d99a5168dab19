"""The three panels of runs' health: loss, hidden-state correlation and validation perplexity, log-log."""
