"""GPUs that are not there, are shared by accident or have no room, and wrong settings of replay and engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config
from saga_dist.models.model_files import ModelFiles
from saga_dist.runtime.devices import replay_devices, resolve_device
from saga_dist.runtime.validation import gpu_requests
from saga_dist.workers.engines.vllm_arguments import EngineSize, gpu_arguments

DRY_RUN = "train run.toml --run-dir {folder}/run --dry-run"
ON_RAY = f"{DRY_RUN} runtime.kind=ray runtime.local_cpus=16"
GB = 10**9
QWEN_8B = EngineSize(weights=17_534_247_392, token=147_456, context=4096, sequences=128)
QWEN_32B = EngineSize(weights=66_700_000_000, token=262_144, context=4096, sequences=128)


def write(workspace: Workspace) -> None:
    """Writes the tiny run, which is valid."""
    workspace.write_config()


def with_gpus(count: int) -> Callable[[Workspace], None]:
    """Returns a preparation: a run, on a machine with so many GPUs."""

    def prepare(workspace: Workspace) -> None:
        write(workspace)
        workspace.patch.setattr(gpu_requests, "visible_gpus", lambda: count)

    return prepare


def device(name: str, gpus: int) -> Callable[[Workspace], Any]:
    """Returns an act: resolves ``model.device`` in a process that sees so many GPUs."""

    def act(workspace: Workspace) -> Any:
        workspace.patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        workspace.patch.setattr(torch.cuda, "device_count", lambda: gpus)
        return resolve_device(name)

    return act


def spread_replay(workspace: Workspace) -> Any:
    """Asks for two GPUs of a replay worker in a process that sees one."""
    workspace.patch.setattr(torch.cuda, "is_available", lambda: True)
    workspace.patch.setattr(torch.cuda, "device_count", lambda: 1)
    path = workspace.write_config(model={"device": "auto"}, replay={"workers": 1, "num_gpus": 2.0})
    return replay_devices(load_config(path))


def engine(size: EngineSize, memory: int, share: float, shards: int = 1) -> Callable[[Workspace], Any]:
    """Returns an act: the arguments of an engine on GPUs of ``memory`` bytes."""
    return lambda workspace: gpu_arguments(size, memory, share, shards)


def weights(write_files: Callable[[Path], Any]) -> Callable[[Workspace], Any]:
    """Returns an act: counts the parameters of a checkpoint whose files are as written."""

    def act(workspace: Workspace) -> int:
        folder = workspace.folder / "model"
        folder.mkdir()
        write_files(folder)
        return ModelFiles(folder).num_parameters()

    return act


def index(folder: Path, content: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


ROWS = [
    # ------------------------------------------------ requests
    BadInput(
        "replay workers that request no GPU where there are two",
        "GPU requests",
        f"{ON_RAY} replay.workers=2 model.device=auto",
        ("replay.workers = 2 with replay.num_gpus = 0", "first GPU", "set replay.num_gpus = 1, or 0.5"),
        with_gpus(2),
        "note",
    ),
    BadInput(
        "rollout workers that request no GPU where there is one",
        "GPU requests",
        f"{ON_RAY} rollout.workers=3 model.device=auto",
        ("rollout.workers = 3 with rollout.num_gpus = 0", "or 0.33 to share one on purpose"),
        with_gpus(1),
        "note",
    ),
    BadInput(
        "workers of both roles that request no GPU",
        "GPU requests",
        f"{ON_RAY} rollout.workers=2 replay.workers=4 model.device=auto",
        ("rollout.workers = 2", "replay.workers = 4", "or 0.25"),
        with_gpus(4),
        "note",
    ),
    BadInput(
        "learner processes that would share a GPU",
        "GPU requests",
        f"{ON_RAY} runtime.learner_processes=2 replay.workers=1 model.device=auto",
        ("runtime.learner_processes = 2", "NCCL refuses", "set runtime.learner_num_gpus = 1"),
        with_gpus(2),
    ),
    BadInput(
        "learner processes with a share of a GPU each",
        "GPU requests",
        f"{ON_RAY} runtime.learner_processes=2 runtime.learner_num_gpus=0.5 replay.workers=1",
        ("learner_num_gpus = 0.5", "set runtime.learner_num_gpus = 1"),
        write,
    ),
    BadInput(
        "a replay worker that is spread over more GPUs than its process sees",
        "GPU requests",
        spread_replay,
        ("replay.num_gpus = 2 but 1 CUDA devices", "lower it"),
    ),
    # ------------------------------------------------ devices
    BadInput("a third GPU of two", "CUDA device", device("cuda:2", 2), ("'cuda:2' but 2 CUDA device(s)", "auto")),
    BadInput("CUDA without a GPU", "CUDA device", device("cuda", 0), ("'cuda' but no CUDA device", 'use "auto"')),
    BadInput(
        "the second GPU where there is none",
        "CUDA device",
        device("cuda:1", 0),
        ("'cuda:1' but no CUDA device", "auto"),
    ),
    BadInput(
        "a device named gpu", "CUDA device", device("gpu", 2), ("model.device = 'gpu'", "auto, cpu, cuda or cuda:N")
    ),
    BadInput("a GPU with a name", "CUDA device", device("cuda:a", 2), ("model.device = 'cuda:a'", "cuda:N")),
    BadInput("a GPU before the first", "CUDA device", device("cuda:-1", 2), ("model.device = 'cuda:-1'", "cuda:N")),
    # ------------------------------------------------ room for the cache
    BadInput(
        "a share that is smaller than the weights",
        "KV cache",
        engine(QWEN_8B, 80 * GB, 0.2),
        ("rollout.gpu_memory_utilization = 0.2", "leaves 0.0 GB", "at least 0.6 GB", "raise it"),
    ),
    BadInput(
        "a share with room for the weights only",
        "KV cache",
        engine(QWEN_8B, 80 * GB, 0.26),
        ("rollout.gpu_memory_utilization = 0.26 of a GPU of 80.0 GB", "beside 20.8 GB"),
    ),
    BadInput(
        "a whole GPU that is smaller than the weights",
        "KV cache",
        engine(QWEN_8B, 16 * GB, 1.0),
        ("rollout.gpu_memory_utilization = 1 of a GPU of 16.0 GB", "larger GPU"),
    ),
    BadInput(
        "a model of 32 B on one card of 80 GB at half of it",
        "KV cache",
        engine(QWEN_32B, 80 * GB, 0.5),
        ("beside 69.9 GB", "rollout.tensor_parallel_size"),
    ),
    BadInput(
        "a model of 32 B on two cards without room on either",
        "KV cache",
        engine(QWEN_32B, 80 * GB, 0.45, shards=2),
        ("beside 36.6 GB", "at least 0.5 GB"),
    ),
    BadInput(
        "a context that fills more than the room",
        "KV cache",
        engine(EngineSize(17 * GB, 147_456, 262_144, 1), 80 * GB, 0.6),
        ("rollout.max_model_len = 262144", "at least 38.7 GB"),
    ),
    # ------------------------------------------------ weights that an engine is sized from
    BadInput(
        "a weight file that is no safetensors",
        "weight files",
        weights(lambda folder: (folder / "model.safetensors").write_bytes(b"not a header")),
        ("model.safetensors", "cannot be read", "fetch the file again"),
    ),
    BadInput("no weight file", "weight files", weights(lambda folder: None), ("has no model.safetensors",)),
    BadInput(
        "an index that names a shard which is not there",
        "weight files",
        weights(lambda folder: index(folder, {"weight_map": {"a": "model-1.safetensors"}})),
        ("has no model-1.safetensors",),
    ),
    BadInput(
        "an index without a map", "weight files", weights(lambda folder: index(folder, {})), ("has no weight_map",)
    ),
    BadInput(
        "an index that is a list",
        "weight files",
        weights(lambda folder: index(folder, [])),
        ("expected a JSON object",),
    ),
    # ------------------------------------------------ settings
    BadInput(
        "chunks of no token", "replay chunks", f"{DRY_RUN} replay.tokens_per_chunk=0", ("tokens_per_chunk",), write
    ),
    BadInput(
        "chunks of a fraction of a token",
        "replay chunks",
        f"{DRY_RUN} replay.tokens_per_chunk=1.5",
        ("tokens_per_chunk",),
        write,
    ),
    BadInput(
        "a misspelt number of tokens",
        "replay chunks",
        f"{DRY_RUN} replay.token_per_chunk=99",
        ("replay.token_per_chunk", "tokens_per_chunk"),
        write,
    ),
    BadInput(
        "chunks of no completion",
        "replay chunks",
        f"{DRY_RUN} replay.completions_per_chunk=0",
        ("completions_per_chunk",),
        write,
    ),
    BadInput("logits of no position", "replay chunks", f"{DRY_RUN} replay.logits_chunk=0", ("logits_chunk",), write),
    BadInput(
        "no difference allowed between engine and replay",
        "start-up check",
        f"{DRY_RUN} rollout.max_log_prob_gap=0",
        ("max_log_prob_gap",),
        write,
    ),
    BadInput(
        "a negative difference between engine and replay",
        "start-up check",
        f"{DRY_RUN} rollout.max_log_prob_gap=-0.05",
        ("max_log_prob_gap",),
        write,
    ),
    BadInput(
        "an engine without a share of its GPU",
        "share of the GPU",
        f"{DRY_RUN} rollout.gpu_memory_utilization=0",
        ("gpu_memory_utilization",),
        write,
    ),
    BadInput(
        "an engine with more than its GPU",
        "share of the GPU",
        f"{DRY_RUN} rollout.gpu_memory_utilization=1.2",
        ("gpu_memory_utilization",),
        write,
    ),
    BadInput(
        "a share in words",
        "share of the GPU",
        f"{DRY_RUN} rollout.gpu_memory_utilization=half",
        ("gpu_memory_utilization",),
        write,
    ),
    BadInput(
        "a largest weight below the weight of equal log-probabilities",
        "exactness",
        f"{DRY_RUN} rollout.mismatch_truncation=0.5",
        ("mismatch_truncation = 0.5", "expected at least 1", "or 0"),
        write,
    ),
    BadInput(
        "sampling distribution for groups that may be off-policy",
        "exactness",
        f"{DRY_RUN} objective.policy=sampling rollout.max_staleness=1",
        ("objective.policy", "rollout.max_staleness = 1", "train on-policy"),
        write,
    ),
    BadInput(
        "batch invariance of an engine without batches",
        "exactness",
        f"{DRY_RUN} rollout.batch_invariant=true rollout.engine=transformers",
        ("batch_invariant", 'rollout.engine = "vllm"'),
        write,
    ),
]
