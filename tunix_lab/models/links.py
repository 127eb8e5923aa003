"""The name map: how each parameter of the shared decoder is stored on the Hugging Face hub, in both directions.

Every family that is served stores the same tensors under the same names, so one map with a few choices does for all; the choices
are those of the `ModelConfig`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from einops import rearrange

from tunix_lab.models.config import ModelConfig

Index = tuple[slice, ...]
"""A part of an array: one slice with start and stop per axis."""


@dataclasses.dataclass(frozen=True)
class Link:
    """One parameter of the decoder and the tensors it is stored in.

    Attributes:
      ours: dotted path of the parameter.
      theirs: names of the stored tensors; several are stacked along the parameter's first axis, which `axes` leaves out.
      axes: axes of a stored tensor -> axes of the parameter, as einops writes it: "(n h) d -> n d h".
      inner: sizes of the axes that stand second in a pair of parentheses.
      is_stacked: whether `theirs` are stacked.
    """

    ours: str
    theirs: tuple[str, ...]
    axes: str
    inner: tuple[tuple[str, int], ...] = ()
    is_stacked: bool = False

    @property
    def stored_axes(self) -> list[list[str]]:
        """The axes of a stored tensor, each as the parameter's axes that it joins."""
        return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\w+", self.axes.split("->")[0])]

    @property
    def our_axes(self) -> list[str]:
        """The axes of the parameter, without the one along which tensors are stacked."""
        return self.axes.split("->")[1].split()

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of each stored tensor of a parameter of shape `shape`."""
        sizes = dict(zip(self.our_axes, shape[self.is_stacked :], strict=True))
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.stored_axes)

    def stored_parts(self, index: Index) -> Iterator[tuple[str, Index]]:
        """The stored tensors that the part `index` of the parameter needs, and which part of each."""
        names = self.theirs[index[0]] if self.is_stacked else self.theirs
        by_axis = dict(zip(self.our_axes, index[self.is_stacked :], strict=True))
        sizes = dict(self.inner)
        part = []
        for first, *inner in self.stored_axes:  # inner axes (single heads) are never split over devices
            size = math.prod(sizes[axis] for axis in inner)
            part.append(slice(by_axis[first].start * size, by_axis[first].stop * size))
        for name in names:
            yield name, tuple(part)

    def load(self, tensors: Iterable[np.ndarray], out: np.ndarray) -> None:
        """Writes (parts of) the stored tensors to their places in `out`, converting to its dtype."""
        for place, tensor in zip(out if self.is_stacked else [out], tensors, strict=True):
            place[...] = rearrange(tensor, self.axes, **dict(self.inner))

    def save(self, param: np.ndarray) -> tuple[np.ndarray, ...]:
        """The stored tensors of a parameter; the inverse of `load`."""
        theirs, ours = self.axes.split("->")
        return tuple(rearrange(part, f"{ours}->{theirs}") for part in (param if self.is_stacked else [param]))


def decoder_links(config: ModelConfig, prefix: str = "model.") -> list[Link]:
    """The layout of every parameter; `prefix` is what stored names of the text model begin with."""
    return [
        Link("embedder.input_embedding", (f"{prefix}embed_tokens.weight",), "v d -> v d"),
        Link("final_norm.scale", (f"{prefix}norm.weight",), "d -> d"),
        *([] if config.tie_embeddings else [Link("lm_head.w", ("lm_head.weight",), "v d -> v d")]),
        *(link for i in range(config.num_layers) for link in _layer(f"layers.{i}", f"{prefix}layers.{i}", config)),
    ]


def _layer(ours: str, theirs: str, config: ModelConfig) -> Iterator[Link]:
    for norm, stored in _norms(config).items():
        yield Link(f"{ours}.{norm}.scale", (f"{theirs}.{stored}.weight",), "d -> d")
    yield from _attention(f"{ours}.attn", f"{theirs}.self_attn", config)
    if config.experts is None:
        for name, axes in _MLP.items():
            yield Link(f"{ours}.mlp.{name}.w", (f"{theirs}.mlp.{name}.weight",), axes)
        return
    yield Link(f"{ours}.mlp.router.w", (f"{theirs}.mlp.gate.weight",), "e d -> d e")
    for name, axes in _MLP.items():
        experts = tuple(f"{theirs}.mlp.experts.{e}.{name}.weight" for e in range(config.experts.count))
        yield Link(f"{ours}.mlp.{name}.w", experts, axes, is_stacked=True)


# Stored matrices are [out, in].
_MLP = {"gate_proj": "f d -> d f", "up_proj": "f d -> d f", "down_proj": "d f -> f d"}


def _norms(config: ModelConfig) -> Mapping[str, str]:
    """Ours -> theirs. Of two norms a layer, the hub calls the second one after the place that it stands behind."""
    norms = {"pre_attention_norm": "input_layernorm"}
    if config.post_norms:
        norms |= {"post_attention_norm": "post_attention_layernorm", "pre_ffw_norm": "pre_feedforward_layernorm"}
        norms |= {"post_ffw_norm": "post_feedforward_layernorm"}
    else:
        norms |= {"pre_ffw_norm": "post_attention_layernorm"}
    return norms | ({"attn.query_norm": "self_attn.q_norm", "attn.key_norm": "self_attn.k_norm"} if config.qk_norm else {})


def _attention(ours: str, theirs: str, config: ModelConfig) -> Iterator[Link]:
    link = functools.partial(Link, inner=(("h", config.head_dim),))
    key_value = (f"{theirs}.k_proj", f"{theirs}.v_proj")
    yield link(f"{ours}.q_einsum.w", (f"{theirs}.q_proj.weight",), "(n h) d -> n d h")
    yield link(f"{ours}.kv_einsum.w", tuple(f"{name}.weight" for name in key_value), "(k h) d -> k d h", is_stacked=True)
    yield link(f"{ours}.attn_vec_einsum.w", (f"{theirs}.o_proj.weight",), "d (n h) -> n h d")
    if config.qkv_bias:
        yield link(f"{ours}.q_einsum.b", (f"{theirs}.q_proj.bias",), "(n h) -> n h")
        yield link(f"{ours}.kv_einsum.b", tuple(f"{name}.bias" for name in key_value), "(k h) -> k h", is_stacked=True)
