"""Metric sinks besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow; configured in section ``[logging]``.

Each sink is opened once, after the step from which the run resumes is determined, and receives every later step once,
and now and then a group of a step with its completions and images (``logging.group_every_steps``). The libraries are
imported when a sink is opened, so that ``--help``, ``--dry-run`` and the workers do not load them. Prometheus metrics
are exported through Ray (``runtime/ray/prometheus.py``).
"""

from saga_dist.metrics.sinks.build import build_sinks, require_loggers
from saga_dist.metrics.sinks.mlflow_sink import MlflowSink
from saga_dist.metrics.sinks.protocol import MetricSink
from saga_dist.metrics.sinks.tensorboard_sink import TensorBoardSink
from saga_dist.metrics.sinks.wandb_sink import WandbSink

__all__ = ["MetricSink", "MlflowSink", "TensorBoardSink", "WandbSink", "build_sinks", "require_loggers"]
