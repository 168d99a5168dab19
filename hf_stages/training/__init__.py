"""Training: a run of stages in Trainer's own loop, from the first step to the last folder, and back after a cut."""
