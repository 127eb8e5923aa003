"""What a run leaves of itself, and how it is read back: without an engine and without a tracker."""
