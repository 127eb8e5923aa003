"""The lab: runs a spec as an experiment; the only room that knows MLflow and DVC."""
