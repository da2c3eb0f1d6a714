"""Sections of the method: prompt, model, objective, optimizer and evaluation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from saga_dist.config.registries import METRIC_LOSSES, MODEL_FAMILIES, PROMPT_TEMPLATES, REWARDS, name_in
from saga_dist.config.section import Section
from saga_dist.utils.registry import is_import_path

STANDINS = {"standin": 0, "standin-1": 1}
"""Names of the shipped stand-in weights in ``model.path``, and the seed of their pre-training."""
AUTO = "auto"
"""Value of ``model.family`` that takes the family from the checkpoint's config.json."""
_LAST_BLOCKS = re.compile(r"last:([1-9][0-9]{0,3})")


class PromptSection(Section):
    """The comparison prompt T_inst: its vocabulary, its template and the order of images and text."""

    vocabulary: str = Field(
        "birds",
        description="words of the prompt (item, expert, attributes): birds, cars, aircraft, standin_birds, or the path "
        "of a TOML file",
    )
    variant: Annotated[str, name_in(PROMPT_TEMPLATES)] = Field(
        "structured",
        description="template: structured (describes both images by attribute), generic (describes neither) or "
        "package.module:object, a PromptTemplate",
    )
    order: Literal["images_first", "text_first"] = Field(
        "images_first",
        description="order of the prompt: images_first (the paper's Eq. 1) or text_first (its Fig. 2; the KV cache of "
        "the text is reused)",
    )


class ModelSection(Section):
    """The MLLM, whose vision tower is trained and whose language model stays frozen, and the pooler."""

    path: str = Field(
        "Qwen/Qwen3-VL-8B-Instruct",
        description="checkpoint in Hugging Face format: hub name or folder; or standin, standin-1: the shipped models",
    )
    revision: str = Field("main", description="revision on the hub; pin a commit for figures that you publish")
    family: Annotated[str, name_in(MODEL_FAMILIES, besides=AUTO)] = Field(
        AUTO,
        description="model family: auto (from the checkpoint's config.json), qwen3_vl, qwen2_5_vl, internvl or "
        "package.module:object, a subclass of Family",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="dtype of the frozen weights and of the encoder tokens that are sent to workers, and of the "
        "learner's autocast, whose weights stay float32 (paper: bfloat16)",
    )
    device: str = Field("auto", description="torch device: auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N")
    embedding_dim: int = Field(
        4096, ge=2, description="dimension of an embedding, D_e (paper: 4096 in the main results, also 512 and 128)"
    )
    pooler: Literal["mean", "max", "attention"] = Field(
        "attention",
        description="pooler: attention, mean or max; objective.lambda_kl > 0 requires attention (paper: attention for "
        "SAGA, mean for its baselines)",
    )
    pooler_key: Literal["linear", "mlp"] = Field(
        "linear",
        description="key projection of the attention pooler: linear (Appendix B) or mlp, two layers (deviation)",
    )
    pooler_layer_norm: bool = Field(
        False, description="True: layer-normalise tokens before the key of the attention pooler (deviation)"
    )
    train: str = Field(
        "all",
        description="part of the vision tower that trains, beside the pooler: all (the paper's), last:N (the last N "
        "blocks and the mergers that read them) or lora (low-rank updates of all linear layers, extra lora); the other "
        "weights stay as they are and take neither gradients nor optimizer state",
    )
    lora_rank: int = Field(16, ge=1, description='rank of the low-rank updates; used with train = "lora" only')
    lora_alpha: int = Field(32, ge=1, description="the low-rank updates are multiplied by lora_alpha / lora_rank")

    @property
    def last_blocks(self) -> int | None:
        """Number of blocks that train, counted from the tower's end; None unless ``train`` is ``last:N``."""
        match = _LAST_BLOCKS.fullmatch(self.train)
        return int(match[1]) if match else None

    @field_validator("train")
    @classmethod
    def _names_a_part(cls, train: str) -> str:
        if train not in ("all", "lora") and not _LAST_BLOCKS.fullmatch(train):
            raise ValueError(
                f'{train!r} is no part of the tower; expected "all", "lora" or "last:N" with N of 1 or more, for '
                'example "last:4"'
            )
        return train

    @property
    def own_family(self) -> str:
        """Import path of a family that is not built in; empty for a built-in one."""
        return self.family if is_import_path(self.family) else ""


class ObjectiveSection(Section):
    """The signal of the frozen MLLM, the three losses and their weights."""

    signal: Literal["grpo", "verdict"] = Field(
        "grpo",
        description="loss that the frozen MLLM gives: grpo (the paper's: rewards of sampled completions) or verdict (a "
        "baseline of ours: -log p(right verdict) of a forced answer, nothing is sampled and no rollout worker is "
        "started; a step is one micro-batch, all of whose pairs train)",
    )
    reward: Annotated[str, name_in(REWARDS)] = Field(
        "verdict",
        description="reward of a completion: verdict (the paper's: 1 for the right verdict, else 0) or "
        "package.module:object, a function (text, pair, prompt) -> (value, is_correct)",
    )
    policy: Literal["model", "sampling"] = Field(
        "model",
        description="distribution whose log-probabilities the GRPO loss has: model (temperature 1, whole vocabulary) "
        "or sampling (the one that completions are sampled from: temperature, top-p; costs a sort of the vocabulary "
        "for each token in replay; on-policy runs only); not published, and no figure was taken with sampling",
    )
    metric_loss: Annotated[str, name_in(METRIC_LOSSES)] = Field(
        "potential_field",
        description="metric loss: potential_field (the paper's main results), proxy_anchor, multi_similarity, infonce "
        "or package.module:object, a function (num_classes, embedding_dim, seed, **metric_params) -> torch.nn.Module",
    )
    metric_params: dict[str, float | int | str | bool] = Field(
        default_factory=dict,
        description="parameters of the metric loss by name; parameters left out have the loss's defaults (for "
        "potential_field not published)",
    )
    lambda_dml: float = Field(1.0, ge=0, description="weight of the metric loss (paper: 1)")
    lambda_lm: float = Field(
        1.0, ge=0, description="weight of the GRPO loss (paper: 1), or of the verdict loss; 0: no such gradient"
    )
    lambda_kl: float = Field(
        1.0,
        ge=0,
        description="weight of the attention alignment (paper: 1); 0: off; above 0 it requires the attention pooler, a "
        "prompt that describes both images, and the signal grpo",
    )
    balance: Literal["none", "gradient_norm"] = Field(
        "none",
        description="balance of the losses: none (paper) adds them with their weights; gradient_norm scales, in every "
        "step, the gradient of GRPO (at the tower's output) and of the attention alignment (at the pooler) to the norm "
        "of the metric loss's times lambda_lm / lambda_dml, or lambda_kl / lambda_dml (a deviation; no committed "
        "figure was taken with it)",
    )
    min_share: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="a loss with a positive weight whose share of the gradient stays below this value for "
        "objective.min_share_steps steps causes one warning; 0: no warning",
    )
    min_share_steps: int = Field(
        20, ge=1, description="consecutive steps with a share below objective.min_share before the warning"
    )
    idle_steps: int = Field(
        10,
        ge=0,
        description="consecutive steps to which the frozen MLLM contributes no gradient, after which one warning names "
        "the cause; 0: no warning",
    )
    kl_layer: int = Field(
        26,
        ge=0,
        description="decoder layer of the attention targets, counted from 0 (paper: 26 of the 36 of Qwen3-VL-8B; about "
        "3/4 of the depth of another model)",
    )
    advantage_epsilon: float = Field(
        1e-4,
        gt=0,
        description="constant added to the standard deviation of a group's rewards in the advantage (not published)",
    )

    @model_validator(mode="after")
    def _balance_has_a_reference(self) -> ObjectiveSection:
        if self.balance != "none" and not self.lambda_dml:
            raise ValueError(
                f'balance = "{self.balance}" with lambda_dml = 0: the other losses are scaled to the metric loss; '
                'set lambda_dml above 0, or balance = "none"'
            )
        return self

    @model_validator(mode="after")
    def _signal_agrees(self) -> ObjectiveSection:
        if self.signal == "verdict" and self.lambda_kl > 0:
            raise ValueError(
                f'lambda_kl = {self.lambda_kl:g} with signal = "verdict": the forced answer describes no image, so '
                'L_KL is undefined; set objective.lambda_kl = 0 or objective.signal = "grpo"'
            )
        if self.signal == "verdict" and self.reward != "verdict":
            raise ValueError(
                f'reward = "{self.reward}" with signal = "verdict": no completion is sampled, so there is none to '
                'reward; leave objective.reward out or set objective.signal = "grpo"'
            )
        return self

    @property
    def needs_mllm(self) -> bool:
        """False when only the metric loss trains."""
        return self.lambda_lm > 0 or self.lambda_kl > 0

    @property
    def needs_rollouts(self) -> bool:
        """True when sampled completions of the MLLM train."""
        return self.needs_mllm and self.signal == "grpo"

    @property
    def needs_verdicts(self) -> bool:
        """True when the likelihood of the MLLM's verdict trains, without completions."""
        return self.needs_mllm and self.signal == "verdict"


class OptimizerSection(Section):
    """AdamW with gradient clipping, linear warm-up and a learning-rate schedule."""

    lr_encoder: float = Field(2e-5, gt=0, description="peak learning rate of the vision tower (paper: 2e-5)")
    lr_pooler: float = Field(1e-4, gt=0, description="peak learning rate of the pooler (paper: 1e-4)")
    proxy_lr_multiplier: float = Field(
        100.0, gt=0, description="learning rate of the metric loss's proxies as a multiple of lr_pooler (not published)"
    )
    weight_decay: float = Field(
        0.01,
        ge=0,
        description="weight decay of encoder and pooler; proxies have none (not published; 0.01 is AdamW's default)",
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of run.steps with linear warm-up, in [0, 1) (paper: 0.05)"
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after warm-up: cosine towards 0 (paper) or constant"
    )
    clip_norm: float = Field(
        1.0,
        gt=0,
        description="largest gradient norm, of encoder and pooler together and of the proxies separately (paper: 1.0, "
        "without saying of which tensors)",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="True: recompute the tower's activations in the backward pass; less memory, more time, same result",
    )


class EvaluationSection(Section):
    """Evaluation on unseen classes, and model selection on validation classes."""

    every_steps: int = Field(
        100,
        ge=1,
        description="optimizer steps between two evaluations of Recall@1 on the validation classes, which select the "
        "step; not used without validation classes (data.val_fraction = 0)",
    )
    verdict_pairs: int = Field(
        0,
        ge=0,
        description="pairs of training images, and as many of test images, that the frozen MLLM judges at the end; 0: "
        "none",
    )
    bootstrap_resamples: int = Field(
        2000, ge=100, description="bootstrap resamples, over classes, of the 95 % interval of Recall@1"
    )
