"""``--dry-run`` with objects of one's own: they are imported and tried, and a mistake in one is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.prompt_templates import STRUCTURED
from saga_dist.errors import ConfigError
from saga_dist.runtime.extension_check import check_extensions
from saga_dist.runtime.preflight import describe


class Pull(nn.Module):
    """Distance to a proxy per class, to a power."""

    def __init__(self, num_classes: int, embedding_dim: int, seed: int, power: float = 2.0) -> None:
        super().__init__()
        self.proxies_CE = nn.Parameter(torch.zeros(num_classes, embedding_dim))
        self.power = power

    def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> torch.Tensor:
        return (embeddings_IE - self.proxies_CE[labels_I]).norm(dim=-1).pow(self.power).mean()


def loss_of(function: Callable[..., Any]) -> Callable[..., nn.Module]:
    """A factory whose loss is ``function``."""

    class Loss(nn.Module):
        def forward(self, embeddings_IE: torch.Tensor, labels_I: torch.Tensor) -> Any:
            return function(embeddings_IE, labels_I)

    return lambda *, num_classes, embedding_dim, seed: Loss()


def fails(*arguments: Any) -> Any:
    raise ValueError("first line\nsecond line")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the module ``mine`` was asked for."""
    asked: list[tuple[Any, ...]] = []

    def reward(text: str, pair: Any, prompt: Any) -> tuple[float, bool]:
        asked.append((text, pair.same, prompt.verdict_key))
        return 0.5, pair.same

    module = SimpleNamespace(
        reward=reward,
        two_arguments=lambda text, pair: (0.0, False),
        half_a_result=lambda text, pair, prompt: 0.5,
        fails=fails,
        template=SimpleNamespace(render=lambda words: words.plural, answer_keys=STRUCTURED.answer_keys),
        fails_to_render=SimpleNamespace(render=fails, answer_keys=STRUCTURED.answer_keys),
        Pull=Pull,
        constant=loss_of(lambda embeddings_IE, labels_I: torch.zeros((), requires_grad=True)),
        no_graph=loss_of(lambda embeddings_IE, labels_I: embeddings_IE.detach().sum()),
        log_of_zero=loss_of(lambda embeddings_IE, labels_I: (embeddings_IE * 0).sum().log()),
        raising=loss_of(fails),
    )
    monkeypatch.setitem(sys.modules, "mine", module)
    return asked


def configured(**sections: dict[str, Any]) -> RunConfig:
    return parse_config(
        {"data": {"layout": "birds", "image_size": 80}, "model": {"path": "standin", "embedding_dim": 8}, **sections},
        where="test",
    )


def test_own_objects_that_work_pass(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    objective = {"reward": "mine:reward", "metric_loss": "mine:Pull", "metric_params": {"power": 3.0}, "kl_layer": 2}
    plan = describe(configured(objective=objective, prompt={"variant": "mine:template"}), tmp_path / "run")
    assert calls == [("", True, "same_species"), ("", False, "same_species")]
    assert "losses   1 x mine:Pull" in plan
    assert "reward   mine:reward" in plan
    assert "prompt   mine:template, words of birds, images_first" in plan


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"reward": "nowhere_at_all:f"}}, "objective.reward: 'nowhere_at_all:f': no module"),
        ({"objective": {"reward": "mine:nothing"}}, "objective.reward: 'mine:nothing': mine has no 'nothing'"),
        (
            {"objective": {"reward": "mine:two_arguments"}},
            "'mine:two_arguments', pair dry-run: raised TypeError: .*take",
        ),
        ({"objective": {"reward": "mine:half_a_result"}}, "'mine:half_a_result', pair dry-run: returned 0.5; expected"),
        ({"objective": {"reward": "mine:fails"}}, "pair dry-run: raised ValueError: first line second line"),
        (
            {"objective": {"metric_loss": "mine:Pull", "metric_params": {"powr": 1}}},
            "metric_params.powr: mine:Pull has",
        ),
        ({"objective": {"metric_loss": "mine:fails"}}, "'mine:fails' raised TypeError: .*unexpected keyword argument"),
        (
            {"objective": {"metric_loss": "mine:constant"}},
            "'mine:constant' gave 0 on four random images, with no gradi",
        ),
        (
            {"objective": {"metric_loss": "mine:no_graph"}},
            "'mine:no_graph' raised RuntimeError: .*does not require grad",
        ),
        (
            {"objective": {"metric_loss": "mine:log_of_zero"}},
            "'mine:log_of_zero' gave -inf .* gradient that is not fini",
        ),
        ({"objective": {"metric_loss": "mine:raising"}}, "'mine:raising' raised ValueError: first line second line"),
        ({"prompt": {"variant": "mine:reward"}}, "prompt.variant: 'mine:reward' has no method render"),
        (
            {"prompt": {"variant": "mine:fails_to_render"}},
            "'mine:fails_to_render' raised ValueError: first line second",
        ),
        ({"prompt": {"vocabulary": "whales"}}, "prompt.vocabulary = 'whales'"),
    ],
)
def test_mistakes_are_one_line(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_extensions(configured(**sections))
    assert "\n" not in str(caught.value)


def test_what_the_run_would_not_call_is_left_alone(calls: list[tuple[Any, ...]]) -> None:
    metric_loss_only = {"lambda_lm": 0.0, "lambda_kl": 0.0}
    check_extensions(configured(objective={**metric_loss_only, "reward": "nowhere_at_all:f"}))
    check_extensions(configured(objective={**metric_loss_only, "reward": "mine:fails", "metric_loss": "mine:Pull"}))
    assert calls == []
    judged = configured(objective={**metric_loss_only, "reward": "mine:reward"}, evaluation={"verdict_pairs": 2})
    check_extensions(judged)
    assert len(calls) == 2
