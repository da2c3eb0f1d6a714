"""What the method is: prompt, model, objective, optimizer, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from saga_dist.config.registries import METRIC_LOSSES, MODEL_FAMILIES, PROMPT_TEMPLATES, REWARDS, name_in
from saga_dist.config.section import Section
from saga_dist.utils.registry import is_import_path

STANDINS = {"standin": 0, "standin-1": 1}
"""Names that stand for shipped weights in ``model.path``, and the seed of their pre-training."""
AUTO = "auto"
"""Value of ``model.family`` that leaves the family to the checkpoint's config.json."""


class PromptSection(Section):
    """The comparison prompt (T_inst)."""

    vocabulary: str = Field("birds", description="birds, cars, aircraft, standin_birds, or a TOML file")
    variant: Annotated[str, name_in(PROMPT_TEMPLATES)] = Field(
        "structured",
        description="structured (describes both images), generic or package.module:object, a PromptTemplate",
    )
    order: Literal["images_first", "text_first"] = Field(
        "images_first", description="images_first (the paper's formula) or text_first (its Fig. 2: the text is cached)"
    )


class ModelSection(Section):
    """The MLLM whose tower is trained and whose language model judges; and the pooler."""

    path: str = Field("Qwen/Qwen3-VL-8B-Instruct", description='hub name, folder, "standin" or "standin-1"')
    revision: str = Field("main", description="hub revision; pin a commit for a paper run")
    family: Annotated[str, name_in(MODEL_FAMILIES, besides=AUTO)] = Field(
        AUTO,
        description="auto (by the checkpoint's config.json), qwen3_vl, qwen2_5_vl, internvl or package.module:object, "
        "a subclass of Family",
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    embedding_dim: int = Field(4096, ge=2)
    pooler: Literal["mean", "max", "attention"] = "attention"
    pooler_key: Literal["linear", "mlp"] = Field("linear", description="mlp is a deviation from Appendix B")
    pooler_layer_norm: bool = Field(False, description="layer-norm tokens before the key (deviation)")

    @property
    def own_family(self) -> str:
        """Import path of the family; empty where it is a built-in one."""
        return self.family if is_import_path(self.family) else ""


class ObjectiveSection(Section):
    """The reward, the three losses and their weights."""

    reward: Annotated[str, name_in(REWARDS)] = Field(
        "verdict",
        description="verdict (1 where the verdict is right, else 0) or package.module:object, a function (text, pair, "
        "prompt) -> (value, is_correct)",
    )
    metric_loss: Annotated[str, name_in(METRIC_LOSSES)] = Field(
        "potential_field",
        description="potential_field, proxy_anchor, multi_similarity, infonce or package.module:object, a function "
        "(num_classes, embedding_dim, seed, **metric_params) -> torch.nn.Module",
    )
    metric_params: dict[str, float | int | str | bool] = Field(
        default_factory=dict,
        description="parameters of the metric loss by name; its own defaults hold for those left out",
    )
    lambda_dml: float = Field(1.0, ge=0)
    lambda_lm: float = Field(1.0, ge=0)
    lambda_kl: float = Field(1.0, ge=0)
    kl_layer: int = Field(26, ge=0, description="decoder layer of the attention targets (26 of 36 for Qwen3-VL-8B)")
    advantage_epsilon: float = Field(1e-4, gt=0)

    @property
    def needs_rollouts(self) -> bool:
        """False when only the metric loss trains."""
        return self.lambda_lm > 0 or self.lambda_kl > 0


class OptimizerSection(Section):
    """AdamW, cosine, warm-up, clip."""

    lr_encoder: float = Field(2e-5, gt=0)
    lr_pooler: float = Field(1e-4, gt=0)
    proxy_lr_multiplier: float = Field(100.0, gt=0, description="learning rate of proxies: this times lr_pooler")
    weight_decay: float = Field(0.01, ge=0, description="not published; 0.01 is AdamW's default")
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False


class EvaluationSection(Section):
    """Evaluation on unseen classes and model selection on validation classes."""

    every_steps: int = Field(100, ge=1, description="validation Recall@1 for model selection")
    verdict_pairs: int = Field(0, ge=0, description="pairs of training and of unseen classes to judge at the end")
    bootstrap_resamples: int = Field(2000, ge=100)
