"""Builds the graph of a project's lineage from its records: which contents each stage and run used, and which it made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix_lab.lab.lineage.graph import PART, PART_BY_PATH, SAME_WEIGHTS, Graph, Node
from tunix_lab.lab.lineage.records import Entry, RunRecord, Stage, digest_of_listing

RECORD = "record"
_HEADLINES = ("eval/loss", "train/loss")
_NOT_SCORES = ("eval/answer_tokens", "eval/stopped", "eval/margin")

ListingOf = Callable[[str], Mapping[str, str] | None]


def build_graph(stages: Sequence[Stage], runs: Sequence[RunRecord], listing_of: ListingOf) -> Graph:
    """The lineage of all that the records know.

    Args:
      stages: of dvc.lock.
      runs: of this project, and of a tracking store; one of several records of the same run counts, the first.
      listing_of: the files of a folder by its hash, None where nobody knows them.
    """
    graph = Graph()
    by_id: dict[str, RunRecord] = {}
    for run in runs:
        by_id.setdefault(run.run_id, run)
    makers = {stage.name: _run_of_stage(stage, by_id) for stage in stages}
    for stage in stages:
        _add_outputs(graph, stage, makers[stage.name])
    stage_of = {maker: stage for stage in stages if (maker := makers[stage.name])}
    for run in by_id.values():
        _add_run(graph, run, stage_of.get(run.run_id))
    for stage in stages:
        _add_deps(graph, stage, makers[stage.name], by_id)
    link_parts(graph, listing_of)
    return graph


def run_id_of(name: str) -> str:
    """The node of a run."""
    return f"run:{name}"


def add_content(graph: Graph, path: str | None, digest: str, **details: Any) -> str:
    """Adds the node of a content and returns its id; a path of None is one that nobody wrote down."""
    if digest.startswith("hub:"):
        return graph.add(Node(digest, "hub", digest.removeprefix("hub:")))
    known = {"digest": digest, **({"paths": [path]} if path else {}), **details}
    return graph.add(Node(f"md5:{digest}", "content", path or digest[:8], known))


def _run_of_stage(stage: Stage, runs: Mapping[str, RunRecord]) -> str | None:
    """The run behind a stage's outputs: named by its run.json, or the newest one of the stage that read what the lock says."""
    if stage.run_id is not None:
        return stage.run_id
    digests = {dep.digest for dep in stage.deps}
    for run in reversed(runs.values()):
        used = {entry["digest"] for entry in run.manifest["datasets"]}
        if run.manifest["tags"].get("dvc.stage") == stage.name and run.status == "finished" and used <= digests:
            model = run.manifest["tags"].get("dvc.model")
            if model is None or model in digests:
                return run.run_id
    return None


def _add_outputs(graph: Graph, stage: Stage, run: str | None) -> None:
    if run is None:
        maker = graph.add(Node(f"stage:{stage.name}", "stage", stage.name, {"cmd": stage.cmd}))
    else:  # what else is known of the run is added later
        maker = graph.add(Node(run_id_of(run), "run", run, {"stage": stage.name}))
    for out in stage.outs:
        is_record = run is not None and out.path.endswith((".json", ".csv"))
        graph.link(maker, add_content(graph, out.path, out.digest, in_lock=True), RECORD if is_record else "made", out.path)


def _add_deps(graph: Graph, stage: Stage, run: str | None, runs: Mapping[str, RunRecord]) -> None:
    """What a stage read; of a folder whose files the run names one by one, these stand for it."""
    user = f"stage:{stage.name}" if run is None else run_id_of(run)
    named = [] if run is None or run not in runs else [entry["path"] for entry in runs[run].manifest["datasets"]]
    for dep in stage.deps:
        node = add_content(graph, dep.path, dep.digest, in_lock=True)
        if any(link.source == node for link in graph.sources(user)):
            continue
        if not any(path.startswith(dep.path + "/") for path in named):
            graph.link(node, user, "read", dep.path)


def _add_run(graph: Graph, run: RunRecord, stage: Stage | None) -> None:
    manifest, tags = run.manifest, run.manifest["tags"]
    details = {
        "kind": manifest["kind"],
        "status": run.status,
        "experiment": manifest["experiment"],
        "commit": tags.get("mlflow.source.git.commit"),
        "dirty": tags.get("lab.git.dirty") == "true",
        "stage": tags.get("dvc.stage"),
        "metrics": headline(manifest, run.metrics),
        "place": run.place,
    }
    node = graph.add(Node(run_id_of(run.run_id), "run", run.run_id, {k: v for k, v in details.items() if v not in (None, {})}))
    for entry in manifest["datasets"]:
        content = add_content(graph, entry["path"], entry["digest"], rows=entry["rows"])
        graph.link(content, node, entry["context"], entry["path"])
    _add_origin(graph, run, node, stage)
    _add_results(graph, run, node, stage)


def _add_origin(graph: Graph, run: RunRecord, node: str, stage: Stage | None) -> None:
    """Starting weights, teacher, tokenizer, the model that an evaluation measured; and the run that they are of."""
    tags, params, parent = run.manifest["tags"], run.manifest["params"], run.manifest["parent_run_id"]
    paths = {
        "base": _path_of(params, "model.init"),
        "teacher": _path_of(params, "algorithm.teacher"),
        "tokenizer": params.get("tokenizer.path"),
        "model": None,
        "reference": None,
    }
    for role, path in paths.items():
        digest = tags.get(f"dvc.{role}")
        if digest is not None:
            content = add_content(graph, path, digest)
            graph.link(content, node, role, path)
            if parent is not None and role in ("base", "model"):
                graph.link(_add_parent(graph, parent), content, "made", path)
        elif f"lab.{role}_repo" in tags:
            hub = f"hub:{tags[f'lab.{role}_repo']}@{tags[f'lab.{role}_commit']}"
            graph.link(add_content(graph, None, hub), node, role)
    if parent is not None and not {"dvc.base", "dvc.model"} & tags.keys() and (stage is None or run.manifest["kind"] == "train"):
        graph.link(_add_parent(graph, parent), node, "model" if run.manifest["kind"] == "evaluate" else "base")
    if "lab.trial" in tags:
        graph.link(_add_parent(graph, tags["lab.trial"].partition("/")[0]), node, "trial of")


def _add_parent(graph: Graph, run_id: str) -> str:
    return graph.add(Node(run_id_of(run_id), "run", run_id))


def _path_of(params: Mapping[str, Any], source: str) -> str | None:
    """Where the weights lay that a spec's `model.init` or `algorithm.teacher` names."""
    name, path = params.get(f"{source}.name"), params.get(f"{source}.path")
    return path or (f"outputs/{name}/final" if name else None)


def _add_results(graph: Graph, run: RunRecord, node: str, stage: Stage | None) -> None:
    """Model, checkpoints and exports of a run."""
    model, params_digest = node, None
    if run.output is not None:
        path, params_digest = run.output["path"], run.output["params_digest"]
        digest = run.output["dvc_digest"] or _locked(stage, path)
        if digest is None:
            details = {"paths": [path], "params_digest": params_digest}
            model = graph.add(Node(f"params:{params_digest}", "content", path or run.run_id, details))
        else:
            model = add_content(graph, path, digest, params_digest=params_digest)
            graph.link(node, model, "made", path)
    for saved in run.checkpoints:
        details = {name: saved[name] for name in ("step", "path", "digest")}
        checkpoint = Node(f"checkpoint:{run.run_id}@{saved['step']}", "checkpoint", saved["path"], details)
        graph.link(node, graph.add(checkpoint), "saved")
        if saved["digest"] == params_digest:
            graph.link(checkpoint.id, model, SAME_WEIGHTS)
    for export in run.exports:
        name = f"export:{export['to']}@{export['exported_at']}"
        made = graph.add(Node(name, "export", export["to"], {k: export[k] for k in ("exported_at", "format", "dtype")}))
        graph.link(model, made, "exported")
        content = add_content(graph, export["to"], export["dvc_digest"], params_digest=export["params_digest"])
        graph.link(made, content, "made", export["to"])


def _locked(stage: Stage | None, path: str | None) -> str | None:
    outs: tuple[Entry, ...] = () if stage is None else stage.outs
    return next((out.digest for out in outs if out.path == path), None)


def headline(manifest: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, float]:
    """The few numbers that a run is known by."""
    scores = sorted(name for name in metrics if name.startswith("eval/") and name not in _NOT_SCORES)
    names = scores if manifest["kind"] == "evaluate" else [manifest["primary_metric"], *_HEADLINES]
    return {name: metrics[name] for name in dict.fromkeys(names) if name in metrics}


def link_parts(graph: Graph, listing_of: ListingOf) -> None:
    """Links every folder to those of its files and folders that the graph knows: by content where its listing is known."""
    contents = [node for node in graph.nodes.values() if node.kind == "content" and node.id.startswith("md5:")]
    folders = [node for node in contents if node.details["digest"].endswith(".dir")]
    listings = _listings(folders, listing_of)
    folders_of: dict[str, dict[str, str]] = {}
    for folder in folders:
        for part in contents:
            role = _part_role(folder, part, listings.get(folder.id))
            if role is not None:
                folders_of.setdefault(part.id, {})[folder.id] = role
    for part, above in folders_of.items():
        for folder, role in above.items():
            if not any(folder in folders_of.get(nearer, {}) for nearer in above):  # a folder of its folder goes without saying
                graph.link(folder, part, role)


def _listings(folders: Sequence[Node], listing_of: ListingOf) -> dict[str, Mapping[str, str]]:
    """The files of the folders by node: as they were kept, or as a part of what was kept of a folder around them."""
    kept = {node.id: listing for node in folders if (listing := listing_of(node.details["digest"])) is not None}
    found = dict(kept)
    for folder in folders:
        for part in folders:
            if folder.id not in kept or part.id in found:
                continue
            for name in _names_in(folder, part):
                inside = _below(kept[folder.id], name)
                if inside and digest_of_listing(inside) == part.details["digest"]:
                    found[part.id] = inside
    return found


def _part_role(folder: Node, part: Node, listing: Mapping[str, str] | None) -> str | None:
    names = _names_in(folder, part)
    if listing is None:
        return PART_BY_PATH if names else None
    digest = part.details["digest"]
    for name in names:
        inside = _below(listing, name)
        if listing.get(name) == digest or (inside and digest_of_listing(inside) == digest):
            return PART
    return None


def _names_in(folder: Node, part: Node) -> list[str]:
    """What `part` is called in `folder`, by the paths of both."""
    paths = [(above + "/", path) for above in folder.details.get("paths", []) for path in part.details.get("paths", [])]
    return [path.removeprefix(above) for above, path in paths if path.startswith(above)]


def _below(listing: Mapping[str, str], name: str) -> dict[str, str]:
    return {path.removeprefix(name + "/"): md5 for path, md5 in listing.items() if path.startswith(name + "/")}
