"""Who computes: rollout and replay workers, and where all the processes run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from saga_dist.config.registries import ENGINES, name_in
from saga_dist.config.section import Section

MAX_SEQUENCES = 1024
"""Completions that an engine generates at the same time at most; what vLLM allows on large cards."""


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

    engine: Annotated[str, name_in(ENGINES)] = Field(
        "vllm",
        description="vllm, transformers or package.module:object, a function from EngineContext to an engine",
    )
    workers: int = Field(1, ge=1, description="workers at the start")
    idle_release_s: float = Field(
        0.0, ge=0, description="end a worker that idled so long, down to min_workers, until it is needed; 0: never"
    )
    group_size: int = Field(8, ge=2, description="G completions per pair")
    pairs_per_batch: int = Field(16, ge=2, description="pairs drawn from each micro-batch, half same, half different")
    contributing_groups: int = Field(8, ge=1, description="K groups with reward variance per optimizer step")
    max_micro_batches: int = Field(8, ge=1, description="give up filling the buffer after so many micro-batches")
    groups_per_lease: int = Field(
        16, ge=1, description="groups a worker holds, and its engine generates, at once (1,024 completions at most)"
    )
    temperature: float = Field(0.7, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1)
    max_model_len: int = Field(4096, ge=64, description="longest prompt and completion together, tokens")
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
    gpu_memory_utilization: float = Field(
        0.5, gt=0, le=1, description="share of its GPU's memory that the engine may use for weights and KV cache"
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs of one node that the engine shards its weights over; num_gpus tells Ray the same"
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs per rollout worker (Ray)")
    num_cpus: float = Field(1.0, ge=0, description="CPUs per rollout worker (Ray)")
    record: bool = Field(True, description="write every scored group to rollouts/ as Arrow")
    recording: str = Field("", description="run directory whose recorded groups train instead of new ones")

    @property
    def max_sequences(self) -> int:
        """Completions that an engine generates at the same time: all of a lease."""
        return min(self.groups_per_lease * self.group_size, MAX_SEQUENCES)

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
        if self.engine not in ENGINES.builtin:
            return self  # how another engine uses its GPUs is not known here
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
