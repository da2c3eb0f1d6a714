"""From a configuration to pods: GPUs per pod, ranges, impossible requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saga_dist.config import RunConfig
from saga_dist.deploy.options import make_options
from saga_dist.deploy.roles import gpus_needed, groups
from saga_dist.errors import ConfigError

PaperRun = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("asks", "needed"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0.3], 1),
        ([0.7, 0.3], 1),
        ([0.9, 0.1], 1),  # 1 - 0.9 is a little less than 0.1
        ([0.3, 0.7, 0.1], 2),
        ([0.1] * 10, 1),
        ([0.6, 0.6, 0.6], 3),  # 1.8 in sum, but two never share a card
        ([0.5, 0.4, 0.6, 0.5], 2),  # largest first: 0.6 + 0.4 and 0.5 + 0.5
        ([4, 0.5, 0.5], 5),
        ([1, 2], 3),
    ],
)
def test_cards_of_a_pod(asks: list[float], needed: int) -> None:
    assert gpus_needed(asks) == needed


def test_roles_have_pods_of_their_own(paper_run: PaperRun) -> None:
    config = paper_run(rollout={"workers": 3}, replay={"workers": 2, "num_gpus": 2.0})
    planned = {group.name: group for group in groups(config, make_options(rollout_min=1, rollout_max=8))}
    assert list(planned) == ["learner", "rollout", "replay"]
    learner, rollout, replay = planned.values()
    assert (learner.min_pods, learner.pods, learner.max_pods, learner.gpus) == (1, 1, 1, 1)
    assert (rollout.min_pods, rollout.pods, rollout.max_pods, rollout.gpus) == (1, 3, 8, 1)
    assert (replay.min_pods, replay.pods, replay.max_pods, replay.gpus) == (2, 2, 2, 2)
    assert [group.elastic for group in (learner, rollout, replay)] == [False, True, False]
    assert rollout.roles == {"rollout": 1}


def test_one_card_for_everything(paper_run: PaperRun) -> None:
    config = paper_run(rollout={"num_gpus": 0.3}, runtime={"learner_num_gpus": 0.7})
    (trainer,) = groups(config, make_options(placement="shared"))
    assert (trainer.gpus, trainer.cpus, trainer.roles) == (1, 2, {"learner": 1, "rollout": 1})
    assert sum(group.gpus for group in groups(config, make_options())) == 2


def test_all_ranks_of_a_learner_may_share_the_pod(paper_run: PaperRun) -> None:
    config = paper_run(runtime={"learner_processes": 2}, replay={"workers": 1, "num_gpus": 1.0})
    (trainer,) = groups(config, make_options(placement="shared"))
    assert (trainer.gpus, trainer.roles) == (4, {"learner": 2, "rollout": 1, "replay": 1})


def test_several_rollout_workers_in_a_pod(paper_run: PaperRun) -> None:
    config = paper_run(rollout={"workers": 5, "num_gpus": 0.5, "num_cpus": 1.5})
    rollout = groups(config, make_options(rollout_workers_per_pod=2))[1]
    assert (rollout.pods, rollout.max_pods, rollout.gpus, rollout.cpus) == (3, 3, 1, 3)
    assert rollout.roles == {"rollout": 2}


def test_a_run_on_verdicts_has_no_rollout_workers(paper_run: PaperRun) -> None:
    config = paper_run(objective={"signal": "verdict", "lambda_kl": 0.0}, replay={"workers": 2, "num_gpus": 1.0})
    assert [group.name for group in groups(config, make_options())] == ["learner", "replay"]


def test_a_run_without_rollouts_has_a_learner_only(paper_run: PaperRun) -> None:
    config = paper_run(objective={"lambda_lm": 0.0, "lambda_kl": 0.0})
    assert [group.name for group in groups(config, make_options())] == ["learner"]


def test_the_start_lies_within_the_range(paper_run: PaperRun) -> None:
    rollout = groups(paper_run(), make_options(rollout_min=2))[1]
    assert (rollout.min_pods, rollout.pods, rollout.max_pods) == (2, 2, 2)


@pytest.mark.parametrize(
    ("sections", "options", "message"),
    [
        (
            {"replay": {"workers": 1, "num_gpus": 1.5}},
            {},
            "configuration: replay.num_gpus = 1.5; expected a fraction of one GPU or a whole number; "
            "set replay.num_gpus = 2",
        ),
        (
            {"runtime": {"learner_num_gpus": 2.25}},
            {"placement": "shared"},
            "configuration: runtime.learner_num_gpus = 2.25; expected a fraction of one GPU or a whole number; "
            "set runtime.learner_num_gpus = 3",
        ),
        (
            {"runtime": {"learner_processes": 4}, "replay": {"workers": 1}},
            {"learner_processes_per_pod": 3},
            "command line: --learner-processes-per-pod = 3 for runtime.learner_processes = 4; expected equal pods; "
            "choose a divisor",
        ),
        (
            {"rollout": {"workers": 6}},
            {"rollout_max": 4},
            "command line: --rollout-max = 4 pods hold 4 of rollout.workers = 6: the others would wait for ever; "
            "raise it to 6, or lower rollout.workers",
        ),
        (
            {},
            {"replay_max": 2},
            "command line: --replay-max = 2 for a run without replay workers; leave it out, or set replay.workers",
        ),
        (
            {},
            {"placement": "shared", "rollout_max": 2},
            "command line: --rollout-max = 2 with --placement = shared: the one pod cannot grow; "
            "leave it out, or use --placement separate",
        ),
    ],
)
def test_impossible_requests(
    paper_run: PaperRun, sections: dict[str, dict[str, float]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        groups(paper_run(**sections), make_options(**options))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rollout_min": 5, "rollout_max": 2},
            "command line: --rollout-min = 5 is more than --rollout-max = 2; lower it",
        ),
        (
            {"submission_mode": "K8sjobMode"},
            "command line: --submission-mode = 'K8sjobMode': expected one of K8sJobMode, HTTPMode, SidecarMode, "
            "InteractiveMode",
        ),
        (
            {"submission_mode": "InteractiveMode"},
            "command line: --submission-mode = InteractiveMode with --retries = 3: KubeRay refuses it; add --retries 0",
        ),
        (
            {"name": "Saga_1"},
            "command line: --name = 'Saga_1': expected at most 47 small letters, digits and '-', a letter first and "
            "no '-' at the end",
        ),
        ({"name": "a" * 48}, f"command line: --name = '{'a' * 48}': expected at most 47 small letters, digits"),
        ({"grace_s": 5}, "command line: --grace-s = 5: Input should be greater than or equal to 30"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_options(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
