"""More examples from the ones there are: words replaced by what a language model would put there."""
