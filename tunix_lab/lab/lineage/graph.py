"""What was made from what: a graph of contents and of the runs and stages that made and used them. Pure; knows no files.

A content (data, tokenizer, weights) is identified by its hash, so the same bytes are one node wherever they lie and whoever made
them. A link goes from what was used to what used it, and from a maker to what it made.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

Kind = Literal["content", "hub", "checkpoint", "run", "stage", "export"]
SAME_WEIGHTS = "same weights"
PART = "part"
PART_BY_PATH = "part, by its path alone"
PARTS = (PART, PART_BY_PATH)


@dataclasses.dataclass(frozen=True)
class Node:
    """A thing that was made, or that made something.

    Attributes:
      id: "md5:<hash>", "params:<hash>", "hub:<repo>@<commit>", "checkpoint:<run>@<step>", "run:<run id>", "stage:<name>" or
        "export:<folder>@<time>".
      kind: what it is; "content" is a file or a folder by its bytes.
      label: name for people: the path of a content, the id of a run.
      details: what else is known, as JSON values.
    """

    id: str
    kind: Kind
    label: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Link:
    """`target` came of `source`.

    Attributes:
      source: what was used, or who made it.
      target: who used it, or what was made.
      role: as what: "train", "base", "tokenizer", "made", "part", …
      path: where the content lay then; None where no content is linked, or nobody wrote it down.
    """

    source: str
    target: str
    role: str
    path: str | None = None


@dataclasses.dataclass(frozen=True)
class Branch:
    """A node in a tree of answers.

    Attributes:
      node: the node.
      role: how it belongs to the node above.
      label: its name there; the same content may have another one elsewhere.
      branches: what is behind it; [] where `shown_above`.
      shown_above: the tree has it already, with all that is behind it.
    """

    node: Node
    role: str
    label: str
    branches: "list[Branch]"
    shown_above: bool = False

    def walk(self) -> "Iterator[Branch]":
        """This branch and all behind it."""
        yield self
        for branch in self.branches:
            yield from branch.walk()


class Graph:
    """Nodes and links; both may be added in any order and more than once."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._into: dict[str, dict[tuple[str, str], Link]] = defaultdict(dict)
        self._out_of: dict[str, dict[tuple[str, str], Link]] = defaultdict(dict)

    def add(self, node: Node) -> str:
        """Adds a node, or what is new about one that is there; returns its id. What was known first stays."""
        known = self.nodes.get(node.id)
        if known is None:
            self.nodes[node.id] = node
        else:
            paths = sorted({*known.details.get("paths", []), *node.details.get("paths", [])})
            details = node.details | known.details | ({"paths": paths} if paths else {})
            self.nodes[node.id] = dataclasses.replace(known, details=details)
        return node.id

    def link(self, source: str, target: str, role: str, path: str | None = None) -> None:
        """Adds a link; a thing does not come of itself."""
        if source != target:
            link = Link(source, target, role, path)
            self._into[target].setdefault((source, role), link)
            self._out_of[source].setdefault((target, role), link)

    @property
    def links(self) -> list[Link]:
        """All links."""
        return [link for links in self._into.values() for link in links.values()]

    def sources(self, node: str) -> list[Link]:
        """The links into a node: what it came of. Equal weights elsewhere are no source."""
        return [link for link in self._into[node].values() if link.role != SAME_WEIGHTS]

    def uses(self, node: str, reached_as: str = "") -> list[Link]:
        """What came of a node: by itself, or as part of a folder that was used as a whole.

        Args:
          node: the node.
          reached_as: its role where one comes from; the uses of a folder are not told again for each of its parts.
        """
        links = list(self._out_of[node].values())
        targets = {link.target for link in links}
        for folder in [] if reached_as in PARTS else self._folders_of(node):
            for link in self._out_of[folder].values():
                if link.role not in PARTS and link.target not in targets:
                    targets.add(link.target)
                    links.append(dataclasses.replace(link, role=f"{link.role} in {self.nodes[folder].label}"))
        return links

    def made_from(self, node: str) -> Branch:
        """The tree of all that a node came of."""
        return self._tree(node, "", None, set(), lambda at, role: [(link.source, link) for link in self.sources(at)])

    def used_by(self, node: str) -> Branch:
        """The tree of all that came of a node."""
        return self._tree(node, "", None, set(), lambda at, role: [(link.target, link) for link in self.uses(at, role)])

    def _folders_of(self, node: str) -> list[str]:
        found = [link.source for link in self._into[node].values() if link.role in PARTS]
        return [*found, *(above for folder in found for above in self._folders_of(folder))]

    def _tree(self, node: str, role: str, path: str | None, seen: set[str], behind: "_Behind") -> Branch:
        label = path or self.nodes[node].label
        further = behind(node, role)
        if node in seen:
            return Branch(self.nodes[node], role, label, [], shown_above=bool(further))
        seen.add(node)
        by_node: dict[str, list[Link]] = defaultdict(list)
        for other, link in further:
            by_node[other].append(link)
        branches = []
        for other, links in by_node.items():
            roles = ", ".join(dict.fromkeys(link.role for link in links))
            at = links[0].path if self.nodes[other].kind == "content" else None
            branches.append(self._tree(other, roles, at, seen, behind))
        return Branch(self.nodes[node], role, label, branches)


_Behind = Callable[[str, str], list[tuple[str, Link]]]
