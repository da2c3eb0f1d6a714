"""Sections of the processes: rollout and replay workers, and the runtime that they run in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from saga_dist.config.registries import ENGINES, name_in
from saga_dist.config.section import Section

MAX_SEQUENCES = 1024
"""Largest number of completions that an engine generates at the same time, as vLLM allows on large cards."""


class WorkersSection(Section):
    """Base of the two sections of workers: their number, and the range within which `saga-dist scale` may change it."""

    workers: int = Field(1, ge=0, description="number of workers at the start of the run")
    min_workers: int = Field(
        0,
        ge=0,
        description="smallest number of workers that `saga-dist scale` may request, and that rollout.idle_release_s "
        "leaves running; 0: the value of workers",
    )
    max_workers: int = Field(
        0, ge=0, description="largest number of workers that `saga-dist scale` may request; 0: the value of workers"
    )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Smallest and largest number of workers, with 0 replaced by ``workers``."""
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
    """Rollouts: generation, dynamic sampling, leases and staleness."""

    engine: Annotated[str, name_in(ENGINES)] = Field(
        "vllm",
        description="rollout engine: vllm, transformers or package.module:object, a function from EngineContext to an "
        "engine",
    )
    workers: int = Field(1, ge=1, description="number of rollout workers at the start of the run")
    idle_release_s: float = Field(
        0.0,
        ge=0,
        description="idle time, seconds, after which a worker is stopped until there is work for it again; at least "
        "min_workers keep running; 0: workers are never stopped for being idle",
    )
    group_size: int = Field(8, ge=2, description="completions per pair, G (paper: 8)")
    pairs_per_batch: int = Field(
        16,
        ge=2,
        description="pairs drawn from each micro-batch, an even number: half same-class, half different-class (not "
        "published)",
    )
    contributing_groups: int = Field(
        8,
        ge=1,
        description="groups with reward variance that an optimizer step trains on, K (paper: 8); not used by the "
        "signal verdict",
    )
    max_micro_batches: int = Field(
        8,
        ge=1,
        description="most micro-batches of one step; when they are used up, the step trains on the contributing groups "
        "it has, even if they are fewer than K (deviation: the paper has no limit); the signal verdict uses one",
    )
    groups_per_lease: int = Field(
        16,
        ge=1,
        description="most groups in flight at one worker, which the engine generates together, at most 1,024 "
        "completions at the same time",
    )
    continuous_feeding: bool = Field(
        True,
        description="True: finished groups leave the engine's batch one by one, new groups take their places at once, "
        "and cancelled groups are aborted; needs Ray and an engine that can do so (vllm, or an own one with the "
        "methods add, step and abort). False, and with other engines: groups are leased together, and the next lease "
        "starts when all of them are finished",
    )
    temperature: float = Field(0.7, gt=0, description="sampling temperature of the completions, above 0 (paper: 0.7)")
    top_p: float = Field(
        0.95, gt=0, le=1, description="nucleus sampling: probability mass that is sampled from, in (0, 1] (paper: 0.95)"
    )
    max_tokens: int = Field(1024, ge=1, description="longest completion, tokens (paper: 1024)")
    max_model_len: int = Field(4096, ge=64, description="longest sequence of prompt and completion together, tokens")
    deadline_s: float = Field(
        600.0,
        gt=0,
        description="longest time that an engine may take for a group, or for all groups of a lease that it "
        "generates together, seconds",
    )
    start_deadline_s: float = Field(
        900.0,
        gt=0,
        description="longest time from the creation of an actor until it is ready, seconds; holds for rollout workers, "
        "replay workers and the learner (Ray)",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="failures of workers on a group after which it is quarantined; after the first failure the groups "
        "of the lease are retried one by one. Also failed starts of each worker after which a run that never had a "
        "worker ends (Ray)",
    )
    max_quarantined: int = Field(8, ge=0, description="groups that a pool may quarantine before the run ends")
    max_staleness: int = Field(
        0,
        ge=0,
        description="largest number of encoder versions by which a group may be behind the learner when it trains; 0: "
        "on-policy (the paper's)",
    )
    importance_truncation: float = Field(
        2.0,
        ge=1,
        description="largest importance weight of a token of a stale or recorded group (not in the paper, which is "
        "on-policy)",
    )
    early_start: bool = Field(
        True,
        description="True: with max_staleness = 0 a step also starts the rollouts of the further micro-batches that it "
        "will likely use, judged by the share of recent groups that contributed, so that workers do not wait between "
        "micro-batches; those that it did not need are cancelled. Each group is sampled from the same tokens with the "
        "same seeds as without (Ray)",
    )
    mismatch_truncation: float = Field(
        0.0,
        ge=0,
        description="largest importance weight p_replay / p_engine of a token of an on-policy group, at least 1, which "
        "corrects for the difference between the two programs; 0: none (the paper's); no figure was taken with it",
    )
    batch_invariant: bool = Field(
        False,
        description="let vLLM compute each completion with the same bits whatever else is in its batch, so that a "
        "retry is the same rollout also in bfloat16; slower, and only on GPUs (vLLM's VLLM_BATCH_INVARIANT)",
    )
    ahead_budget_mb: int = Field(
        4096,
        ge=1,
        description="encoder tokens of micro-batches whose rollouts were started and not consumed at which prefetching "
        "and early starts pause, MiB",
    )
    max_log_prob_gap: float = Field(
        0.05,
        gt=0,
        description="largest difference between the log-probabilities of engine and replay in the check at the "
        "start of training, nats per token; with model.dtype = float32 the mean is judged, with bfloat16 the median "
        "and the estimate of the KL divergence; training does not start above it",
    )
    gpu_memory_utilization: float = Field(
        0.5, gt=0, le=1, description="share of its GPU's memory that the engine may use for weights and KV cache"
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="GPUs of one node over which vLLM shards the weights; with more than 1, set num_gpus to the same "
        "number (0 on CPUs)",
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each rollout worker; may be a fraction")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for each rollout worker")
    record: bool = Field(True, description="write every scored group to rollouts/ in the run directory, as Arrow")
    recording: str = Field(
        "",
        description="run directory whose recorded groups are trained on; no rollout workers are started then; empty: "
        "groups are generated",
    )

    @property
    def max_sequences(self) -> int:
        """Completions that an engine generates at the same time: those of one lease, at most ``MAX_SEQUENCES``."""
        return min(self.groups_per_lease * self.group_size, MAX_SEQUENCES)

    @model_validator(mode="after")
    def _mismatch_truncation_is_a_weight(self) -> RolloutSection:
        if 0 < self.mismatch_truncation < 1:
            raise ValueError(
                f"mismatch_truncation = {self.mismatch_truncation}; expected at least 1, so that equal "
                "log-probabilities have weight 1, or 0 for no correction"
            )
        return self

    @model_validator(mode="after")
    def _only_vllm_is_batch_invariant(self) -> RolloutSection:
        if self.batch_invariant and self.engine in ENGINES.builtin and self.engine != "vllm":
            raise ValueError(
                f'batch_invariant with engine = "{self.engine}", whose groups do not depend on each other but for '
                'rounding; set rollout.batch_invariant = false or rollout.engine = "vllm"'
            )
        return self

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
            return self  # it is not known here how another engine uses its GPUs
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
    """Replay: forward and backward pass through the frozen language model for scored groups."""

    workers: int = Field(
        0,
        ge=0,
        description="number of replay workers at the start of the run; 0: replay runs in the learner's process (as on "
        "the paper's single GPU)",
    )
    completions_per_chunk: int = Field(
        8,
        ge=1,
        description="completions of a group that are replayed together on the shared prefix; fewer take less memory "
        "and do not change the result",
    )
    tokens_per_chunk: int = Field(
        3072,
        ge=1,
        description="tokens of completions that are replayed together, at most 1,024 on a CPU; a longer completion is "
        "replayed alone; fewer take less memory and do not change the result",
    )
    logits_chunk: int = Field(
        1024, ge=1, description="completion positions whose logits are in memory at the same time"
    )
    deadline_s: float = Field(600.0, gt=0, description="longest time for the replay of one group, seconds")
    num_gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs that Ray reserves for each replay worker; from 2 on, the layers of the language model are "
        "distributed over them",
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for each replay worker")


class RuntimeSection(Section):
    """Processes of a run: Ray or one process, resources of the learner, heartbeats and restarts."""

    kind: Literal["ray", "serial"] = Field(
        "ray", description="ray: every part is an actor; serial: all parts in this process, without Ray"
    )
    address: str = Field(
        "",
        description="address of a Ray head, host:port; empty: the cluster of the job or of RAY_ADDRESS, else a local "
        "Ray",
    )
    local_cpus: int = Field(2, ge=1, description="CPUs of a local Ray")
    object_store_mb: int = Field(512, ge=80, description="size of the object store of a local Ray, MiB")
    pin_roles: bool = Field(
        False,
        description="True: every actor requests 1 of a custom Ray resource named after its role (learner, rollout, "
        "replay), so that it runs on a node that has it",
    )
    learner_processes: int = Field(
        1, ge=1, description="data-parallel processes of the learner, each with a share of every micro-batch (Ray)"
    )
    learner_num_gpus: float = Field(
        0.0, ge=0, description="GPUs that Ray reserves for each learner process; may be a fraction"
    )
    learner_num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for each learner process")
    learner_deadline_s: float = Field(1800.0, gt=0, description="longest time for one call to the learner, seconds")
    heartbeat_s: float = Field(
        30.0,
        gt=0,
        description="longest time that a worker or the learner may take to answer a heartbeat before it is replaced, "
        "seconds; a heartbeat is sent after half of this time without an answer (Ray)",
    )
    max_learner_restarts: int = Field(
        3, ge=0, description="learners that may be lost after the last checkpoint before the run ends (Ray)"
    )
    threads: int = Field(0, ge=0, description="torch threads of each process; 0: torch's default")

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
