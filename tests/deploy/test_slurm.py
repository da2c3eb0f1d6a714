"""The Slurm script, run with stand-ins for the commands of Slurm and Ray, which write down how they were called."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "slurm" / "train.sbatch"

STUBS = {
    "scontrol": """
        note scontrol "$@"
        if [ "$1" = show ]; then printf '%s\\n' $NODES; fi
    """,
    # Runs the command of the step in its own place, as srun hands signals on to it.
    "srun": """
        note srun "$@"
        while [[ $1 == --* ]]; do shift; done
        exec "$@"
    """,
    # A node stays until SIGTERM; the head is up once it has started, or never, or ends at once.
    "ray": """
        if [ "$1" = status ]; then test -e $LOG.up; exit; fi
        note ray "$@"
        case "$HEAD $*" in
            fails*--head*) exit 1 ;;
            starts*--head*) touch $LOG.up ;;
        esac
        trap 'note end "$@"; exit 143' TERM
        while :; do sleep 1; done
    """,
    # Takes steps until SIGTERM, then saves; or ends by itself with a given exit code, once all of Ray is up.
    "saga-dist": """
        until [ $(grep -c '^ray' $LOG) = $STEPS ]; do sleep 1; done
        note driver "$RAY_ADDRESS" "$@"
        note token "$RAY_AUTH_MODE" "${#RAY_AUTH_TOKEN}"
        if [ "$TRAINS" != until_stopped ]; then exit $TRAINS; fi
        trap 'sleep 1; note saved; exit 3' TERM
        while :; do sleep 1; done
    """,
    "rm": 'note rm "$@"',
    "sleep": "exec /bin/sleep 0.02",
}


class Job:
    """A job on some nodes, whose commands are the stand-ins.

    Args:
        folder: folder of the stand-ins and of their notes.
        nodes: names of the nodes.
        head: ``starts``, ``hangs`` or ``fails``: what becomes of Ray's head.
        trains: ``until_stopped``, or the exit code of the training.
        requeue: value of ``REQUEUE``.
    """

    def __init__(
        self, folder: Path, *, nodes: str, head: str = "starts", trains: str = "0", requeue: str = "0"
    ) -> None:
        self._log = folder / "log"
        self._log.touch()
        for name, body in STUBS.items():
            stub = folder / name
            stub.write_text(f'#!/bin/bash\nnote() {{ echo "$(printf "%q " "$@")" >> $LOG; }}\n{body}\n')
            stub.chmod(0o755)
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "LOG": str(self._log),
            "NODES": nodes,
            "STEPS": str(min(2, len(nodes.split()))),
            "HEAD": head,
            "TRAINS": trains,
            "REQUEUE": requeue,
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "gpu[1-3]",
            "SLURM_CPUS_PER_TASK": "8",
        }
        arguments = ["birds", "/shared/run", "run.steps=5", "data.root=/a b"]
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def notes(self, name: str) -> list[list[str]]:
        """Returns the arguments of every note of a name, in the order of time."""
        lines = [shlex.split(line) for line in self._log.read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == name]

    def wait_for(self, name: str) -> None:
        """Waits until a note of a name is there."""
        deadline = time.monotonic() + 30
        while not self.notes(name):
            assert time.monotonic() < deadline and self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Returns exit code and error output."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


StartJob = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartJob]:
    """Function that starts the job; what a failed test leaves of it is ended."""
    jobs: list[Job] = []

    def begin(**options: str) -> Job:
        jobs.append(Job(tmp_path, **options))
        return jobs[-1]

    yield begin
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)


def test_head_on_the_first_node_workers_on_the_others_and_the_run_beside_the_head(start: StartJob) -> None:
    job = start(nodes="gpu1 gpu2 gpu3")
    assert job.end() == (0, "")
    head, workers, clean = job.notes("srun")
    assert head[:4] == ["--nodelist=gpu1", "--nodes=1", "--ntasks=1", "--cpus-per-task=8"]
    assert head[4:8] == ["ray", "start", "--head", "--port=6379"]
    assert workers[:4] == ["--nodelist=gpu2,gpu3", "--nodes=2", "--ntasks=2", "--cpus-per-task=8"]
    assert workers[4:7] == ["ray", "start", "--address=gpu1:6379"]
    assert {"--block", "--num-cpus=8"} <= set(head) & set(workers)  # a node that does not block ends with its step
    arguments = ["train", "birds", "run.steps=5", "data.root=/a b", "--run-dir", "/shared/run"]
    assert job.notes("driver") == [["gpu1:6379", *arguments]]
    assert len(job.notes("end")) == 2  # srun of the workers stands for one process here
    assert clean[0] == "--nodelist=gpu1,gpu2,gpu3" and job.notes("rm") == [["-rf", "/tmp/ray-77"]]


def test_the_token_is_in_the_environment_and_in_no_command(start: StartJob, tmp_path: Path) -> None:
    job = start(nodes="gpu1")
    assert job.end()[0] == 0
    assert job.notes("token") == [["token", "64"]]
    assert not re.search("[0-9a-f]{64}", (tmp_path / "log").read_text())


def test_one_node_has_no_workers_elsewhere(start: StartJob) -> None:
    job = start(nodes="gpu1")
    assert job.end() == (0, "")
    assert [words[4] for words in job.notes("srun")] == ["ray", "rm"]


@pytest.mark.parametrize("code", [1, 2])
def test_the_exit_code_is_that_of_the_run_and_ray_is_ended(code: int, start: StartJob) -> None:
    job = start(nodes="gpu1 gpu2", trains=str(code))
    assert job.end()[0] == code
    assert len(job.notes("end")) == 2
    assert bool(job.notes("rm")) is (code == 2)  # after a failure of the system Ray's logs stay


@pytest.mark.parametrize("requeue", ["0", "1"])
def test_sigterm_before_the_limit_saves_and_may_queue_the_job_again(requeue: str, start: StartJob) -> None:
    job = start(nodes="gpu1 gpu2", trains="until_stopped", requeue=requeue)
    job.wait_for("token")
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 3
    assert job.notes("saved") == [[]]
    assert [words for words in job.notes("scontrol") if words[0] == "requeue"] == [["requeue", "77"]] * int(requeue)


def test_sigterm_while_ray_starts_ends_the_job_without_a_run(start: StartJob) -> None:
    job = start(nodes="gpu1 gpu2", head="hangs")
    job.wait_for("ray")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == (3, "stopped before the first step; the same command starts again\n")
    assert not job.notes("driver") and len(job.notes("end")) == 1


def test_a_head_that_does_not_start_is_one_line(start: StartJob) -> None:
    code, errors = start(nodes="gpu1 gpu2", head="fails").end()
    assert code == 1
    assert errors == "error: Ray did not start on gpu1; its logs are in /tmp/ray-77/session_latest/logs there\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        ("birds", {}, "expected: sbatch train.sbatch CONFIG RUN_DIR [SECTION.KEY=VALUE ...]"),
        ("birds run", {}, "SLURM_JOB_ID is not set; start this script with sbatch, which needs --cpus-per-task"),
        (
            "birds run",
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a", "SLURM_CPUS_PER_TASK": "8"},
            "ray is not on the PATH; activate its environment before sbatch",
        ),
    ],
    ids=["no run directory", "not in a job", "no environment"],
)
def test_mistakes_are_one_line_before_anything_starts(arguments: str, environment: dict[str, str], error: str) -> None:
    command = ["/bin/bash", str(SCRIPT), *arguments.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **environment}
    )
    assert (done.returncode, done.stderr) == (2, f"error: {error}\n")


def test_slurm_reads_every_directive() -> None:
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"  # sbatch refuses a script without it
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives and max(directives) < first_command  # sbatch ignores those after a command
    assert "#SBATCH --signal=B:TERM@120" in lines
