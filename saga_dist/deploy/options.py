"""What a manifest needs to know beyond the run's configuration: names, images, volumes, sizes."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from saga_dist.config import Section
from saga_dist.errors import ConfigError

RAY_VERSION = "2.60.0"
"""Ray of both images; KubeRay chooses probes and checks features by it."""

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""KubeRay's own list; its schema takes any text and the operator then does nothing."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 47  # KubeRay adds its own suffixes and then meets Kubernetes' 63


class DeployOptions(Section):
    """Options of a manifest; every field is an option of ``saga-dist manifest``.

    Whole numbers of GiB and seconds; counts of pods, not of workers, for ``rollout_min`` and the like.
    """

    name: str = "saga"
    namespace: str = ""
    image: str = "saga-dist:gpu"
    placement: Literal["separate", "shared"] = Field(
        "separate", description="separate: a group of pods per role; shared: learner, rollout and replay in one pod"
    )
    learner_processes_per_pod: int = Field(1, ge=1, description="runtime.learner_processes in one pod")
    rollout_workers_per_pod: int = Field(1, ge=1)
    rollout_min: int | None = Field(None, ge=0, description="pods; default: what rollout.workers needs")
    rollout_max: int | None = Field(None, ge=1, description="pods; default: what rollout.workers needs")
    replay_min: int | None = Field(None, ge=0)
    replay_max: int | None = Field(None, ge=1)
    head_memory: int = Field(8, ge=2, description="GiB, without /dev/shm")
    learner_memory: int | None = Field(None, ge=1, description="GiB, without /dev/shm; default by GPUs")
    rollout_memory: int | None = Field(None, ge=1)
    replay_memory: int | None = Field(None, ge=1)
    object_store: int = Field(4, ge=1, description="GiB of every pod's /dev/shm for Ray's objects")
    gpu_key: str = Field("nvidia.com/gpu", min_length=1, description="name of the device plugin's resource")
    weights_claim: str = "saga-weights"
    data_claim: str = "saga-data"
    runs_claim: str = "saga-runs"
    auth_secret: str = Field("", description="Secret with key auth_token; default: one that KubeRay makes")
    mirror_secret: str = Field("", description="Secret whose keys are the head's environment for checkpoint.mirror")
    learner_node: dict[str, str] = Field(default_factory=dict, description="node labels")
    rollout_node: dict[str, str] = Field(default_factory=dict)
    replay_node: dict[str, str] = Field(default_factory=dict)
    submission_mode: str = "K8sJobMode"
    retries: int = Field(3, ge=0, description="new clusters after a failure; each resumes in the same run directory")
    keep_s: int = Field(600, ge=0, description="how long a finished cluster stays for a look at its logs")
    grace_s: int = Field(600, ge=30, description="from the request to stop to the end: one step and a checkpoint")
    idle_s: int = Field(300, ge=10, description="an idle pod of an elastic group ends after this long")
    head_ip: str = Field("", description="launcher: the machine of head and learner")
    worker_ips: tuple[str, ...] = Field((), description="launcher: the other machines")
    ssh_user: str = "ubuntu"

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
    """Returns the options, ``None`` meaning the default.

    Raises:
        ConfigError: a value is wrong; one line that names the option of the command line.
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
