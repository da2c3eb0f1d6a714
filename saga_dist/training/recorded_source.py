"""A rollout source that reads recorded groups, for training, debugging and comparison without an engine.

The folder ``rollouts/`` of another run, or of `saga-dist rollout`, holds every scored group of every step. Pairs come
from counters, so a run with the same data, seed and batches needs exactly the recorded pairs.

With the recorded run's configuration, weights and data the run is reproduced bit for bit: the groups of each step are
on-policy. With any other they are off-policy: they were sampled with another encoder, whose tokens are not recorded.
Each completion token is then weighted by min(p_replay / p_engine, rollout.importance_truncation), with both
probabilities from the untempered model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from saga_dist.config import RunConfig, load_run_config
from saga_dist.errors import DataError
from saga_dist.protocols import EncodedBatch
from saga_dist.training.recording_folder import RECORDINGS_NAME, not_recorded, recorded_files
from saga_dist.training.source_protocol import Outcome
from saga_dist.types import MicroBatch, Quarantined, ScoredGroup
from saga_dist.wire import RunIdentity, open_recording

log = logging.getLogger(__name__)


class RecordedRolloutSource:
    """Implements ``RolloutSource`` with the recordings of a run directory.

    Args:
        config: configuration of the run that trains.
        run_dir: directory of the recorded run.
        identity: weights and data of the run that trains; None: not compared with those of the recordings.

    Raises:
        DataError: ``run_dir`` has no recordings.
        ConfigError: ``run_dir`` is not a run directory.
    """

    def __init__(self, config: RunConfig, run_dir: Path, identity: RunIdentity | None = None) -> None:
        differences = load_run_config(run_dir).differences(config)
        self._run_dir, self._folder = run_dir, run_dir / RECORDINGS_NAME
        self._truncate_at = config.rollout.importance_truncation
        self._same_run = all(difference.startswith("rollout.recording:") for difference in differences)
        self._files = recorded_files(run_dir)
        self._identity, self._same_weights, self._warned = identity, True, False
        self._step = -1
        self._groups: dict[str, ScoredGroup] = {}

    def prefetch(self, step: int) -> None:
        """Does nothing; the groups are recorded already."""

    def start(self, batch: MicroBatch, encoded: EncodedBatch) -> None:
        """Does nothing; the groups are recorded already."""

    def get_groups(self, batch: MicroBatch, encoded: EncodedBatch) -> list[Outcome]:
        """Returns the recorded group of every pair, or ``Quarantined`` for a pair that was not recorded.

        Args:
            batch: a micro-batch of the open step.
            encoded: ignored.

        Raises:
            DataError: the step was not recorded, or a recorded pair has other images or classes.
        """
        if batch.step != self._step:
            if batch.step + 1 not in self._files:
                raise not_recorded(self._run_dir, batch.step + 1)
            recording = open_recording(self._files[batch.step + 1])
            self._step, self._groups = batch.step, {group.pair_id: group for group in recording.groups}
            self._compare(recording.identity)
        outcomes: list[Outcome] = []
        for pair in batch.pairs:
            group = self._groups.get(pair.pair_id)
            if group is None:
                outcomes.append(Quarantined(pair.pair_id, "not in the recording", 0))
                continue
            if group.pair != pair:
                raise DataError(
                    f"pair {pair.pair_id} has images {group.pair.image_a}, {group.pair.image_b} and classes "
                    f"{group.pair.label_a}, {group.pair.label_b}",
                    where=str(self._folder),
                    expected=f"images {pair.image_a}, {pair.image_b} and classes {pair.label_a}, {pair.label_b}",
                    fix="use the data, seed and batches of the recorded run",
                )
            outcomes.append(group)
        return outcomes

    def _compare(self, recorded: RunIdentity | None) -> None:
        """Notes whether the open step was recorded with the weights and data of this run; warns once if it was not.

        Recordings of earlier versions do not say it and are taken to be.
        """
        known = self._identity is not None and recorded is not None
        different = self._identity.differences(recorded) if known else ()  # type: ignore[union-attr, arg-type]
        self._same_weights = not different
        if different and not self._warned:
            self._warned = True
            log.warning("%s: recorded with another state of %s; off-policy", self._folder, " and ".join(different))

    def off_policy(self, group: ScoredGroup, step: int) -> tuple[Any, float | None]:
        """Returns None for the tokens, which are not recorded, and the truncation of the importance weights.

        The truncation is None, for on-policy, when this run has the configuration, weights and data of the recorded one
        and the group was sampled with the encoder version of this step.
        """
        on_policy = self._same_run and self._same_weights and group.completions.encoder_version == step
        return None, None if on_policy else self._truncate_at

    def cancel_rest(self, step: int) -> list[str]:
        """Returns an empty list; no rollouts are in progress."""
        return []

    def end_step(self, step: int, num_batches: int) -> dict[str, float]:
        """Returns no metrics."""
        return {}

    def forget(self) -> None:
        """Does nothing; no rollouts are in progress."""
