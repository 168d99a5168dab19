"""What a detector may have done about what it finds, declared as the rungs of a ladder. One file each."""
