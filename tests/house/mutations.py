"""Changes of one place in the package, each of which must make a test fail (``test_mutations.py``)."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A change of one place in the package."""

    term: str
    """The term, or the behaviour, that is changed."""
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
TEST_CHUNKS, TEST_WEIGHTS = "workers/test_replay_chunks.py", "workers/test_replay_weights.py"

TERMS = (
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
             TEST_CHUNKS),
    Mutation("temperature of the importance ratio", REPLAY, "logits_UV / sampling.temperature, targets_U) if",
             "logits_UV, targets_U) if", TEST_WEIGHTS),
    Mutation("policy at the sampling temperature", "objectives/policy.py", "torch.where(greedy_R, 1.0, temperature_R)",
             "torch.ones_like(temperature_R)", "objectives/test_policy.py"),
    Mutation("policy within top-p", "objectives/policy.py", "if bool((top_p_R < 1).any()):", "if False:",
             "objectives/test_policy.py"),
    Mutation("correction of the mismatch", SOURCE, "self._config.rollout.mismatch_truncation or None", "None",
             "training/test_prefetch.py"),
    Mutation("truncated importance weights", REPLAY, "importance_weights(current, reference, task.truncate_at)",
             'importance_weights(current, reference, float("inf"))', TEST_WEIGHTS),
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
"""Terms of the objectives, of the optimizer and of sampling."""

PROMISES = (
    # mistakes before a run
    Mutation("no step, no run", "runtime/earlier_run.py", "if differences and took_steps(run_dir):", "if differences:",
             "runtime/test_run_directory.py"),
    Mutation("settings that fit without validation classes", "runtime/validation/fit.py",
             "        return 0.0, dict(counts.training)", "        raise", "runtime/validation/test_fit.py"),
    Mutation("warning of GPU requests", "runtime/validation/checks.py", "    gpu_requests.check_gpu_requests,\n", "",
             "runtime/validation/test_gpu_requests.py"),
    # data
    Mutation("hidden files are counted", "data/folder_walk.py", "content.left_out.append(LeftOut(path, HIDDEN))",
             "pass", "data/test_folder_walk.py"),
    Mutation("links to folders are followed", "data/folder_walk.py", "linked.append(found)", "pass",
             "data/test_folder_walk.py"),
    Mutation("a class in two splits", "data/layouts/split_folders.py",
             "    _refuse_overlap(root, names, parts, options)\n", "", "data/layouts/test_split_folders.py"),
    Mutation("images in two splits", "data/duplicates.py", "yield from (Twins(first, other) for other in others)",
             "yield from ()", "data/test_duplicates.py"),
    Mutation("one image gives one vector", "data/image_input.py", "    if is_one_image(images):\n", "    if False:\n",
             "data/test_image_input.py"),
    # what a run says
    Mutation("queries that cannot be found", "cli/console.py", "*([unfindable] if unfindable else []),", "",
             "cli/test_console.py"),
    Mutation("warning of an idle MLLM", "training/contribution_monitor.py", "            log.warning(",
             "            log.debug(", "training/test_contribution_monitor.py"),
    Mutation("steps are counted from 1", "utils/pair_ids.py", "{steps_done + 1:06d}", "{steps_done:06d}",
             "utils/test_pair_ids.py"),
    Mutation("a stage that lasts is named again", "utils/waiting.py",
             "if not what or (changed and not self._is_one_wait):", "if not what:", "utils/test_waiting.py"),
    Mutation("waits are repeated each minute", "utils/waiting.py", "due += min(due, LONGEST_PAUSE_S)", "due *= 2",
             "utils/test_waiting.py"),
    # outputs and endings
    Mutation("one writer", "utils/directory_owner.py", "raise self._in_use(_when_written(descriptor)) from None",
             "return True", "utils/test_directory_owner.py"),
    Mutation("one line for the disk", "utils/output_errors.py",
             "        raise output_error(path, error, option=option) from error", "        raise",
             "utils/test_output_errors.py"),
    Mutation("a signal ends the start", "runtime/stopping.py", "if first and not self._deferrals:", "if False:",
             "runtime/test_stopping.py"),
    Mutation("a signal while a command imports", "cli/train.py", "with stop_on_signal() as stop:",
             "for stop in (None,):", "runtime/test_stopping.py"),
    Mutation("actors close before they are killed", "runtime/ray/endings.py",
             "await answer_of(actor.close.remote())", "pass", "runtime/ray/test_endings_order.py"),
    Mutation("files of killed runs are removed", "runtime/leftovers.py", "shutil.rmtree(folder, ignore_errors=True)",
             "pass", "runtime/test_leftovers.py"),
    Mutation("address of the dashboard", "runtime/ray/address.py", "value = variable if from_variable else setting",
             "value = setting", "runtime/ray/test_address.py"),
)  # fmt: skip
"""Behaviour that users rely on: what is refused, counted, said, written once and removed."""

MUTATIONS = (*TERMS, *PROMISES)
