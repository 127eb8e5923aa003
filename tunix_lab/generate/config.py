"""What can be chosen about generation."""

import dataclasses
from typing import Annotated

from annotated_types import Gt

from tunix_lab._bounds import check_bounds


@dataclasses.dataclass(frozen=True, kw_only=False)
class CacheConfig:
    """The shape of a key-value cache.

    Attributes:
      cache_size: most positions (prompt + generated) that one call may use; memory is taken for what a call needs, not for this.
      num_layers: layers of the model.
      num_kv_heads: key-value heads of the model.
      head_dim: size of one head.
    """

    cache_size: Annotated[int, Gt(0)]
    num_layers: Annotated[int, Gt(0)]
    num_kv_heads: Annotated[int, Gt(0)]
    head_dim: Annotated[int, Gt(0)]

    def __post_init__(self) -> None:
        check_bounds(self)
