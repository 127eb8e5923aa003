"""Many trials of one experiment, worked off by any number of processes."""
