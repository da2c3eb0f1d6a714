"""Options of a manifest beyond the run's configuration: names, images, volumes, sizes."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from saga_dist.config import Section
from saga_dist.errors import ConfigError

RAY_VERSION = "2.60.0"
"""Ray's version in both images; KubeRay selects probes and checks features by it."""

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""Values that KubeRay supports; its schema accepts any text, but the operator does nothing for an unknown one."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 47  # KubeRay appends suffixes, and Kubernetes allows 63 characters


class DeployOptions(Section):
    """Options of a manifest; every field is an option of ``saga-dist manifest``.

    Memory is in whole GiB and time in whole seconds. ``rollout_min`` and the like count pods, not workers.
    """

    name: str = Field("saga", description="name of the run and its resources: at most 47 of a-z, 0-9 and -")
    namespace: str = Field("", description='Kubernetes namespace; "": the one of the command that applies the manifest')
    image: str = Field("saga-dist:gpu", description="container image of all pods")
    placement: Literal["separate", "shared"] = Field(
        "separate", description="separate: a group of pods per role; shared: learner, rollout and replay in one pod"
    )
    learner_processes_per_pod: int = Field(
        1, ge=1, description="learner processes in one pod; divides runtime.learner_processes"
    )
    rollout_workers_per_pod: int = Field(1, ge=1, description="rollout workers in one pod, or on one machine")
    rollout_min: int | None = Field(
        None, ge=0, description="fewest rollout pods; default: those of rollout's smallest number of workers"
    )
    rollout_max: int | None = Field(
        None,
        ge=1,
        description="most rollout pods; default: those of rollout's largest number of workers, at least rollout_min",
    )
    replay_min: int | None = Field(
        None, ge=0, description="fewest replay pods; default: those of replay's smallest number of workers"
    )
    replay_max: int | None = Field(
        None,
        ge=1,
        description="most replay pods; default: those of replay's largest number of workers, at least replay_min",
    )
    head_memory: int = Field(8, ge=2, description="memory of the head pod in GiB, without /dev/shm")
    learner_memory: int | None = Field(
        None,
        ge=1,
        description="memory of a learner pod in GiB, without /dev/shm; default: 64 per GPU, else 8 per actor",
    )
    rollout_memory: int | None = Field(
        None,
        ge=1,
        description="memory of a rollout pod in GiB, without /dev/shm; default: 64 per GPU, else 8 per actor",
    )
    replay_memory: int | None = Field(
        None, ge=1, description="memory of a replay pod in GiB, without /dev/shm; default: 64 per GPU, else 8 per actor"
    )
    object_store: int = Field(4, ge=1, description="GiB of every pod's /dev/shm for Ray's object store")
    gpu_key: str = Field("nvidia.com/gpu", min_length=1, description="name of the device plugin's GPU resource")
    weights_claim: str = Field("saga-weights", description="volume claim with model folders, mounted read-only")
    data_claim: str = Field("saga-data", description="volume claim with images, mounted read-only")
    runs_claim: str = Field("saga-runs", description="volume claim for run directories")
    auth_secret: str = Field("", description='Secret with the key auth_token; "": KubeRay creates one')
    mirror_secret: str = Field(
        "", description='Secret whose keys become environment variables of the head, for checkpoint.mirror; "": none'
    )
    learner_node: dict[str, str] = Field(default_factory=dict, description="labels of the nodes for learner pods")
    rollout_node: dict[str, str] = Field(default_factory=dict, description="labels of the nodes for rollout pods")
    replay_node: dict[str, str] = Field(default_factory=dict, description="labels of the nodes for replay pods")
    submission_mode: str = Field("K8sJobMode", description="KubeRay's submission mode, one of SUBMISSION_MODES")
    retries: int = Field(3, ge=0, description="new clusters after a failure; each resumes in the same run directory")
    keep_s: int = Field(600, ge=0, description="seconds for which a finished cluster is kept, so that its logs remain")
    grace_s: int = Field(
        600, ge=30, description="seconds that a run may take to stop, which covers one step and its checkpoint"
    )
    idle_s: int = Field(300, ge=10, description="seconds after which an idle pod of an elastic group is removed")
    head_ip: str = Field("", description="launcher: address of the machine of head and learner")
    worker_ips: tuple[str, ...] = Field((), description="launcher: addresses of the other machines")
    ssh_user: str = Field("ubuntu", description="launcher: user for ssh to the machines")

    @field_validator("name")
    @classmethod
    def _is_label(cls, name: str) -> str:
        if len(name) > _MAX_NAME or not _LABEL.fullmatch(name):
            raise ValueError(
                f"expected at most {_MAX_NAME} small letters, digits and '-', a letter first and no '-' at the end"
            )
        return name

    @field_validator("submission_mode")
    @classmethod
    def _is_known(cls, mode: str) -> str:
        if mode not in SUBMISSION_MODES:
            raise ValueError(f"expected one of {', '.join(SUBMISSION_MODES)}")
        return mode

    @model_validator(mode="after")
    def _agree(self) -> DeployOptions:
        for role in ("rollout", "replay"):
            low, high = getattr(self, f"{role}_min"), getattr(self, f"{role}_max")
            if low is not None and high is not None and low > high:
                raise ValueError(f"--{role}-min = {low} is more than --{role}-max = {high}; lower it")
        if self.submission_mode == "InteractiveMode" and self.retries:
            raise ValueError(
                f"--submission-mode = InteractiveMode with --retries = {self.retries}: KubeRay refuses it; "
                "add --retries 0"
            )
        return self


def make_options(**values: Any) -> DeployOptions:
    """Returns the options with these values; ``None`` means the default.

    Raises:
        ConfigError: a value is wrong; the message names the option of the command line.
    """
    try:
        return DeployOptions.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise ConfigError(message, where="command line") from error
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option} = {first['input']!r}: {message}", where="command line") from error
