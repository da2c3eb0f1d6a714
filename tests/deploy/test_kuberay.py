"""Generated RayJobs and RayClusters: valid by KubeRay's schema, read by Ray's autoscaler as meant, resources add up."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saga_dist.config import RunConfig
from saga_dist.deploy.kuberay import raycluster, rayjob
from saga_dist.deploy.options import SUBMISSION_MODES, make_options
from saga_dist.errors import ConfigError

PaperRun = Callable[..., RunConfig]
Document = dict[str, Any]

VARIANTS: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any]]] = {
    "fixed": ({}, {}),
    "elastic": ({"rollout": {"workers": 2}}, {"rollout_min": 0, "rollout_max": 8}),
    "replay": (
        {"rollout": {"workers": 2}, "replay": {"workers": 2, "num_gpus": 2.0}},
        {"rollout_min": 1, "rollout_max": 4, "replay_min": 0, "replay_max": 4},
    ),
    "tensor parallel": ({"rollout": {"num_gpus": 4.0, "tensor_parallel_size": 4}}, {"rollout_max": 2}),
    "learner in three pods": ({"runtime": {"learner_processes": 3}, "replay": {"workers": 1}}, {}),
    "learner in two pods": (
        {
            "runtime": {"learner_processes": 4},
            "replay": {"workers": 1, "num_gpus": 2.0},
            "checkpoint": {"mirror": "s3://bucket/runs?region=eu-central-1"},
        },
        {"learner_processes_per_pod": 2, "mirror_secret": "saga-mirror"},
    ),
    "two per pod": ({"rollout": {"workers": 4, "num_gpus": 0.5}}, {"rollout_workers_per_pod": 2, "rollout_max": 3}),
    "one GPU": (
        {"rollout": {"num_gpus": 0.3}, "runtime": {"learner_num_gpus": 0.7}},
        {"placement": "shared"},
    ),
    "no rollouts": ({"objective": {"lambda_lm": 0.0, "lambda_kl": 0.0}}, {}),
    "verdicts": ({"objective": {"signal": "verdict", "lambda_kl": 0.0}, "replay": {"workers": 2}}, {}),
    "CPU, all options": (
        {"rollout": {"num_gpus": 0.0}, "runtime": {"learner_num_gpus": 0.0}},
        {
            "namespace": "research",
            "auth_secret": "token",
            "learner_node": {"pool": "a"},
            "rollout_node": {"pool": "b"},
            "learner_memory": 20,
            "object_store": 2,
            "rollout_max": 3,
            "retries": 0,
            "submission_mode": "SidecarMode",
        },
    ),
}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest, paper_run: PaperRun) -> list[Document]:
    sections, options = VARIANTS[request.param]
    return rayjob(paper_run(**sections), make_options(name="saga-test", **options))


def cluster_of(documents: list[Document]) -> Document:
    spec = documents[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def templates(cluster: Document) -> Iterator[tuple[str, Document]]:
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def environment(container: Document) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


# ---------------------------------------------------------------------- schema


def test_every_document_is_valid(variant: list[Document], mistakes: Callable[[Document], list[str]]) -> None:
    assert [document["kind"] for document in variant] == ["ConfigMap", "RayJob"]
    assert [mistakes(document) for document in variant] == [[], []]


def test_clusters_are_valid_too(paper_run: PaperRun, mistakes: Callable[[Document], list[str]]) -> None:
    for sections, options in VARIANTS.values():
        documents = raycluster(paper_run(**sections), make_options(name="saga-test", **options))
        assert [document["kind"] for document in documents] == ["ConfigMap", "RayCluster"]
        assert [mistakes(document) for document in documents] == [[], []]


@pytest.mark.parametrize(
    "path",
    [
        "spec.backofLimit",
        "spec.rayClusterSpec.autoscalingOptions",
        "spec.rayClusterSpec.authOptions.modes",
        "spec.rayClusterSpec.headGroupSpec.rayStartParam",
        "spec.rayClusterSpec.headGroupSpec.template.spec.terminationGracePeriod",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.volumeMounts.0.readonly",
        "spec.rayClusterSpec.workerGroupSpecs.0.maxReplica",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.emptyDir.medum",
        "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limit",
        "metadata.label",
    ],
)
def test_a_typo_is_caught(paper_run: PaperRun, mistakes: Callable[[Document], list[str]], path: str) -> None:
    job = copy.deepcopy(rayjob(paper_run(), make_options())[-1])
    *parents, name = path.split(".")
    node: Any = job
    for parent in parents:
        node = node[int(parent) if parent.isdecimal() else parent]
    node[name] = "x"
    (mistake,) = mistakes(job)
    assert mistake.startswith(f"{'.'.join(parents)}: ")
    assert f"'{name}' was unexpected" in mistake


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec.backoffLimit", "three"), ("spec.rayClusterSpec.authOptions.mode", "tokens"), ("metadata.name", "x" * 48)],
)
def test_a_wrong_value_is_caught(
    paper_run: PaperRun, mistakes: Callable[[Document], list[str]], path: str, value: str
) -> None:
    job = copy.deepcopy(rayjob(paper_run(), make_options())[-1])
    *parents, name = path.split(".")
    node = job
    for parent in parents:
        node = node[parent]
    node[name] = value
    assert [mistake.split(":")[0] for mistake in mistakes(job)] == [path]


# ---------------------------------------------------------------------- what Ray reads


def test_ray_autoscaler_reads_the_groups_as_meant(variant: list[Document]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = cluster_of(variant)
    resource = {"metadata": {"name": "saga-test", "namespace": "default"}, "spec": copy.deepcopy(cluster)}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for group in cluster["workerGroupSpecs"]:
        found, limits = types[group["groupName"]], group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (found["min_workers"], found["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        assert found["resources"].get("GPU", 0) == int(limits.get("nvidia.com/gpu", "0"))
        assert found["resources"]["memory"] == gibibytes(limits["memory"]) * 1024**3
        roles = {
            name: found["resources"][name] for name in ("learner", "rollout", "replay") if name in found["resources"]
        }
        assert roles == json.loads(shlex.split(group["rayStartParams"]["resources"])[0])  # as the shell sees it


def test_the_actors_of_the_run_fit(paper_run: PaperRun) -> None:
    """Every actor of the run finds a pod of its role that the groups may have, with what it asks for."""
    for sections, options in VARIANTS.values():
        config = paper_run(**sections)
        cluster = cluster_of(rayjob(config, make_options(**options)))
        asks = [
            (
                "learner",
                config.runtime.learner_processes,
                config.runtime.learner_num_cpus,
                config.runtime.learner_num_gpus,
            )
        ]
        if config.needs_engine:
            asks.append(("rollout", config.rollout.workers, config.rollout.num_cpus, config.rollout.num_gpus))
        if config.needs_mllm:
            asks.append(("replay", config.replay.workers, config.replay.num_cpus, config.replay.num_gpus))
        free: dict[str, list[float]] = {}
        for group in cluster["workerGroupSpecs"]:
            params, pods = group["rayStartParams"], group["maxReplicas"]
            roles = json.loads(shlex.split(params["resources"])[0])
            for role, count in roles.items():
                free[role] = [pods * count, pods * float(params["num-cpus"]), pods * float(params["num-gpus"])]
            wanted = [(count * cpus, count * gpus) for role, count, cpus, gpus in asks if role in roles]
            assert sum(cpus for cpus, _ in wanted) <= pods * float(params["num-cpus"])
            assert sum(gpus for _, gpus in wanted) <= pods * float(params["num-gpus"]) + 1e-9
        assert all(count <= free[role][0] for role, count, _, _ in asks if count)


def test_a_learner_of_several_processes_is_a_fixed_group(paper_run: PaperRun) -> None:
    config = paper_run(runtime={"learner_processes": 4}, replay={"workers": 1})
    for per_pod, pods in ((1, 4), (2, 2), (4, 1)):
        options = make_options(learner_processes_per_pod=per_pod)
        learner = cluster_of(rayjob(config, options))["workerGroupSpecs"][0]
        assert [learner[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [pods] * 3
        assert learner["rayStartParams"]["num-gpus"] == str(per_pod)
        (container,) = learner["template"]["spec"]["containers"]
        assert {"data", "runs"} <= {mount["name"] for mount in container["volumeMounts"]}, "every rank reads and loads"


def test_only_the_head_has_the_mirrors_credentials(paper_run: PaperRun) -> None:
    config = paper_run(checkpoint={"mirror": "s3://bucket/runs"})
    documents = rayjob(config, make_options(mirror_secret="saga-mirror"))
    found = {
        name: template["spec"]["containers"][0].get("envFrom") for name, template in templates(cluster_of(documents))
    }
    assert found == {"head": [{"secretRef": {"name": "saga-mirror"}}], "learner": None, "rollout": None}
    assert 'mirror = "s3://bucket/runs"' in documents[0]["data"]["run.toml"]
    with pytest.raises(ConfigError, match="--mirror-secret = x for a run without checkpoint.mirror; leave it out"):
        rayjob(paper_run(), make_options(mirror_secret="x"))


def test_ranges_are_the_options(paper_run: PaperRun) -> None:
    config = paper_run(rollout={"workers": 3}, replay={"workers": 2})
    options = make_options(rollout_min=0, rollout_max=7, replay_min=1, replay_max=5)
    ranges = {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in cluster_of(rayjob(config, options))["workerGroupSpecs"]
    }
    assert ranges == {"learner": (1, 1, 1), "rollout": (0, 3, 7), "replay": (1, 2, 5)}


def test_no_actor_on_the_head(variant: list[Document]) -> None:
    head = cluster_of(variant)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head)


# ---------------------------------------------------------------------- resources


def test_memory_covers_shared_memory_and_the_object_store_fits_in_it(variant: list[Document]) -> None:
    cluster = cluster_of(variant)
    parameters = {"head": cluster["headGroupSpec"]["rayStartParams"]} | {
        group["groupName"]: group["rayStartParams"] for group in cluster["workerGroupSpecs"]
    }
    for name, template in templates(cluster):
        (container,) = template["spec"]["containers"]
        (shm,) = [volume["emptyDir"] for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        limit = gibibytes(container["resources"]["limits"]["memory"])
        assert container["resources"]["requests"]["memory"] == f"{limit}Gi"
        assert limit - gibibytes(shm["sizeLimit"]) >= 8
        assert int(parameters[name]["object-store-memory"]) < gibibytes(shm["sizeLimit"]) * 1024**3


def test_requests_cover_what_is_offered_to_ray(variant: list[Document]) -> None:
    for group in cluster_of(variant)["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        resources = container["resources"]
        assert int(resources["requests"]["cpu"]) > int(group["rayStartParams"]["num-cpus"])  # the raylet's share
        assert "cpu" not in resources["limits"]
        gpus = resources["limits"].get("nvidia.com/gpu")
        assert resources["requests"].get("nvidia.com/gpu") == gpus
        assert ("tolerations" in group["template"]["spec"]) == (gpus is not None)


def test_autoscaler_only_where_there_is_something_to_decide(variant: list[Document]) -> None:
    cluster = cluster_of(variant)
    elastic = [group for group in cluster["workerGroupSpecs"] if group["minReplicas"] < group["maxReplicas"]]
    assert cluster["enableInTreeAutoscaling"] == bool(elastic)
    assert cluster.get("autoscalerOptions", {}).get("version") == ("v2" if elastic else None)
    assert {template["spec"]["restartPolicy"] for _, template in templates(cluster)} == {"Never"}
    (learner,) = [g for g in cluster["workerGroupSpecs"] if '"learner"' in g["rayStartParams"]["resources"]]
    assert learner["minReplicas"] == learner["replicas"] == learner["maxReplicas"] >= 1


# ---------------------------------------------------------------------- safety


def test_authentication_is_on_everywhere(variant: list[Document]) -> None:
    cluster = cluster_of(variant)
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)  # the operator refuses older ones
    for _, template in templates(cluster):
        for container in template["spec"]["containers"]:
            assert environment(container)["RAY_AUTH_MODE"] == "token"
            assert "RAY_AUTH_TOKEN" not in environment(container)  # comes from the Secret, never from a manifest
    if "autoscalerOptions" in cluster:
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in cluster["autoscalerOptions"]["env"]


def test_secret_of_ones_own(paper_run: PaperRun) -> None:
    cluster = cluster_of(rayjob(paper_run(), make_options(auth_secret="ray-token")))
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}


def test_pods_run_as_nobody_in_particular(variant: list[Document]) -> None:
    for _, template in templates(cluster_of(variant)):
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["fsGroup"] == 10001
        assert template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_volumes_and_mounts_agree(variant: list[Document]) -> None:
    for name, template in templates(cluster_of(variant)):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["name"]: mount for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert volumes.keys() == mounts.keys()
        for volume in ("weights", "data"):
            if volume in volumes:
                assert volumes[volume]["persistentVolumeClaim"]["readOnly"] is mounts[volume]["readOnly"] is True
        assert volumes["config"]["configMap"]["name"] == variant[0]["metadata"]["name"]
        writes = name in ("head", "learner", "trainer")  # coordinator and learner write the run directory
        assert ("runs" in volumes) == writes
        assert ("data" in volumes) == (name in ("learner", "trainer"))
        if writes:
            assert not mounts["runs"].get("readOnly", False)


# ---------------------------------------------------------------------- stopping and starting again


def test_time_to_stop_is_nested(paper_run: PaperRun) -> None:
    """Driver's last step and checkpoint < head's hook < kill; workers hold out for longer than the driver needs."""
    cluster = cluster_of(rayjob(paper_run(), make_options(name="saga-test", grace_s=120)))
    for name, template in templates(cluster):
        (container,) = template["spec"]["containers"]
        kill_s = template["spec"]["terminationGracePeriodSeconds"]
        drain_s = int(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        if name == "head":
            command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
            hook_s = int(re.search(r"^timeout (\d+) ray job stop .* saga-test \|\| true$", command)[1])
            assert int(environment(container)["RAY_JOB_STOP_WAIT_TIME_S"]) == 120 < hook_s
            assert hook_s + drain_s < kill_s
        else:
            assert 120 < drain_s < kill_s


def test_a_retry_resumes_in_the_same_directory(paper_run: PaperRun) -> None:
    config_map, job = rayjob(paper_run(), make_options(name="saga-cub", retries=5, keep_s=60))
    spec = job["spec"]
    assert spec["entrypoint"] == "saga-dist train /config/run.toml --run-dir /runs/saga-cub"
    assert "run.toml" in config_map["data"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (5, True, 60)
    assert spec["jobId"] == "saga-cub"  # the name that the head's hook stops
    assert spec["submissionMode"] == "K8sJobMode"


@pytest.mark.parametrize("mode", SUBMISSION_MODES)
def test_submission_modes(paper_run: PaperRun, mistakes: Callable[[Document], list[str]], mode: str) -> None:
    job = rayjob(paper_run(), make_options(submission_mode=mode, retries=0))[-1]
    assert job["spec"]["submissionMode"] == mode
    assert mistakes(job) == []


def test_rollout_pods_go_first_when_nodes_run_short(paper_run: PaperRun) -> None:
    cluster = cluster_of(rayjob(paper_run(replay={"workers": 1}), make_options()))
    priorities = {name: template["spec"]["priorityClassName"] for name, template in templates(cluster)}
    assert priorities == {
        "head": "saga-learner",
        "learner": "saga-learner",
        "rollout": "saga-rollout",
        "replay": "saga-rollout",
    }


def test_weights_come_from_the_volume_only(paper_run: PaperRun) -> None:
    hub = cluster_of(rayjob(paper_run(model={"path": "Qwen/Qwen3-VL-8B-Instruct"}), make_options()))
    for _, template in templates(hub):
        found = environment(template["spec"]["containers"][0])
        assert (found["HF_HUB_OFFLINE"], found["HF_HOME"]) == ("1", "/weights")
    folder = cluster_of(rayjob(paper_run(), make_options()))
    assert "HF_HOME" not in environment(folder["headGroupSpec"]["template"]["spec"]["containers"][0])
