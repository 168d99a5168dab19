"""Which rows made an update bad: found again, measured one by one, written down, and replayed without the dataset."""
