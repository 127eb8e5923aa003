"""Finds what a path or a name means in the graph of lineage: a file is hashed, its path only says where to look for records."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.lab.lineage.build import add_content, build_graph, run_id_of
from tunix_lab.lab.lineage.graph import PART, Graph, Node
from tunix_lab.lab.lineage.records import Listings, RunRecord, read_run_records, read_stages
from tunix_lab.lab.versioning import dvc_digest

RECEIPT = "export_receipt.json"
_SHORTEST = 6  # characters of a hash that may be given


@dataclasses.dataclass(frozen=True)
class Found:
    """What the user asked about.

    Attributes:
      node: its id in the graph.
      notes: what else is worth knowing about it.
      mismatch: how the content differs from what the records say; None if it does not. `node` is what the records say then.
    """

    node: str
    notes: tuple[str, ...] = ()
    mismatch: str | None = None


class Lineage:
    """The lineage of a project: its graph, and the questions that may be asked of it.

    Args:
      home: the project folder.
      remote: runs that only a tracking store knows.
    """

    def __init__(self, home: Path, remote: list[RunRecord] | None = None) -> None:
        self.home = home.resolve()
        self.listings = Listings(home)
        runs = [*read_run_records(home), *(remote or [])]
        self.graph: Graph = build_graph(read_stages(home), runs, self.listings.read)

    def find(self, text: str, here: Path) -> Found:
        """The node that `text` names: a file or folder (from `here`, or in the project), a run id, or the beginning of a hash.

        Raises:
          UserError: no record speaks of it, or several things are meant.
        """
        for path in ((here / text).resolve(), (self.home / text).resolve()):
            if path.exists():
                return self._find_path(path)
        named = self._named(text)
        if len(named) == 1:
            return Found(named[0])
        if named:
            raise UserError(
                f"lineage: {text!r} may be {', '.join(self.graph.nodes[node].label for node in named)}: give more of it"
            )
        removed = f"{text} is not there any more; this is what the records say of it"
        gone = self._recorded(self._relative((self.home / text).resolve()))
        if gone:
            return Found(gone[0], (removed, *_others(self.graph, gone)))
        checkpoint = self._checkpoint((self.home / text).resolve())
        if checkpoint is not None:
            return dataclasses.replace(checkpoint, notes=(removed,))
        raise UserError(f"lineage: no file, run or hash {text!r} in {self.home}; a colleague's run is found with --remote")

    def _named(self, text: str) -> list[str]:
        """Runs whose id is, begins or ends with `text`; else stages of that name; else contents whose hash begins with it."""
        nodes = self.graph.nodes.values()
        runs = [node for node in nodes if node.kind == "run"]
        exact = [node.id for node in self.graph.nodes.values() if node.id in (f"run:{text}", f"stage:{text}")]
        near = [node.id for node in runs if node.label.startswith(text) or node.label.endswith(text)]
        staged = [node.id for node in runs if node.details.get("stage") == text and node.details.get("kind", "train") == "train"]
        if len(text) < _SHORTEST:
            return exact or near
        digests = [
            node.id for node in nodes if any(str(node.details.get(k)).startswith(text) for k in ("digest", "params_digest"))
        ]
        return exact or (near if len(near) == 1 else []) or staged[-1:] or near or digests

    def _find_path(self, path: Path) -> Found:
        special = self._run_folder(path) or self._checkpoint(path)
        if special is not None:
            return special
        digest = dvc_digest(path)
        relative = self._relative(path)
        known = self._by_content(digest)
        recorded = self._recorded(relative)
        if known is not None:
            return Found(known, self._other_content_expected(known, relative, recorded))
        if recorded:
            return self._differs(path, digest, recorded)
        enclosing = self._enclosing(path)
        if enclosing is not None:
            return enclosing
        exported = self._export(path)
        if exported is not None:
            return exported
        raise UserError(
            f"lineage: no record speaks of {path} (hash {digest[:8]}): neither dvc.lock nor a run used or made this content. "
            "`dvc pull` brings the listings of folders, --remote asks the tracking store too"
        )

    def _run_folder(self, path: Path) -> Found | None:
        """A run directory or a file of its record; or an output folder, which holds the run.json of its run."""
        runs = self.home / "runs"
        if path.is_relative_to(runs) and path != runs:
            name, *inside = path.relative_to(runs).parts
            if run_id_of(name) in self.graph.nodes and (not inside or inside[0] not in ("final", "adapter")):
                return Found(run_id_of(name))
        record = path / "run.json"
        if record.is_file() and (path / "final").is_dir():
            model = self._find_path(path / "final")
            run = run_id_of(json.loads(record.read_text())["run_id"])
            return dataclasses.replace(model, node=run) if run in self.graph.nodes else model
        return None

    def _checkpoint(self, path: Path) -> Found | None:
        relative = self._relative(path)
        for node in self.graph.nodes.values():
            if node.kind == "checkpoint" and relative and (relative + "/").startswith(node.details["path"] + "/"):
                note = (
                    f"known by its path and by the hash of its parameters, {node.details['digest'][:8]}, which a restore verifies"
                )
                return Found(node.id, (note,))
        return None

    def _by_content(self, digest: str) -> str | None:
        """The node of a content, also where it is known only as a file in a folder."""
        node = f"md5:{digest}"
        if node in self.graph.nodes:
            return node
        for folder in [node for node in self.graph.nodes.values() if node.kind == "content" and "digest" in node.details]:
            listing = self.listings.read(folder.details["digest"]) or {}
            for name, md5 in listing.items():
                if md5 == digest:
                    return self._add_part(folder, name, digest)
        return None

    def _add_part(self, folder: Node, name: str, digest: str) -> str:
        path = f"{folder.label}/{name}"
        part = add_content(self.graph, path, digest)
        self.graph.link(folder.id, part, PART)
        return part

    def _recorded(self, relative: str | None) -> list[str]:
        """The contents that the records place at a path, what dvc.lock says now first."""
        found = [node for node in self.graph.nodes.values() if relative in node.details.get("paths", [])]
        return [node.id for node in sorted(found, key=lambda node: not node.details.get("in_lock", False))]

    def _differs(self, path: Path, digest: str, recorded: list[str]) -> Found:
        node = self.graph.nodes[recorded[0]]
        if "digest" not in node.details:  # a run of before that digest was kept
            return Found(node.id, (f"not verified: the record of {node.label} has no hash of its files",))
        said = f"{path} is not what the records say: its hash is {digest[:8]}, theirs {node.details['digest'][:8]}. "
        return Found(
            node.id, _others(self.graph, recorded), said + "What follows is about the recorded content, not about this file."
        )

    def _other_content_expected(self, known: str, relative: str | None, recorded: list[str]) -> tuple[str, ...]:
        label = self.graph.nodes[known].label
        if not recorded or known in recorded:
            moved = relative not in self.graph.nodes[known].details.get("paths", [])
            return (f"the same content as {label}",) if moved else ()
        expected = self.graph.nodes[recorded[0]].details.get("digest", "")
        return (f"this path held {expected[:8]} when it was recorded; what lies there now is the content of {label}",)

    def _enclosing(self, path: Path) -> Found | None:
        """A file in a recorded folder: part of it if the whole folder is still what was recorded."""
        for folder in path.parents:
            recorded = self._recorded(self._relative(folder))
            if not recorded:
                continue
            digest = dvc_digest(folder)
            if f"md5:{digest}" in recorded:
                node = self.graph.nodes[f"md5:{digest}"]
                return Found(self._add_part(node, path.relative_to(folder).as_posix(), dvc_digest(path)))
            return self._differs(folder, digest, recorded)
        return None

    def _export(self, path: Path) -> Found | None:
        """A file under a receipt of an export that this project's runs do not know of: what the receipt says."""
        for folder in (path, *path.parents):
            if not (folder / RECEIPT).is_file():
                continue
            receipt = json.loads((folder / RECEIPT).read_text())
            if "source" not in receipt:
                raise UserError(f"lineage: {folder} is an export that was never finished: its receipt says nothing of its source")
            return Found(self._add_receipt(folder, receipt), (f"as {RECEIPT} there says; the files were not hashed again",))
        return None

    def _add_receipt(self, folder: Path, receipt: dict[str, Any]) -> str:
        details = {name: receipt[name] for name in ("exported_at", "format", "dtype", "params_digest", "passed")}
        node = self.graph.add(Node(f"export:{folder}@{receipt['exported_at']}", "export", str(folder), details))
        source = receipt["source"]
        same = [
            n for n in self.graph.nodes.values() if n.details.get("params_digest") == source["params_digest"] and n.id != node
        ]
        if same:
            self.graph.link(same[0].id, node, "exported")
        elif source["run_id"] is not None:
            run = self.graph.add(Node(run_id_of(source["run_id"]), "run", source["run_id"]))
            self.graph.link(run, node, "exported")
        return node

    def _relative(self, path: Path) -> str | None:
        return path.relative_to(self.home).as_posix() if path.is_relative_to(self.home) else str(path)


def _others(graph: Graph, nodes: list[str]) -> tuple[str, ...]:
    """Tells of the other contents that a path has held."""
    digests = [graph.nodes[node].details.get("digest", "")[:8] for node in nodes[1:]]
    return (f"the same path also held {', '.join(digests)}",) if any(digests) else ()
