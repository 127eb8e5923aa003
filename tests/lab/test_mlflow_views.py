"""The curated page of an experiment: its JSON stays what was tried in a browser, and gives way to unknown versions."""

import json

import pytest

from tunix_lab.lab.tracking.views import (
    TAG_LIMIT,
    experiment_tags,
    samples_url,
    shared_views,
    view_key,
    view_state,
    view_url,
    views_supported,
)

STATE_KEYS = {
    "searchFilter",
    "orderByKey",
    "orderByAsc",
    "startTime",
    "lifecycleFilter",
    "datasetsFilter",
    "modelVersionFilter",
    "selectedColumns",
    "viewMaximized",
    "runListHidden",
    "compareRunsMode",
    "compareRunSections",
    "compareRunCharts",
}


@pytest.mark.parametrize(
    ("algorithm", "sections"),
    [
        ("sft", ["1 · eval", "2 · training", "3 · performance"]),
        ("dpo", ["1 · eval", "2 · training", "3 · preference", "4 · performance"]),
        ("orpo", ["1 · eval", "2 · training", "3 · preference", "4 · performance"]),
        ("grpo", ["1 · reward", "2 · policy", "3 · answers", "4 · training", "5 · performance"]),
        ("ppo", ["1 · reward", "2 · policy", "3 · answers", "4 · critic", "5 · training", "6 · performance"]),
    ],
)
def test_the_state_has_the_keys_the_ui_reads(algorithm, sections):
    for layout, mode in (("table", "TABLE"), ("charts", "CHART")):
        state = view_state(algorithm, "eval/loss", False, layout)
        assert set(state) == STATE_KEYS
        assert state["compareRunsMode"] == mode
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/loss`", True)
        assert [section["name"] for section in state["compareRunSections"]] == sections
        homes = {section["uuid"] for section in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == homes
        assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])
        assert {"attributes.`Duration`", "metrics.`eval/exact_match`", "params.`seed`"} <= set(state["selectedColumns"])


def test_a_view_fits_into_a_tag_and_says_what_is_best():
    tags = experiment_tags("dpo", "eval/exact_match", True, "3.17.2")
    views = shared_views(tags)
    assert views == ["lab-dpo-charts", "lab-dpo-table"] == [view_key("dpo", "charts"), view_key("dpo", "table")]
    for value in tags.values():
        assert len(value) < TAG_LIMIT
    assert json.loads(tags["mlflow.sharedViewState.lab-dpo-table"])["orderByAsc"] is False
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_view_of_rollouts_fits_into_a_tag(algorithm):
    assert all(len(value) < TAG_LIMIT for value in experiment_tags(algorithm, "eval/reward", True, "3.17.2").values())


def test_evaluations_have_a_table_of_their_own():
    tags = experiment_tags("evaluate", "eval/exact_match", True, "3.17.2")
    assert shared_views(tags) == ["lab-evaluate-table"]
    assert not any("primaryMetric" in name for name in tags)
    state = json.loads(tags["mlflow.sharedViewState.lab-evaluate-table"])
    assert state["searchFilter"] == "tags.`lab.kind` = 'evaluate'"
    assert "tags.`lab.parent_run_id`" in state["selectedColumns"]


def test_a_view_shows_training_runs_that_share_an_axis():
    expected = "tags.`lab.kind` = 'train' AND params.`algorithm.kind` = 'orpo'"
    assert view_state("orpo", "eval/loss", False, "charts")["searchFilter"] == expected


@pytest.mark.parametrize("version", ["3.16.9", "3.18.0", "4.0.0", "nightly", "3"])
def test_a_version_that_was_not_tried_gets_the_plain_page(version):
    assert not views_supported(version)
    tags = experiment_tags("dpo", "eval/exact_match", True, version)
    assert shared_views(tags) == []
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_addresses():
    runs = "http://h:5000/#/experiments/3/runs?workflowType=machine_learning"
    assert view_url("http://h:5000/", "3", None) == runs
    assert view_url("http://h:5000", "3", "lab-dpo-table") == runs + "&compareRunsMode=TABLE&viewStateShareKey=lab-dpo-table"
    assert view_url("http://h:5000", "3", "lab-dpo-charts") == runs + "&compareRunsMode=CHART&viewStateShareKey=lab-dpo-charts"
    samples = runs + "&compareRunsMode=ARTIFACT&searchFilter=tags.%60lab.kind%60%20%3D%20%27train%27"
    assert samples_url("http://h:5000", "3") == samples
