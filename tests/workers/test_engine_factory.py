"""Making engines by name or import path: what a factory gets, and one line for whatever is wrong with one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saga_dist.config import parse_config
from saga_dist.errors import ConfigError, EngineError, SagaError
from saga_dist.runtime.build import build_engine, build_family
from saga_dist.workers.engines.factory import load_engine_factory
from saga_dist.workers.engines.transformers_engine import TransformersEngine

OWN = """
from saga_dist.errors import ConfigError

class Engine:
    def __init__(self, context):
        self.context = context

    def generate(self, tokens, samplings, *, deadline_s):
        return []

    def close(self):
        pass

NUMBER = 3

def nothing(context):
    return None

def two(context, more):
    return Engine(context)

def busy(context):
    raise RuntimeError("CUDA out of memory\\nby far")

def refuses(context):
    raise ConfigError("no licence", where="own engine")
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def config_of(checkpoint: Path, engine: str, **rollout: object) -> object:
    tree = {
        "data": {"layout": "birds", "image_size": 80},
        "prompt": {"vocabulary": "standin_birds"},
        "model": {"path": str(checkpoint), "dtype": "bfloat16", "device": "cpu"},
        "rollout": {"engine": engine, "groups_per_lease": 2, "group_size": 4, **rollout},
        "run": {"seed": 7},
    }
    return parse_config(tree, where="test")


def test_a_factory_gets_the_settings_of_the_run(tiny_checkpoint: Path) -> None:
    config = config_of(
        tiny_checkpoint,
        "engine_of_mine:Engine",
        max_model_len=300,
        gpu_memory_utilization=0.25,
        tensor_parallel_size=2,
        num_gpus=3.0,
    )
    family = build_family(config)
    context = build_engine(config, family).context
    assert context.family is family
    assert context.prompt_text.count(family.image_placeholder) == 2
    assert context.prompt_text.endswith("assistant\n")
    assert (context.dtype, context.device) == (torch.bfloat16, torch.device("cpu"))
    assert (context.max_model_len, context.max_num_seqs) == (300, 8)
    assert (context.gpu_memory_share, context.tensor_parallel_size, context.seed) == (0.25, 2, 7)


def test_a_built_in_engine_comes_by_its_name(tiny_checkpoint: Path) -> None:
    config = config_of(tiny_checkpoint, "transformers")
    engine = build_engine(config, build_family(config))
    assert isinstance(engine, TransformersEngine)
    assert engine._backbone is not None and next(engine._backbone.parameters()).dtype == torch.bfloat16
    engine.close()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("engine_of_mine:nothing", ConfigError, "returned a NoneType; expected an engine with the methods generate"),
        ("engine_of_mine:NUMBER", ConfigError, "'engine_of_mine:NUMBER' is a int; expected a callable"),
        ("engine_of_mine:two", ConfigError, "missing a required argument: 'more'); expected the arguments (context)"),
        ("engine_of_mine:Absent", ConfigError, "engine_of_mine has no 'Absent'; check the name"),
        ("nowhere_at_all:Engine", ConfigError, "no module 'nowhere_at_all' on node"),
        ("engine_of_mine:busy", EngineError, "did not start: RuntimeError: CUDA out of memory by far"),
        ("engine_of_mine:refuses", ConfigError, "own engine: no licence"),
    ],
)
def test_what_is_wrong_with_ones_own_is_one_line(
    name: str, error: type[SagaError], said: str, tiny_checkpoint: Path
) -> None:
    config = config_of(tiny_checkpoint, name)
    with pytest.raises(error) as caught:
        build_engine(config, build_family(config))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is error


def test_a_factory_is_checked_without_a_start() -> None:
    assert callable(load_engine_factory("engine_of_mine:busy"))
    with pytest.raises(ConfigError, match=r"rollout\.engine: unknown rollout engine 'sglang'; expected one of vllm,"):
        load_engine_factory("sglang")
