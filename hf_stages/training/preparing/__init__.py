"""What a trainer does to its model and data when it is made, done for each stage instead."""
