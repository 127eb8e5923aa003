"""Which files of a run directory go to MLflow, and where: enough to look at the run, to compare it and to make it again."""

from tunix_lab.lab.record.run_state import BUNDLE, ENV_LOCK, FINGERPRINTS, MANIFEST, METRICS, PATCH

SAMPLES = "samples/latest.json"
# folder in the artifact store by file of the run directory
ARTIFACTS = {
    "spec.yaml": "spec",
    "resolved.yaml": "spec",
    MANIFEST: None,
    PATCH: "repro",
    BUNDLE: "repro",
    ENV_LOCK: "repro",
    SAMPLES: "samples",
}
# these once the run has ended
LAST_ARTIFACTS = {
    "samples/history.jsonl": "samples",
    "metrics.json": None,
    "run.json": None,
    METRICS: "journal",
    FINGERPRINTS: "journal",
    "report.md": None,
    "report.html": None,
    "sweep.csv": None,
    "sweep.json": None,
    "sweep.png": None,
}
