"""The ready recipes, one function in each file."""
