"""The replica of runs in MLflow; everything here may fail without a run noticing."""
