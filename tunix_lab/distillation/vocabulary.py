"""Ids of a teacher that counts its tokens differently from its student: which of them mean the same token."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens that both models know.

    Attributes:
      student_ids: ids of the shared tokens in the student.
      teacher_ids: ids of the same tokens, in the same order, in the teacher.
      teacher_of: for each id of the student that of the teacher; −1 where it has none.
    """

    student_ids: Int[Array, " shared"]
    teacher_ids: Int[Array, " shared"]
    teacher_of: Int[Array, " student_vocab"]

    @classmethod
    def of(cls, mapping: Sequence[int] | np.ndarray, student_size: int | None, teacher_size: int | None) -> "Vocabulary":
        """Reads a mapping.

        Args:
          mapping: for each id of the teacher that of the student; −1 where it has none.
          student_size: number of the student's ids; None is what the mapping needs.
          teacher_size: number of the teacher's ids; None is that of the mapping.

        Raises:
          ValueError: it has another length, or an id that the student lacks, or one id twice, or none at all.
        """
        ids = np.asarray(mapping)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError("vocab_mapping must be one row of integers: for each id of the teacher that of the student, or -1")
        if teacher_size is not None and len(ids) != teacher_size:
            raise ValueError(f"vocab_mapping has {len(ids)} entries, the teacher has {teacher_size} ids: it needs one for each")
        (teacher_ids,) = np.nonzero(ids >= 0)
        student_ids = ids[teacher_ids]
        if not len(student_ids):
            raise ValueError("vocab_mapping maps no id: there is nothing that the student could learn from this teacher")
        if student_size is None:
            student_size = int(student_ids.max()) + 1
        if student_ids.max() >= student_size:
            raise ValueError(f"vocab_mapping maps to id {student_ids.max()}, the student has ids 0 to {student_size - 1}")
        found, counts = np.unique(student_ids, return_counts=True)
        if counts.max() > 1:
            raise ValueError(
                f"vocab_mapping maps {counts.max()} ids of the teacher to id {found[counts.argmax()]} of the student"
            )
        teacher_of = np.full(student_size, -1, np.int32)
        teacher_of[student_ids] = teacher_ids
        return cls(*(jnp.asarray(array, jnp.int32) for array in (student_ids, teacher_ids, teacher_of)))


def check_tokens(teacher_of: np.ndarray, tokens: np.ndarray) -> None:
    """Refuses tokens that the teacher does not know.

    Raises:
      ValueError: there is one.
    """
    strange = tokens[teacher_of[tokens] < 0] if np.all(tokens < len(teacher_of)) else tokens[tokens >= len(teacher_of)]
    if strange.size:
        raise ValueError(f"token {strange[0]} of the data has no id in the teacher's vocabulary: vocab_mapping leaves it out")
