"""Functions named by a spec: found without running their module."""

import sys

import pytest

from tunix_lab.errors import UserError
from tunix_lab.spec import import_function
from tunix_lab.spec.references import locate

MODULE = """\
raise_on_import = __name__ != "my_scores"
if raise_on_import:
    raise RuntimeError("imported under a wrong name")

from math import sqrt as root

limit = 3

if limit > 2:
    def even(prompts, completions, **columns):
        return [float(len(c) % 2 == 0) for c in completions]
else:
    even = None
"""


def test_found_in_a_package_without_importing_it(tmp_path):
    assert locate("tunix_lab.tasks.arithmetic:exact_match", tmp_path).name == "arithmetic.py"


def test_module_of_the_project(tmp_path):
    (tmp_path / "my_scores.py").write_text(MODULE)
    path = list(sys.path)
    assert locate("my_scores:even", tmp_path) == tmp_path / "my_scores.py"
    assert locate("my_scores:root", tmp_path) and "my_scores" not in sys.modules
    assert import_function("my_scores:even", tmp_path)([""], ["ab"]) == [1.0]
    assert sys.path == path
    with pytest.raises(UserError, match="my_scores:limit is not a function"):
        import_function("my_scores:limit", tmp_path)
    del sys.modules["my_scores"]


def test_folder_without_init_is_a_package(tmp_path):
    (tmp_path / "my_package" / "inner").mkdir(parents=True)
    (tmp_path / "my_package" / "inner" / "score.py").write_text("def f(): ...\n")
    assert locate("my_package.inner.score:f", tmp_path).name == "score.py"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_score:even", "no module 'my_score', neither installed nor in the project folder"),
        ("my_scores:evn", r"my_scores has no function 'evn' \(did you mean 'even'\?\)"),
        ("my_scores.deep:even", "my_scores is a module, not a package, and holds no 'deep'"),
        ("tunix_lab.task.arithmetic:exact_match", r"tunix_lab has no module 'task' \(did you mean 'tasks'\?\)"),
        ("broken:f", "broken.py is not valid Python"),
    ],
)
def test_not_found(tmp_path, reference, message):
    (tmp_path / "my_scores.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(LookupError, match=message):
        locate(reference, tmp_path)
    with pytest.raises(UserError, match=message):
        import_function(reference, tmp_path)
