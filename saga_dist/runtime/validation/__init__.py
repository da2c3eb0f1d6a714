"""Validation of a run before anything heavy is loaded; ``checks.CHECKS`` is the list of all checks.

checks     the table of checks, and ``validate_run``, which runs them
facts      what several checks read: the checkpoint's config.json, the splits, the place where the run will be
model      model folder, family, layers, image size, context
method     prompt and loggers
sampling   temperature and completions of a pair against the limits of vLLM
data       classes and pairs of the data set, recordings
machine    devices, engine, CPUs and GPUs, run directory, disk
gpu_requests  GPU requests that put several processes on one GPU
cluster    resources of the cluster that the run joins
fit        settings that fit a small data set
"""

from saga_dist.runtime.validation.checks import validate_run

__all__ = ["validate_run"]
