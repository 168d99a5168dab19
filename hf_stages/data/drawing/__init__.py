"""From a curriculum to rows: which row of which source stands at each position of a stage, on every rank, after every cut."""
