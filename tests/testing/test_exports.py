"""The package gives each check by name and imports its module then, not before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from saga_dist import testing


def test_every_check_is_a_function_of_its_name() -> None:
    assert dir(testing) == testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'saga_dist.testing' has no attribute 'check_nothing'"):
        _ = testing.check_nothing


def test_a_check_imports_what_it_needs_and_no_test_framework() -> None:
    code = (
        "import sys, saga_dist.testing; print('torch' in sys.modules);"
        "from saga_dist.testing import check_prompt_template; print('torch' in sys.modules);"
        "from saga_dist.testing import check_metric_loss, check_reward;"
        "print('torch' in sys.modules, 'pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"]
