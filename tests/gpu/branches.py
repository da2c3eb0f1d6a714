"""Every function of the package that does something else on CUDA, and the CPU test that enters it there."""

from __future__ import annotations

HERE, CHECKS = "gpu/test_branches.py::", "runtime/validation/test_checks.py::"
CAPACITY, FIT = "estimate/test_capacity.py::", "estimate/test_shipped_fit.py::"
MEASURING = "gpu/test_check_gpu_models.py::test_memory_of_a_gpu_is_what_torch_counts"
AGREEMENT, REQUESTS = "estimate/test_agreement.py::", "runtime/validation/test_gpu_requests.py::"

BRANCHES = {
    "bench/common.py::machine": HERE + "test_a_bench_names_the_gpu",
    "cli/doctor_checks.py::_devices": HERE + "test_the_doctor_names_the_gpus",
    "config/workers.py::RuntimeSection._learner_processes_fit": (
        "config/test_config.py::test_keys_that_contradict_each_other"
    ),
    "diagnostics/gpu_check/environment.py::device_facts": "gpu/test_check_gpu.py::test_facts_of_a_gpu",
    "diagnostics/gpu_check/measuring.py::peak_memory_of": MEASURING,
    "diagnostics/gpu_check/measuring.py::reset_peak": MEASURING,
    "diagnostics/gpu_check/measuring.py::synchronize": MEASURING,
    "diagnostics/gpu_check/runner.py::choose_size": (
        "diagnostics/test_gpu_check.py::test_a_gpu_that_cannot_be_used_is_one_line"
    ),
    "estimate/capacity.py::machine_limits": HERE + "test_limits_count_the_gpus",
    "estimate/placement.py::_learner_bytes": FIT + "test_a_configuration_fits_the_card_of_its_header",
    "estimate/placement.py::_replay_bytes": CAPACITY + "test_a_card_that_is_too_small_and_the_way_out",
    "estimate/placement.py::engine_bytes": FIT + "test_a_configuration_fits_the_card_of_its_header",
    "estimate/planner.py::wants_gpu": AGREEMENT + "test_a_gpu_run_on_a_machine_without_one",
    "estimate/rates.py::local_gpu": HERE + "test_the_gpu_here_has_its_data_sheet",
    "estimate/scaling.py::_learner_fits": AGREEMENT + "test_a_gpu_run_on_a_machine_without_one",
    "estimate/scaling.py::_replay_gpus": AGREEMENT + "test_a_gpu_run_on_a_machine_without_one",
    "models/placement.py::_unusable": HERE + "test_a_device_that_is_not_there_is_one_line",
    "models/families/attention_backends.py::_varlen_flash_takes": (
        "gpu/test_attention_backends.py::test_the_kernel_is_chosen_where_it_runs"
    ),
    "models/families/attention_backends.py::find_backend": (
        "gpu/test_attention_backends.py::test_the_kernel_is_chosen_where_it_runs"
    ),
    "models/weight_digest.py::_HostStream.blocks": HERE + "test_the_digest_streams_from_a_gpu",
    "runtime/devices.py::_visible": HERE + "test_a_device_that_is_not_there_is_one_line",
    "runtime/devices.py::choose_kernels": HERE + "test_cudnn_attention_is_off_where_a_gpu_trains_or_replays",
    "runtime/devices.py::replay_devices": "models/test_device_map.py::test_a_worker_takes_the_gpus_it_asked_ray_for",
    "runtime/devices.py::resolve_device": HERE + "test_every_cuda_device_has_an_index",
    "runtime/validation/gpu_requests.py::_has_gpus": (
        REQUESTS + "test_without_a_gpu_nothing_is_said_unless_the_run_asks_for_one"
    ),
    "runtime/validation/gpu_requests.py::check_gpu_requests": REQUESTS
    + "test_learner_processes_on_one_gpu_are_refused",
    "runtime/ray/fault_plan.py::FaultPlan.trigger": (
        "runtime/ray/test_pool.py::test_engine_that_raises_once_is_tried_again"
    ),
    "runtime/validation/gpus.py::visible_gpus": CHECKS + "test_gpus_are_device_files_that_are_visible",
    "runtime/validation/machine.py::_gpus_of_this_process": CHECKS + "test_gpus_that_are_there_are_enough",
    "runtime/validation/machine.py::check_devices": CHECKS + "test_gpus_that_are_there_are_enough",
    "workers/data_parallel.py::join": HERE + "test_ranks_on_gpus_join_with_nccl_on_a_device_with_an_index",
    "workers/engines/vllm_engine.py::VllmEngine.close": (
        "workers/test_vllm_arguments.py::test_a_closed_engine_frees_the_gpus_memory"
    ),
    "workers/engines/vllm_engine.py::_make_batch_invariant": (
        "workers/test_vllm_arguments.py::test_batch_invariance_is_asked_for_before_the_engine_starts"
    ),
    "workers/engines/vllm_engine.py::_start": (
        "workers/test_vllm_arguments.py::test_vllm_on_a_gpu_gets_a_computed_cache"
    ),
}
"""Test that enters each function on its CUDA side, by file and function."""
