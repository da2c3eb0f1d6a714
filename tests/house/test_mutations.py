"""Every term of the objectives and of sampling is held by a test: a changed copy of the package makes one fail.

A row is one change of one line, and the test files that must notice it. The files are run on an unchanged copy first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    """A change of one place in the package."""

    term: str
    """The term that is changed."""
    path: str
    """Module, relative to the package."""
    old: str
    """Text that is replaced; it must stand in the module exactly once."""
    new: str
    """Text in its place."""
    tests: str
    """Test files, relative to ``tests``, separated by spaces; one of their tests must fail."""


LEARNER, REPLAY = "workers/learner.py", "workers/replay.py"
OPTIMIZATION, FIELD = "workers/optimization.py", "objectives/potential_field.py"
SOURCE, SAMPLING = "training/rollout_source.py", "data/sampling.py"
TEST_LEARNER, TEST_REPLAY = "workers/test_learner.py", "workers/test_replay.py"

MUTATIONS = (
    # optimizer
    Mutation("clip", OPTIMIZATION, "clip_grad_norm_(parameters, clip_norm)", "clip_grad_norm_(parameters, 1e30)",
             "workers/test_optimization.py"),
    Mutation("clip as configured", LEARNER, "self._settings.clip_norm)", "1e30)", TEST_LEARNER),
    Mutation("proxies clipped apart", OPTIMIZATION, '(proxies if group["name"] == "proxies" else main)', "main",
             "workers/test_optimization.py"),
    Mutation("clip factor", OPTIMIZATION, "min(1.0, clip_norm / norms[0])", "min(1.0, clip_norm / (1 + norms[0]))",
             "workers/test_optimization.py"),
    Mutation("learning rate of the pooler", OPTIMIZATION, '(pooler.parameters()), "lr": settings.lr_pooler',
             '(pooler.parameters()), "lr": settings.lr_encoder', TEST_LEARNER),
    Mutation("learning rate of the proxies", OPTIMIZATION, "settings.lr_pooler * settings.proxy_lr_multiplier",
             "settings.lr_pooler", TEST_LEARNER),
    Mutation("no weight decay of the proxies", OPTIMIZATION, '"weight_decay": 0.0,', "", TEST_LEARNER),
    Mutation("weight decay", OPTIMIZATION, "weight_decay=settings.weight_decay", "weight_decay=0.0", TEST_LEARNER),
    Mutation("warm-up", OPTIMIZATION, "return (step + 1) / warmup", "return step / warmup", TEST_LEARNER),
    Mutation("cosine", OPTIMIZATION, "0.5 * (1 + math.cos(", "1.0 * (1 + math.cos(", TEST_LEARNER),
    # weights of the losses
    Mutation("lambda_dml", LEARNER, "(self._objective.lambda_dml * loss).backward()", "loss.backward()", TEST_LEARNER),
    Mutation("lambda_lm", LEARNER, "signal, self._objective.lambda_lm\n", "signal, 1.0\n", TEST_LEARNER),
    Mutation("lambda_kl", LEARNER, "torch.autograd.grad(self._objective.lambda_kl * loss,", "torch.autograd.grad(loss,",
             TEST_LEARNER),
    Mutation("balance of the losses", LEARNER, "to=weight / self._objective.lambda_dml", "to=weight", TEST_LEARNER),
    Mutation("micro-batches are added", LEARNER, "self._open.append(opened)", "self._open = [opened]", TEST_LEARNER),
    # metric loss
    Mutation("reduction per pair", FIELD, "num_items * (num_items - 1)", "num_items * num_items",
             "objectives/test_potential_field.py"),
    Mutation("reduction per active pair", FIELD, "active_energy / num_active", "energy / num_active",
             "objectives/test_potential_field.py"),
    Mutation("default reduction", FIELD, 'reduction: Reduction = "per_pair"', 'reduction: Reduction = "mean"',
             "objectives/test_potential_field.py"),
    Mutation("pairs counted twice", FIELD, "= 4 * weighted_RE", "= 2 * weighted_RE",
             "objectives/test_potential_field.py"),
    # reward and advantage
    Mutation("advantage epsilon", "objectives/advantage.py", "(spread_P1 + eps)", "spread_P1",
             "objectives/test_advantage.py"),
    Mutation("sample standard deviation", "objectives/advantage.py", "correction=1", "correction=0",
             "objectives/test_advantage.py"),
    Mutation("equal rewards", "objectives/advantage.py", "values_PG.amin(-1) != values_PG.amax(-1)",
             "values_PG.amin(-1) == values_PG.amin(-1)", "objectives/test_advantage.py training/test_step.py"),
    # policy gradient
    Mutation("token normalisation", "objectives/grpo.py", "-terms_GT.sum() / num_tokens_total",
             "-terms_GT.sum() / max(num_tokens, 1)", "objectives/test_grpo.py"),
    Mutation("tokens of the whole buffer", REPLAY, "advantages, task.num_tokens_total, weights_R1)",
             "advantages, task.group.num_tokens, weights_R1)", TEST_REPLAY),
    Mutation("copies of a completion count", REPLAY,
             "log_probs_R1 = log_probs_U.repeat_interleave(counts_U)[:, None]",
             "log_probs_R1 = (log_probs_U / counts_U).repeat_interleave(counts_U)[:, None]",
             TEST_REPLAY),
    Mutation("temperature of the importance ratio", REPLAY, "logits_UV / sampling.temperature, targets_U) if",
             "logits_UV, targets_U) if", TEST_REPLAY),
    Mutation("policy at the sampling temperature", "objectives/policy.py", "torch.where(greedy_R, 1.0, temperature_R)",
             "torch.ones_like(temperature_R)", "objectives/test_policy.py"),
    Mutation("policy within top-p", "objectives/policy.py", "if bool((top_p_R < 1).any()):", "if False:",
             "objectives/test_policy.py"),
    Mutation("correction of the mismatch", SOURCE, "self._config.rollout.mismatch_truncation or None", "None",
             "training/test_prefetch.py"),
    Mutation("truncated importance weights", REPLAY, "importance_weights(current, reference, task.truncate_at)",
             'importance_weights(current, reference, float("inf"))', TEST_REPLAY),
    # attention alignment
    Mutation("mean over description tokens", "objectives/attention.py", "return selected_TN.mean(0)",
             "return selected_TN.sum(0)", "objectives/test_attention.py"),
    Mutation("renormalised attention", "objectives/attention.py",
             "rows_TN / torch.where(mass_T1 > 0, mass_T1, 1.0)", "rows_TN", "objectives/test_attention.py"),
    Mutation("mean over the buffer's completions", "objectives/attention.py", "/ num_completions_total\n",
             "/ num_completions_P.sum()\n", "objectives/test_attention.py"),
    # seeds and sampling
    Mutation("seed of sampling: run", SOURCE, 'self._config.run.seed, "sampling"', '"sampling"',
             "training/test_step.py"),
    Mutation("seed of sampling: pair", SOURCE, '"sampling", random_key(pair.pair_id))', '"sampling")',
             "training/test_step.py"),
    Mutation("seed of sampling: step counted from 0", SOURCE, "random_key(pair.pair_id)", "pair.pair_id",
             "training/test_recording.py"),
    Mutation("seed of augmentation", SAMPLING, '"augmentation", step, index)', '"augmentation", index)',
             "data/test_sampling.py"),
    Mutation("seed of pairs", SAMPLING, '(self._seed, "pairs", step, index)', '(self._seed, "pairs", index)',
             "data/test_sampling.py"),
    Mutation("temperature of sampling", SOURCE, "temperature=settings.temperature", "temperature=1.0",
             "training/test_step.py"),
    Mutation("top-p of sampling", SOURCE, "top_p=settings.top_p", "top_p=1.0", "training/test_step.py"),
    Mutation("temperature of the sampler", "workers/engines/sampler.py",
             "scale_B1 = torch.where(greedy_B, 1.0, temperature_B)[:, None]",
             "scale_B1 = torch.ones_like(temperature_B)[:, None]", "workers/test_sampler.py"),
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, whose tests pass."""
    place = tmp_path_factory.mktemp("mutations") / "copy"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    files = sorted({name for mutation in MUTATIONS for name in mutation.tests.split()})
    done = run_tests(place, files)
    assert done.returncode == 0, done.stdout[-3000:]
    return place


def run_tests(place: Path, files: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs test files of a copy, against the package of that copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *(f"tests/{name}" for name in files)],
        cwd=place, env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.term)
def test_a_changed_term_makes_a_test_fail(copy: Path, mutation: Mutation) -> None:
    module = copy / "saga_dist" / mutation.path
    text = module.read_text("utf-8")
    module.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        done = run_tests(copy, mutation.tests.split())
    finally:
        module.write_text(text, "utf-8")
    assert done.returncode == 1, f"no test of {mutation.tests} noticed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.term)
def test_every_row_names_one_place(mutation: Mutation) -> None:
    text = (ROOT / "saga_dist" / mutation.path).read_text("utf-8")
    assert text.count(mutation.old) == 1
    assert all((ROOT / "tests" / name).is_file() for name in mutation.tests.split())
