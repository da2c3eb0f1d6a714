"""The configuration of a run: one strict, frozen pydantic section per part, read from TOML.

Unknown keys, wrong types and out-of-range values are one-line errors that name file and key. Defaults are the paper's
(SAGA, section 4) unless a comment says otherwise. No heavy import here: ``--dry-run`` and ``--help`` stay fast.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga_dist.errors import CheckpointError, ConfigError

FREE_KEYS = (
    "runtime.",
    "checkpoint.",
    "logging.",
    "run.directory",
    "rollout.ahead_budget_mb",
    "rollout.deadline_s",
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
"""Where and how patiently a run is computed, not what: a resume may change these."""


STANDINS = {"standin": 0, "standin-1": 1}
"""Names that stand for shipped weights in ``model.path``, and the seed of their pre-training."""


class Section(BaseModel):
    """Base of all sections: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class RunSection(Section):
    """What a run is, over all."""

    seed: int = Field(0, ge=0)
    steps: int = Field(1000, ge=1, description="optimizer steps")
    directory: str = Field("", description="run directory; the command line's --run-dir wins")


class BirdsSection(Section):
    """Knobs of the built-in world (used with data.layout = "birds")."""

    seed: int = Field(11, ge=0)
    train_classes: int = Field(16, ge=2)
    train_images_per_class: int = Field(16, ge=2)
    flower_correlation: float = Field(1.0, ge=0, le=1, description="how often the flower tells the class in training")
    min_flowers: int = Field(4, ge=0, le=8, description="fewest flowers of an image, in every split")
    max_flowers: int = Field(7, ge=0, le=8, description="most of them; 0: a world without flowers")
    clutter: int = Field(0, ge=0, le=60, description="shapes of any colour behind bird and flowers, in every split")
    bird_scale: float = Field(1.0, ge=0.25, le=1, description="size of the bird, in every split; 1: it fills the image")
    constant_parts: tuple[Literal["bill", "crown", "breast", "wing", "tail", "legs"], ...] = Field(
        (), max_length=3, description="parts of one colour in all training species; they vary in validation and test"
    )
    train_style: float = Field(
        1.0, ge=0, le=2, description="look of training: 0 as in pre-training, 1 shifted, 2 twice"
    )
    test_style: float = Field(1.0, ge=0, le=2, description="look of validation, test and probe images")
    val_images_per_class: int = Field(16, ge=2)
    test_images_per_class: int = Field(32, ge=2)
    probe_images: int = Field(1600, ge=0, description="images of further species to fit linear probes on")

    @model_validator(mode="after")
    def _knobs_agree(self) -> BirdsSection:
        if self.min_flowers > self.max_flowers:
            raise ValueError(
                f"min_flowers = {self.min_flowers} with max_flowers = {self.max_flowers}; expected at most as many; "
                "lower min_flowers or raise max_flowers"
            )
        if len(set(self.constant_parts)) != len(self.constant_parts):
            raise ValueError(f"constant_parts = {list(self.constant_parts)}; expected each part once")
        return self


class DataSection(Section):
    """Images, split, batches."""

    layout: Literal["birds", "folder", "manifest", "cub", "cars", "aircraft", "inat", "sop", "inshop"] = "folder"
    root: str = Field("", description="folder of the data set")
    manifest: str = Field(
        "", description='.csv or .parquet with path, label, split (layout = "manifest"; default: manifest.* in root)'
    )
    train_classes: str = Field(
        "", description="file with one training class name per line (default: first half, sorted)"
    )
    test_classes: str = Field("", description="file with one test class name per line (default: second half)")
    val_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of training classes held out for model selection; 0: none (the paper's)"
    )
    split_hash: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="refuse other data; `saga-dist data check` prints it"
    )
    image_size: int = Field(224, ge=16, description="side of the square, pixels")
    fast_jpeg: bool = Field(False, description="decode large JPEGs at a reduced scale (deviation: other pixels)")
    batch_size: int = Field(64, ge=4, description="images per micro-batch")
    images_per_class: int = Field(4, ge=2)
    flip: bool = Field(False, description="random horizontal flip (deviation: the paper has no augmentation)")
    shift: float = Field(0.0, ge=0, le=0.5, description="random shift, share of the side (deviation)")
    crop: float = Field(
        1.0, gt=0, le=1, description="random crop of at least this share of the area, scaled back (deviation; 1: none)"
    )
    color_jitter: float = Field(0.0, ge=0, le=1, description="random gain per channel, +- this share (deviation)")
    birds: BirdsSection = BirdsSection()

    @model_validator(mode="after")
    def _batch_divides(self) -> DataSection:
        if self.batch_size % self.images_per_class:
            raise ValueError(
                f"batch_size = {self.batch_size} is not divisible by images_per_class = {self.images_per_class}; "
                f"expected whole classes; try batch_size = {self.batch_size - self.batch_size % self.images_per_class}"
            )
        if self.batch_size // self.images_per_class < 2:
            raise ValueError(
                f"batch_size = {self.batch_size} holds one class of {self.images_per_class} images; expected at least "
                "two classes; raise batch_size or lower images_per_class"
            )
        if self.layout != "folder" and (self.train_classes or self.test_classes):
            raise ValueError(
                f'train_classes or test_classes with layout = "{self.layout}"; expected them with layout = "folder" '
                "only; remove them"
            )
        if self.layout != "manifest" and self.manifest:
            raise ValueError(
                f'manifest = "{self.manifest}" with layout = "{self.layout}"; expected it with layout = "manifest"; '
                "remove it or set data.layout"
            )
        if self.layout == "birds" and self.split_hash:
            raise ValueError('split_hash with layout = "birds"; expected it with data on disk only; remove it')
        if self.layout != "birds" and not self.root:
            raise ValueError('root is empty; expected the folder of the data set; set data.root = "/path/to/images"')
        if self.layout == "birds" and self.image_size != 80:
            raise ValueError(
                f"image_size = {self.image_size}; expected 80, the size of the built-in birds; set data.image_size = 80"
            )
        if self.layout == "birds" and self.batch_size // self.images_per_class > self.birds.train_classes:
            raise ValueError(
                f"a batch of {self.batch_size // self.images_per_class} classes from {self.birds.train_classes} "
                "training classes; lower batch_size or raise birds.train_classes"
            )
        return self


class PromptSection(Section):
    """The comparison prompt (T_inst)."""

    vocabulary: str = Field("birds", description="birds, cars, aircraft, standin_birds, or a TOML file")
    variant: Literal["structured", "generic"] = "structured"
    order: Literal["images_first", "text_first"] = "images_first"


class ModelSection(Section):
    """The MLLM whose tower is trained and whose language model judges; and the pooler."""

    path: str = Field("Qwen/Qwen3-VL-8B-Instruct", description='hub name, folder, "standin" or "standin-1"')
    revision: str = Field("main", description="hub revision; pin a commit for a paper run")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    embedding_dim: int = Field(4096, ge=2)
    pooler: Literal["mean", "max", "attention"] = "attention"
    pooler_key: Literal["linear", "mlp"] = Field("linear", description="mlp is a deviation from Appendix B")
    pooler_layer_norm: bool = Field(False, description="layer-norm tokens before the key (deviation)")


class ObjectiveSection(Section):
    """The three losses and their weights."""

    metric_loss: Literal["potential_field", "proxy_anchor", "multi_similarity", "infonce"] = "potential_field"
    metric_params: dict[str, float | int | str | bool] = Field(default_factory=dict)
    lambda_dml: float = Field(1.0, ge=0)
    lambda_lm: float = Field(1.0, ge=0)
    lambda_kl: float = Field(1.0, ge=0)
    kl_layer: int = Field(26, ge=0, description="decoder layer of the attention targets (26 of 36 for Qwen3-VL-8B)")
    advantage_epsilon: float = Field(1e-4, gt=0)

    @property
    def needs_rollouts(self) -> bool:
        """False when only the metric loss trains."""
        return self.lambda_lm > 0 or self.lambda_kl > 0


class WorkersSection(Section):
    """What rollout and replay share: how many workers, and how many `saga-dist scale` may make of them."""

    workers: int = Field(1, ge=0, description="workers at the start")
    min_workers: int = Field(0, ge=0, description="fewest workers that scaling or idle_release_s leave; 0: workers")
    max_workers: int = Field(0, ge=0, description="most workers that scaling may ask for; 0: workers")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return self.min_workers or self.workers, self.max_workers or self.workers

    @model_validator(mode="after")
    def _range_holds_workers(self) -> WorkersSection:
        low, high = self.worker_range
        if not low <= self.workers <= high:
            raise ValueError(
                f"workers = {self.workers} with min_workers = {self.min_workers} and max_workers = "
                f"{self.max_workers}; expected min_workers <= workers <= max_workers (0: as workers)"
            )
        if high and not self.workers:
            raise ValueError(
                f"max_workers = {high} with workers = 0; expected workers >= 1; set workers, or leave max_workers out"
            )
        return self


class RolloutSection(WorkersSection):
    """Generation and dynamic sampling."""

    engine: Literal["vllm", "transformers"] = "vllm"
    workers: int = Field(1, ge=1, description="workers at the start")
    idle_release_s: float = Field(
        0.0, ge=0, description="end a worker that idled so long, down to min_workers, until it is needed; 0: never"
    )
    group_size: int = Field(8, ge=2, description="G completions per pair")
    pairs_per_batch: int = Field(16, ge=2, description="pairs drawn from each micro-batch, half same, half different")
    contributing_groups: int = Field(8, ge=1, description="K groups with reward variance per optimizer step")
    max_micro_batches: int = Field(8, ge=1, description="give up filling the buffer after so many micro-batches")
    groups_per_lease: int = Field(16, ge=1, description="groups a worker holds at once")
    temperature: float = Field(0.7, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1)
    max_model_len: int = Field(4096, ge=64)
    deadline_s: float = Field(600.0, gt=0, description="longest time for one lease")
    start_deadline_s: float = Field(900.0, gt=0, description="longest time to bring a worker up")
    max_attempts: int = Field(
        3,
        ge=1,
        description="workers that may fail on a group, the first of them on a whole lease, before it is set aside",
    )
    max_quarantined: int = Field(8, ge=0, description="groups that may be set aside before the run stops")
    max_staleness: int = Field(
        0, ge=0, description="encoder versions a rollout may be behind when it trains; 0: none (the paper's)"
    )
    importance_truncation: float = Field(2.0, ge=1, description="largest importance weight of a stale token")
    ahead_budget_mb: int = Field(4096, ge=1, description="encoder tokens that may wait for later steps, MiB")
    max_log_prob_gap: float = Field(
        0.05, gt=0, description="refuse to train when engine and replay differ by more per token, nats"
    )
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1)
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs of one node that vLLM spreads its weights over; num_gpus tells Ray the same"
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs per rollout worker (Ray)")
    num_cpus: float = Field(1.0, ge=0, description="CPUs per rollout worker (Ray)")
    record: bool = Field(True, description="write every scored group to rollouts/ as Arrow")
    recording: str = Field("", description="run directory whose recorded groups train instead of new ones")

    @model_validator(mode="after")
    def _even_pairs(self) -> RolloutSection:
        if self.pairs_per_batch % 2:
            raise ValueError(
                f"pairs_per_batch = {self.pairs_per_batch} is odd; expected an even number: half same, half different"
            )
        return self

    @model_validator(mode="after")
    def _tensor_parallel_fits(self) -> RolloutSection:
        size = self.tensor_parallel_size
        if size > 1 and self.engine != "vllm":
            raise ValueError(
                f'tensor_parallel_size = {size} with engine = "{self.engine}": only vLLM spreads its weights; '
                'set rollout.tensor_parallel_size = 1 or rollout.engine = "vllm"'
            )
        if size > 1 and self.num_gpus not in (0, size):  # 0: vLLM for CPUs
            raise ValueError(
                f"tensor_parallel_size = {size} with num_gpus = {self.num_gpus:g}: expected one whole GPU for each "
                f"part; set rollout.num_gpus = {size}"
            )
        if size == 1 and self.num_gpus > 1:
            raise ValueError(
                f"num_gpus = {self.num_gpus:g} with tensor_parallel_size = 1: all but one would idle; set "
                "rollout.tensor_parallel_size to the same number, or rollout.num_gpus = 1"
            )
        return self


class ReplaySection(WorkersSection):
    """Differentiation through the frozen language model."""

    workers: int = Field(0, ge=0, description="at the start; 0: in the learner's process (the paper's shape)")
    completions_per_chunk: int = Field(8, ge=1, description="completions of a group on the prefix at once")
    logits_chunk: int = Field(1024, ge=1, description="completion positions whose logits exist at once")
    deadline_s: float = Field(600.0, gt=0)
    num_gpus: float = Field(
        0.0, ge=0, description="GPUs per replay worker (Ray); from 2 on, the backbone's layers are spread over them"
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs per replay worker (Ray)")


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


class RuntimeSection(Section):
    """Where the parts run."""

    kind: Literal["ray", "serial"] = "ray"
    address: str = Field("", description='Ray address; "" joins the job\'s cluster or starts a local one')
    local_cpus: int = Field(2, ge=1, description="CPUs of a local Ray")
    object_store_mb: int = Field(512, ge=80, description="object store of a local Ray, MiB")
    pin_roles: bool = Field(
        False, description="every actor also asks for 1 of the custom resource named after its role (Ray)"
    )
    learner_processes: int = Field(
        1, ge=1, description="processes of the learner, each with a share of every batch's images (Ray)"
    )
    learner_num_gpus: float = Field(0.0, ge=0, description="GPUs per learner process (Ray)")
    learner_num_cpus: float = Field(1.0, ge=0, description="CPUs per learner process (Ray)")
    learner_deadline_s: float = Field(1800.0, gt=0, description="longest time for one call to the learner")
    heartbeat_s: float = Field(30.0, gt=0, description="a busy worker silent for this long, when asked, is replaced")
    max_learner_restarts: int = Field(3, ge=0, description="new learners without a new checkpoint in between (Ray)")
    threads: int = Field(0, ge=0, description="torch threads per process, 0: torch's own choice")

    @model_validator(mode="after")
    def _learner_processes_fit(self) -> RuntimeSection:
        if self.learner_processes > 1 and self.kind == "serial":
            raise ValueError(
                f'learner_processes = {self.learner_processes} with kind = "serial": one process is all there is; '
                'set runtime.learner_processes = 1 or runtime.kind = "ray"'
            )
        if self.learner_processes > 1 and 0 < self.learner_num_gpus < 1:
            raise ValueError(
                f"learner_processes = {self.learner_processes} with learner_num_gpus = {self.learner_num_gpus:g}: "
                "expected a GPU of its own for each process (NCCL shares none); set runtime.learner_num_gpus = 1"
            )
        return self


class CheckpointSection(Section):
    """Saving and resuming."""

    every_steps: int = Field(100, ge=1)
    keep: int = Field(3, ge=1, description="newest checkpoints to keep; the best one stays in any case")
    mirror: str = Field(
        "",
        pattern=r"^([a-z][a-z0-9+.-]*://.+)?$",
        description='copy them to this URI too (s3://, gs://, hdfs://, file://); "" for none. A run without a local '
        "checkpoint resumes from there",
    )


class EvaluationSection(Section):
    """Evaluation on unseen classes and model selection on validation classes."""

    every_steps: int = Field(100, ge=1, description="validation Recall@1 for model selection")
    verdict_pairs: int = Field(0, ge=0, description="pairs of training and of unseen classes to judge at the end")
    bootstrap_resamples: int = Field(2000, ge=100)


class LoggingSection(Section):
    """Where metrics go besides metrics.jsonl. Has no part in the result of a run: a resume may change it."""

    tensorboard: bool = Field(True, description="event files in RUN/tensorboard")
    wandb: str = Field("", description='Weights & Biases project (extra "wandb"; WANDB_MODE=offline works); "": off')
    mlflow: str = Field("", description='MLflow tracking URI, e.g. of a server (extra "mlflow"); "": off')
    prometheus: bool = Field(False, description="gauges on Ray's own metrics port")


class RunConfig(Section):
    """Root of the configuration."""

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
        return self.objective.needs_rollouts or self.evaluation.verdict_pairs > 0

    @property
    def needs_engine(self) -> bool:
        """True when something must be generated: rollouts that no recording has."""
        return self.needs_mllm and not self.rollout.recording

    def digest(self) -> str:
        """Returns the sha256 of everything that decides the result of the run: what a resume must not change."""
        return hashlib.sha256(json.dumps(self._deciding(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: RunConfig) -> list[str]:
        """Returns ``section.key: mine != theirs`` for every deciding key that differs."""
        mine, theirs = self._deciding(), other._deciding()
        return [
            f"{key}: {mine.get(key)!r} != {theirs.get(key)!r}"
            for key in sorted(mine | theirs)
            if mine.get(key) != theirs.get(key)
        ]

    def _deciding(self) -> dict[str, Any]:
        flat = _flatten(self.model_dump(mode="json"))
        return {key: value for key, value in flat.items() if not key.startswith(FREE_KEYS)}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration in a TOML file with ``section.key=value`` overrides applied.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the file ({error.strerror})", where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text", where=str(path), expected="TOML") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"cannot read the file ({error})", where=repr(str(path)), fix="check the path") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML ({error})", where=str(path)) from error
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, where=str(path))


def load_run_config(path: Path) -> RunConfig:
    """Returns the resolved configuration of a run directory."""
    saved = path / "config.json"
    try:
        tree = json.loads(saved.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(saved), expected="a run directory") from error
    except ValueError as error:
        raise CheckpointError(
            "not valid JSON", where=str(saved), fix="the `train` command of this run writes it again"
        ) from error
    return parse_config(tree, where=str(saved))


def parse_config(tree: dict[str, Any], *, where: str) -> RunConfig:
    """Returns the validated configuration of a nested dict; ``where`` names its source in errors."""
    try:
        return RunConfig.model_validate(_tuples(tree))
    except ValidationError as error:
        raise ConfigError(_first_problem(error), where=where) from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or len(path) < 2 or not all(path):
        raise ConfigError(f"override {override!r}", where="command line", expected="section.key=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        value = {"value": text.strip()}  # a bare word is a string: model.path=standin
    if len(value) != 1:
        raise ConfigError(f"override {override!r}", where="command line", expected="one section.key=value")
    node = tree
    for name in path[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}", where="command line", expected="a key below a section")
    node[path[-1]] = value["value"]


def _tuples(value: Any) -> Any:
    """TOML arrays become tuples, which strict frozen models take."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(part if part.isprintable() else repr(part) for part in location) or "configuration"
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(location[-1], _names_at(location[:-1]), n=1, cutoff=0.5)
            hint = f"; did you mean {'.'.join([*location[:-1], close[0]])}?" if close else "; remove it"
            return f"unknown key {key}{hint}{more}"
        case "missing":
            return f"{key} is missing; add it{more}"
        case "value_error":
            return f"{key}: {message}{more}" if location else f"{message}{more}"
        case _:
            return f"{key} = {first['input']!r}: {message[0].lower() + message[1:]}{more}"


def _names_at(location: Sequence[str]) -> list[str]:
    model: Any = RunConfig
    for name in location:
        model = model.model_fields[name].annotation if name in model.model_fields else Section
    return list(getattr(model, "model_fields", {}))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
