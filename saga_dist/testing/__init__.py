"""Contract checks for the user's own objects; a failed check raises an ``AssertionError`` with the reason.

The checks need no test framework:

    from saga_dist.testing import check_reward

    def test_my_reward():
        check_reward(my_reward)

The module of a check is imported at the first access to the check.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "check_encoder": "saga_dist.testing.encoder",
    "check_engine": "saga_dist.testing.engine",
    "check_layout": "saga_dist.testing.layout",
    "check_metric_loss": "saga_dist.testing.metric_loss",
    "check_model_family": "saga_dist.testing.family",
    "check_prompt_template": "saga_dist.testing.prompt_template",
    "check_reward": "saga_dist.testing.reward",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
