"""The root of the configuration: all sections, the checks between them, and the keys that a resume must not change."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from saga_dist.config.comparison import EARLIER_REDUCTION, METRIC_PARAMS_PREFIX, deciding_digest, differing_keys
from saga_dist.config.data import DataSection
from saga_dist.config.method import EvaluationSection, ModelSection, ObjectiveSection, OptimizerSection, PromptSection
from saga_dist.config.metric_params import METRIC_PARAMS, complete_metric_params
from saga_dist.config.section import Section
from saga_dist.config.workers import ReplaySection, RolloutSection, RuntimeSection
from saga_dist.errors import ConfigError

FREE_KEYS = (
    "runtime.",
    "checkpoint.",
    "logging.",
    "data.decode_threads",
    "objective.min_share",
    "objective.idle_steps",
    "run.directory",
    "rollout.ahead_budget_mb",
    "rollout.continuous_feeding",
    "rollout.deadline_s",
    "rollout.early_start",
    "rollout.gpu_memory_utilization",
    "rollout.groups_per_lease",
    "rollout.idle_release_s",
    "rollout.max_attempts",
    "rollout.max_log_prob_gap",
    "rollout.max_quarantined",
    "rollout.max_workers",
    "rollout.min_workers",
    "rollout.num_cpus",
    "rollout.num_gpus",
    "rollout.record",
    "rollout.start_deadline_s",
    "rollout.tensor_parallel_size",
    "rollout.workers",
    "replay.deadline_s",
    "replay.max_workers",
    "replay.min_workers",
    "replay.num_cpus",
    "replay.num_gpus",
    "replay.workers",
)
"""Keys, or prefixes of keys, of resources, deadlines and outputs, which do not decide the result: a resume may change
them."""

ADDED_KEYS = {
    "data.image_field": "",
    "data.label_field": "",
    "model.family": "auto",
    "model.lora_alpha": 32,
    "model.lora_rank": 16,
    "model.train": "all",
    "objective.balance": "none",
    "objective.policy": "model",
    "objective.reward": "verdict",
    "objective.signal": "grpo",
    "replay.tokens_per_chunk": 3072,
    "rollout.batch_invariant": False,
    "rollout.mismatch_truncation": 0.0,
    "run.images": None,
}
"""Keys added after version 0.1.0, each with the value that gives the behaviour of that version.

A key with this value is left out of the digest, so that runs and mirrors of earlier versions are recognised."""


class RunSection(Section):
    """Seed, length and directory of a run."""

    seed: int = Field(
        0,
        ge=0,
        description="random seed of pooler and proxies, validation classes, batches, pairs, augmentation and sampling "
        "(the paper reports three seeds)",
    )
    steps: int = Field(1000, ge=1, description="optimizer steps of the run (the paper trains for three epochs)")
    images: int | None = Field(
        None,
        ge=1,
        description="images to train on, counted each time they are seen, in place of run.steps, which becomes "
        "images / data.batch_size rounded up; for runs whose steps take one micro-batch each",
    )
    directory: str = Field(
        "",
        description="run directory; the option --run-dir has precedence; empty: a folder in runs/ named after the "
        "configuration file",
    )


class CheckpointSection(Section):
    """Checkpoints of the training state, for resuming and model selection."""

    every_steps: int = Field(
        100, ge=1, description="optimizer steps between two checkpoints; the last step has one too"
    )
    keep: int = Field(3, ge=1, description="newest checkpoints that are kept; the selected one is kept in addition")
    mirror: str = Field(
        "",
        pattern=r"^([a-z][a-z0-9+.-]*://.+)?$",
        description="URI that checkpoints are copied to (s3://, gs://, hdfs://, file://); a run without a local "
        "checkpoint resumes from there; empty: no copies",
    )


class LoggingSection(Section):
    """Outputs of the metrics besides metrics.jsonl. They do not affect the result: a resume may change them."""

    tensorboard: bool = Field(True, description="True: write event files for TensorBoard to RUN/tensorboard")
    wandb: str = Field(
        "", description='Weights & Biases project (extra "wandb"; WANDB_MODE=offline is supported); empty: off'
    )
    mlflow: str = Field("", description='MLflow tracking URI, for example of a server (extra "mlflow"); empty: off')
    prometheus: bool = Field(
        False, description="True: export the metrics as gauges on Ray's metrics port (runtime.kind = ray only)"
    )
    group_every_steps: int = Field(
        100,
        ge=0,
        description="optimizer steps between two groups that TensorBoard, Weights & Biases and MLflow receive with all "
        "completions and both images, beginning with step 1; 0: none",
    )


class RunConfig(Section):
    """Root of the configuration: one attribute per section."""

    run: RunSection = RunSection()
    data: DataSection
    prompt: PromptSection = PromptSection()
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    rollout: RolloutSection = RolloutSection()
    replay: ReplaySection = ReplaySection()
    optimizer: OptimizerSection = OptimizerSection()
    runtime: RuntimeSection = RuntimeSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.objective.lambda_kl > 0 and self.prompt.variant == "generic":
            raise ValueError(
                'objective.lambda_kl > 0 with prompt.variant = "generic": the generic prompt describes no image, so '
                "L_KL is undefined; set objective.lambda_kl = 0"
            )
        if self.objective.lambda_kl > 0 and self.model.pooler != "attention":
            raise ValueError(
                f'objective.lambda_kl > 0 with model.pooler = "{self.model.pooler}": only the attention pooler has '
                'weights to align; set objective.lambda_kl = 0 or model.pooler = "attention"'
            )
        if self.objective.signal == "verdict" and self.rollout.max_staleness:
            raise ValueError(
                f'rollout.max_staleness = {self.rollout.max_staleness} with objective.signal = "verdict": nothing is '
                "sampled, so nothing can be sampled ahead; set rollout.max_staleness = 0"
            )
        if self.objective.signal == "verdict" and self.rollout.recording:
            raise ValueError(
                'rollout.recording with objective.signal = "verdict": the verdict loss uses no completions; leave '
                'rollout.recording out or set objective.signal = "grpo"'
            )
        if self.objective.policy == "sampling" and (self.rollout.max_staleness or self.rollout.recording):
            what = f"rollout.max_staleness = {self.rollout.max_staleness}"
            raise ValueError(
                f'objective.policy = "sampling" with {"rollout.recording" if self.rollout.recording else what}: the '
                "importance weights of off-policy groups have no cut at top-p; set "
                'objective.policy = "model", or train on-policy'
            )
        if self.rollout.recording and self.evaluation.verdict_pairs:
            raise ValueError(
                f"evaluation.verdict_pairs = {self.evaluation.verdict_pairs} with rollout.recording: verdicts need an "
                "engine, a recording has none; set evaluation.verdict_pairs = 0"
            )
        if self.rollout.pairs_per_batch > self.data.batch_size:
            raise ValueError(
                f"rollout.pairs_per_batch = {self.rollout.pairs_per_batch} from data.batch_size = "
                f"{self.data.batch_size} images; expected at most one pair per image; lower rollout.pairs_per_batch"
            )
        if self.logging.prometheus and self.runtime.kind != "ray":
            raise ValueError(
                f'logging.prometheus = true with runtime.kind = "{self.runtime.kind}": the gauges are exported by Ray; '
                "set logging.prometheus = false"
            )
        return self

    @model_validator(mode="after")
    def _images_decide_the_steps(self) -> RunConfig:
        if self.run.images is None:
            return self
        if self.objective.needs_rollouts and self.rollout.max_micro_batches > 1:
            raise ValueError(
                f"run.images = {self.run.images} with rollout.max_micro_batches = {self.rollout.max_micro_batches}: "
                "the number of images a step varies; leave run.images out or set rollout.max_micro_batches = 1"
            )
        steps = -(-self.run.images // self.data.batch_size)
        # Sections are frozen for their users; this is still their validation.
        object.__setattr__(self, "run", self.run.model_copy(update={"steps": steps}))
        return self

    @model_validator(mode="after")
    def _metric_loss_has_its_parameters(self) -> RunConfig:
        loss = self.objective.metric_loss
        if loss in METRIC_PARAMS:
            try:
                complete_metric_params(loss, self.objective.metric_params)
            except ConfigError as error:  # pydantic expects a ValueError
                raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _learner_processes_have_work(self) -> RunConfig:
        processes = self.runtime.learner_processes
        if processes > self.data.batch_size:
            raise ValueError(
                f"runtime.learner_processes = {processes} for data.batch_size = {self.data.batch_size} images; "
                "expected at least one image for each; lower runtime.learner_processes"
            )
        if processes > 1 and self.needs_mllm and not self.replay.workers:
            raise ValueError(
                f"runtime.learner_processes = {processes} with replay.workers = 0: token gradients must reach every "
                "process; expected replay workers of their own; set replay.workers = 1 or more"
            )
        return self

    @property
    def needs_mllm(self) -> bool:
        """True when the frozen MLLM is needed: to train with it, or to judge evaluation pairs."""
        return self.objective.needs_mllm or self.evaluation.verdict_pairs > 0

    @property
    def needs_engine(self) -> bool:
        """True when a rollout engine is needed: completions train or are evaluated, and no recording has them."""
        samples = self.objective.needs_rollouts or self.evaluation.verdict_pairs > 0
        return samples and not self.rollout.recording

    @property
    def completions_per_pair(self) -> int:
        """Completions of a pair that replay differentiates: G, or the two verdicts."""
        return 2 if self.objective.needs_verdicts else self.rollout.group_size

    @property
    def completions_at_once(self) -> int:
        """Completions of a pair whose activations replay holds at the same time; both verdicts always run together."""
        size = self.completions_per_pair
        return size if self.objective.needs_verdicts else min(size, self.replay.completions_per_chunk)

    def digest(self) -> str:
        """Returns the sha256 of the keys that decide the result of the run, which a resume must not change."""
        return deciding_digest(_without_added(self.deciding()))

    def differences(self, other: RunConfig) -> list[str]:
        """Returns ``section.key: mine != theirs`` for every key that decides the result and differs.

        Args:
            other: the configuration to compare with.
        """
        return differing_keys(self.deciding(), other.deciding())

    def differences_from_digest(self, digest: str) -> list[str]:
        """Returns the keys whose default has changed since an earlier version wrote a digest of this configuration.

        Args:
            digest: ``digest`` as the earlier version computed it; the list is empty when it is of other values.
        """
        mine = self.deciding()
        unset = {key: value for key, value in mine.items() if key not in EARLIER_REDUCTION}
        if deciding_digest(_without_added(unset)) != digest:
            return []
        return differing_keys({**unset, **EARLIER_REDUCTION}, mine)

    def deciding(self) -> dict[str, Any]:
        """Returns the values of the keys that decide the result, by ``section.key``.

        The default reduction of the Potential Field loss is included since it differs from version 0.1.0's.
        """
        flat = _flatten(self.model_dump(mode="json"))
        if self.objective.metric_loss == "potential_field":
            reduction = METRIC_PARAMS["potential_field"]["reduction"].default
            flat.setdefault(f"{METRIC_PARAMS_PREFIX}reduction", reduction)
        return {key: value for key, value in flat.items() if not key.startswith(FREE_KEYS)}


def _without_added(values: dict[str, Any]) -> dict[str, Any]:
    """Returns deciding keys without those of later versions that have the value of version 0.1.0's behaviour."""
    return {key: value for key, value in values.items() if (key, value) not in ADDED_KEYS.items()}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
