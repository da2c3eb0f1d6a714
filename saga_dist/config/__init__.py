"""The configuration of a run: one strict, frozen pydantic section per part, read from TOML.

Unknown keys, wrong types and out-of-range values are one-line errors that name file and key. Defaults of the method are
the paper's (SAGA, section 4); the description of a key says where the paper has another value or publishes none.
Importing this package imports neither torch nor Ray, so that ``--dry-run`` and ``--help`` are fast.
"""

from __future__ import annotations

from saga_dist.config.data import BirdsSection, DataSection
from saga_dist.config.loading import load_config, load_run_config, parse_config
from saga_dist.config.method import (
    STANDINS,
    EvaluationSection,
    ModelSection,
    ObjectiveSection,
    OptimizerSection,
    PromptSection,
)
from saga_dist.config.run import ADDED_KEYS, FREE_KEYS, CheckpointSection, LoggingSection, RunConfig, RunSection
from saga_dist.config.section import Section
from saga_dist.config.workers import ReplaySection, RolloutSection, RuntimeSection, WorkersSection

__all__ = [
    "ADDED_KEYS",
    "FREE_KEYS",
    "STANDINS",
    "BirdsSection",
    "CheckpointSection",
    "DataSection",
    "EvaluationSection",
    "LoggingSection",
    "ModelSection",
    "ObjectiveSection",
    "OptimizerSection",
    "PromptSection",
    "ReplaySection",
    "RolloutSection",
    "RunConfig",
    "RunSection",
    "RuntimeSection",
    "Section",
    "WorkersSection",
    "load_config",
    "load_run_config",
    "parse_config",
]
