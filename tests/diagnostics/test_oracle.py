"""The oracle: it says the truth, and its gradient is the one of its log-likelihood."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saga_dist.config import RunConfig, load_config
from saga_dist.data.prompt_templates import AnswerKeys
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.diagnostics.oracle import Oracle, train_step
from saga_dist.errors import DataError
from saga_dist.runtime.build import build_learner, build_splits, model_path
from saga_dist.standin.language import COLOR_WORDS, PARTS
from saga_dist.standin.pair_model import END_OF_TURN, PairModel, Tokens
from saga_dist.types import EncoderTokens, ImagePair, ScoredGroup
from saga_dist.workers.learner import Learner

WORLD = Path(__file__).resolve().parents[2] / "configs" / "evidence" / "g16.toml"
SMALL = (
    "run.steps=4",
    "data.batch_size=8",
    "data.images_per_class=2",
    "data.birds.train_classes=4",
    "data.birds.train_images_per_class=4",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.pairs_per_batch=4",
)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(WORLD, SMALL)


@pytest.fixture(scope="module")
def oracle(config: RunConfig) -> Oracle:
    attributes_IA = build_splits(config.data, seed=0).train.attributes_IA
    assert attributes_IA is not None
    return Oracle(config, attributes_IA)


def encoded(config: RunConfig, image_a: int, image_b: int) -> tuple[Learner, ImagePair, EncoderTokens]:
    learner = build_learner(config)
    labels = learner.labels("train")
    pair = ImagePair("p", image_a, image_b, int(labels[image_a]), int(labels[image_b]))
    (tokens,) = learner.encode_pairs("train", [pair])
    return learner, pair, tokens


def test_a_prompt_without_descriptions_marks_none_and_one_with_other_questions_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes_IA = build_splits(config.data, seed=0).train.attributes_IA
    assert attributes_IA is not None

    def asked(variant: str) -> ScoredGroup:
        overrides = [*SMALL, f"prompt.variant={variant}", "objective.lambda_kl=0"]
        return Oracle(load_config(WORLD, overrides), attributes_IA).group(ImagePair("p", 0, 1, 5, 5), encoder_version=0)

    group = asked("generic")
    assert list(json.loads(group.completions.texts[0])) == ["differences", "reasoning", "same_species"]
    assert not group.describes_a[0].any() and not group.describes_b[0].any()
    template = SimpleNamespace(
        render=lambda words: "The same?", answer_keys=lambda words: AnswerKeys(("age", "same"), "same")
    )
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(template=template))
    with pytest.raises(DataError, match=r"prompt.variant = 'mine:template': the true answer to 'age' is not known"):
        asked("mine:template")


def test_it_says_what_is_there_and_marks_who_is_described(config: RunConfig, oracle: Oracle) -> None:
    learner, pair, _ = encoded(config, 0, 5)
    attributes_IA = build_splits(config.data, seed=0).train.attributes_IA
    assert attributes_IA is not None
    group = oracle.group(pair, encoder_version=learner.step)
    (ids,) = group.completions.token_ids
    tokenizer = oracle._tokenizer
    assert ids[-1] == END_OF_TURN
    assert tokenizer.decode(ids[:-1]) == group.completions.texts[0]
    for image, (described,) in ((0, group.describes_a), (5, group.describes_b)):
        text = tokenizer.decode([token for token, inside in zip(ids, described, strict=True) if inside])
        for part, value in zip(PARTS, attributes_IA[image], strict=True):
            assert f'{part}": "{COLOR_WORDS[part][value]}' in text
    assert '"same_species": "no"' in group.completions.texts[0]
    same = ImagePair("q", 0, 1, pair.label_a, pair.label_a)
    assert '"same_species": "yes"' in oracle.group(same, encoder_version=0).completions.texts[0]


@pytest.mark.parametrize("images", [(0, 5), (2, 3)], ids=["different", "same"])
def test_gradient_and_attention_are_those_of_an_independent_autograd_loop(
    config: RunConfig, oracle: Oracle, images: tuple[int, int]
) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    _, pair, tokens = encoded(config, *images)
    (found,) = oracle.gradients([pair], [tokens], want_attention=True)

    # The pre-training code reads whole sequences at once and knows nothing of prefixes, chunks or groups.
    model = Qwen3VLForConditionalGeneration.from_pretrained(model_path(config), dtype=torch.float32).eval()
    reader = PairModel(model, image_size=80)
    values_NW = tokens.values_NW.clone().requires_grad_()
    a, b = (Tokens(half[None, :, :128], (half[None, :, 128:],)) for half in values_NW.chunk(2))
    group = oracle.group(pair, encoder_version=0)
    answer_1T = torch.tensor(group.completions.token_ids)
    with reader.attention_at(config.objective.kl_layer) as rows:
        hidden = reader.hidden(a, b, answer_1T[:, :-1])
    loss = F.cross_entropy(model.lm_head(hidden).transpose(1, 2), answer_1T)
    loss.backward()

    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    assert values_NW.grad is not None and values_NW.grad.abs().max() > 1e-4
    torch.testing.assert_close(found.values_NW, values_NW.grad, rtol=1e-3, atol=1e-6)
    # The row of a token that is read stands one after the row that predicts it; the last token is read by nobody.
    (rows_RC,) = rows[0]
    for target_N, (described,), columns in (
        (found.attention_a_N, group.describes_a, reader.columns_a),
        (found.attention_b_N, group.describes_b, reader.columns_b),
    ):
        assert target_N is not None
        places = [index + 1 for index in np.flatnonzero(described)]
        expected = torch.stack([rows_RC[place][columns] / rows_RC[place][columns].sum() for place in places]).mean(0)
        torch.testing.assert_close(target_N, expected.detach(), rtol=1e-3, atol=1e-5)


def test_several_pairs_are_divided_by_all_their_tokens(config: RunConfig, oracle: Oracle) -> None:
    _, first, tokens = encoded(config, 0, 5)
    second = ImagePair("q", 0, 5, first.label_a, first.label_b)
    twin = EncoderTokens("q", tokens.values_NW, tokens.lengths, tokens.grids, tokens.num_deepstack, 0)
    (alone,) = oracle.gradients([first], [tokens], want_attention=False)
    both = oracle.gradients([first, second], [tokens, twin], want_attention=False)
    assert alone.attention_a_N is None
    for one in both:
        torch.testing.assert_close(2 * one.values_NW, alone.values_NW, rtol=1e-5, atol=1e-8)


@pytest.mark.integration
def test_training_with_it_makes_the_truth_more_likely_and_without_it_does_not(oracle: Oracle) -> None:
    likelihoods = {}
    for name, weights in (("text", ("objective.lambda_dml=0",)), ("metric", ("objective.lambda_lm=0",))):
        config = load_config(WORLD, [*SMALL, *weights, "objective.lambda_kl=0", "optimizer.warmup_fraction=0.0"])
        learner = build_learner(config)
        sampler = ClassBalancedSampler(learner.labels("train"), 8, 2, seed=0)
        probe = [ImagePair(str(index), index, 15 - index, 0, 1) for index in range(4)]

        def loss(learner: Learner = learner, probe: list[ImagePair] = probe) -> float:
            tokens = learner.encode_pairs("train", probe)
            return sum(one.loss for one in oracle.gradients(probe, tokens, want_attention=False))

        before = loss()
        for _ in range(4):
            result = train_step(learner, sampler, config, oracle if name == "text" else None)
        assert (result.metrics["loss/grpo"] > 0) == (name == "text")
        likelihoods[name] = before - loss()
    assert likelihoods["text"] > 0
    assert likelihoods["text"] > likelihoods["metric"]
