"""The learner: the only part that changes anything.

One optimizer step is a series of ``encode`` calls and one ``finish_step``:

    encode       images ──tower──► X ──detach──► leaf ──pooler──► z ──► L_DML, backward to the leaf and the pooler
    (elsewhere)  rollout and replay turn X into dL_GRPO/dX
    finish_step  leaf.grad += dL_GRPO/dX;  L_KL into the pooler;  X.backward(leaf.grad): one backward through the tower

Cutting the graph at the tokens and adding what comes back is the chain rule: the result is that of end-to-end autograd.

What the paper leaves open and how it is read here: a step's further micro-batches add their metric gradients (a sum, as
the paper writes the step); see ``optimization.py`` for clipping.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saga_dist.checkpoint.state_files import load_optimizer, load_tensors, save_optimizer, save_tensors
from saga_dist.config import DataSection, ObjectiveSection, OptimizerSection
from saga_dist.data.image_sets import Splits
from saga_dist.errors import CheckpointError, TrainingError
from saga_dist.models.encoder import Encoder
from saga_dist.objectives.attention import attention_alignment_loss, buffer_alignment_loss
from saga_dist.protocols import Embeddings, EncodedBatch
from saga_dist.types import EncoderTokens, ImagePair, MicroBatch, StepResult, TokenGradients
from saga_dist.workers.data_parallel import ALONE, Ranks
from saga_dist.workers.encoding import SplitEncoder, TokenBatch
from saga_dist.workers.optimization import build_optimizer, clip_gradients, schedule_factor


@dataclass(slots=True)
class _OpenBatch:
    """A micro-batch whose tower graph waits for its token gradients."""

    tokens: TokenBatch
    """Tower output, graph attached."""
    leaf_NW: torch.Tensor
    """The same values, detached, float32; ``leaf_NW.grad`` collects dL/dX of all losses."""


class Learner:
    """Owns encoder, metric loss and optimizer; implements ``protocols.Learner``.

    Args:
        encoder: tower (trainable) and pooler.
        metric_loss: maps ([I, E] float32 embeddings, [I] labels) to L_DML; its parameters are the proxies.
        splits: the images; the learner reads them itself, so pixels never travel.
        data, objective, optimizer: their sections of the configuration.
        num_steps: optimizer steps of the whole run, for the schedule.
        autocast_dtype: bfloat16 to run the tower under autocast (weights and losses stay float32), or None.
        ranks: the processes of this learner, see ``data_parallel.py``; ``encode``, ``encode_no_grad``,
            ``finish_step`` and ``embed`` are then calls of all of them.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        metric_loss: nn.Module,
        splits: Splits,
        data: DataSection,
        objective: ObjectiveSection,
        optimizer: OptimizerSection,
        num_steps: int,
        autocast_dtype: torch.dtype | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.encoder = encoder
        self.metric_loss = metric_loss.to(encoder.device)
        self._ranks = ranks
        self._images = SplitEncoder(encoder, splits, data, autocast_dtype=autocast_dtype, ranks=ranks)
        self._objective, self._settings, self._num_steps = objective, optimizer, num_steps
        self._step = 0
        self._open: list[_OpenBatch] = []
        self._batch_of_pair: dict[str, tuple[_OpenBatch, ImagePair]] = {}
        self._metrics: dict[str, list[float]] = {}
        self.optimizer = build_optimizer(
            optimizer, encoder=encoder, tower=encoder.tower, pooler=encoder.pooler, metric_loss=self.metric_loss
        )
        ranks.adopt_weights([*encoder.parameters(), *self.metric_loss.parameters()])

    @property
    def step(self) -> int:
        """Optimizer steps done so far; also the encoder version."""
        return self._step

    # ------------------------------------------------------------------ one training step

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch, back-propagates lambda_dml * L_DML to the tokens, and publishes each pair's tokens.

        Returns one ``EncoderTokens`` per pair, in the order of the batch's pairs (phase A of the step).
        """
        if batch.step != self._step:
            raise TrainingError(f"micro-batch of step {batch.step}", where="learner", expected=f"step {self._step}")
        if batch.index == 0:  # a step that was given up half-way must leave nothing in this one
            self._forget_open_batches()
            self.optimizer.zero_grad(set_to_none=True)
        tokens = self._images.train_batch(batch.image_ids, augmentation_seed=batch.augmentation_seed)
        # float32 whatever the tower's dtype: gradients of several losses and pairs add up here.
        opened = _OpenBatch(tokens, tokens.values_NW.detach().float().requires_grad_())
        self._back_propagate_metric_loss(opened, batch.labels)
        self._open.append(opened)
        self._batch_of_pair.update({pair.pair_id: (opened, pair) for pair in batch.pairs})
        return self._publish(tokens, batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Publishes the tokens of every pair of a later step's batch, as today's encoder sees them.

        No graph is kept and the open step is left alone: when its own step comes, the batch is encoded anew.
        """
        with torch.no_grad():
            tokens = self._images.train_batch(batch.image_ids, augmentation_seed=batch.augmentation_seed)
        return self._publish(tokens, batch)

    def finish_step(self, handles: Sequence[TokenGradients]) -> StepResult:
        """Takes one optimizer step from the token gradients of its groups (phase C).

        Args:
            handles: token gradients of the contributing groups; empty when only the metric loss trains.

        Raises:
            TrainingError: a gradient is not finite, or belongs to another step.
        """
        grpo_norm = self.accumulate(handles)
        norm = clip_gradients(self.optimizer, self._settings.clip_norm)
        factor = schedule_factor(self._settings, self._step, self._num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._step += 1
        metrics = {name: float(np.mean(values)) for name, values in self._metrics.items()}
        self._metrics.clear()
        metrics |= {
            "loss/grpo": sum(gradient.loss for gradient in handles),
            "gradient/total_norm": norm,
            "gradient/grpo_at_tokens_norm": grpo_norm,
            "optimizer/lr_encoder": self.optimizer.param_groups[0]["lr"],
        }
        return StepResult(step=self._step, metrics=metrics)

    def accumulate(self, handles: Sequence[TokenGradients]) -> float:
        """Back-propagates the open step's losses into all parameters and returns the norm of lambda_lm * dL_GRPO/dX.

        The first half of ``finish_step``: the gradients are there, on all ranks, neither clipped nor used.

        Args:
            handles: token gradients of the contributing groups.

        Raises:
            TrainingError: a gradient is not finite, or belongs to another step.
        """
        grpo_norm = self._inject(handles)
        self._back_propagate_alignment(handles)
        for opened in self._open:
            assert opened.leaf_NW.grad is not None
            opened.tokens.values_NW.backward(opened.leaf_NW.grad.to(opened.tokens.values_NW.dtype))
        self._forget_open_batches()
        self._ranks.sum_gradients(list(self.encoder.tower.parameters()))
        self._ranks.adopt_gradients([*self.encoder.pooler.parameters(), *self.metric_loss.parameters()])
        return grpo_norm

    def _publish(self, tokens: TokenBatch, batch: MicroBatch) -> EncodedBatch:
        records = tuple(tokens.of_pair(pair, encoder_version=self._step) for pair in batch.pairs)
        return EncodedBatch(records, num_bytes=sum(record.values_NW.nbytes for record in records))

    def _back_propagate_metric_loss(self, opened: _OpenBatch, labels: Sequence[int]) -> None:
        embeddings_IE = self.encoder.pooler(opened.tokens.main(opened.leaf_NW)).embeddings_IE
        loss = self.metric_loss(embeddings_IE.float(), torch.as_tensor(labels, device=embeddings_IE.device))
        (self._objective.lambda_dml * loss).backward()
        if opened.leaf_NW.grad is None:  # max pooling of a constant, lambda_dml = 0: nothing reached the tokens
            opened.leaf_NW.grad = torch.zeros_like(opened.leaf_NW)
        self._note("loss/dml", loss.item())
        self._note("gradient/dml_at_tokens_norm", opened.leaf_NW.grad.norm().item())

    def _inject(self, gradients: Sequence[TokenGradients]) -> float:
        """Adds lambda_lm * dL_GRPO/dX to the leaves and returns its norm."""
        squared = 0.0
        for gradient in gradients:
            opened, pair = self._of_this_step(gradient)
            if not torch.isfinite(gradient.values_NW).all():
                raise TrainingError(
                    "token gradient is not finite", where=f"pair {gradient.pair_id}", fix="see rollouts/"
                )
            values_NW = self._objective.lambda_lm * gradient.values_NW.to(opened.leaf_NW.device)
            rows_a, rows_b = opened.tokens.rows[pair.image_a], opened.tokens.rows[pair.image_b]
            num_a = rows_a.stop - rows_a.start
            assert opened.leaf_NW.grad is not None
            opened.leaf_NW.grad[rows_a] += values_NW[:num_a]
            opened.leaf_NW.grad[rows_b] += values_NW[num_a:]
            squared += values_NW.square().sum().item()
        return math.sqrt(squared)

    def _back_propagate_alignment(self, gradients: Sequence[TokenGradients]) -> None:
        """lambda_kl * L_KL into the pooler only: tokens and targets are constants."""
        attended = [gradient for gradient in gradients if gradient.num_attended]
        if not self._objective.lambda_kl or not attended:
            return
        counts_P = torch.tensor([gradient.num_attended for gradient in attended])
        losses_P = torch.stack([self._alignment(gradient) for gradient in attended])
        loss = buffer_alignment_loss(losses_P, counts_P, int(counts_P.sum()))
        (self._objective.lambda_kl * loss).backward()
        self._note("loss/kl", loss.item())

    def _alignment(self, gradient: TokenGradients) -> torch.Tensor:
        """Mean over a group's correct completions of KL(target || beta), both images added."""
        opened, pair = self._of_this_step(gradient)
        assert gradient.attention_a_N is not None
        assert gradient.attention_b_N is not None
        losses = []
        for image, target_N in ((pair.image_a, gradient.attention_a_N), (pair.image_b, gradient.attention_b_N)):
            main_ND = opened.tokens.layout.main(opened.leaf_NW.detach()[opened.tokens.rows[image]])
            log_beta_N = self.encoder.pooler.log_weights([main_ND])[0]
            losses.append(attention_alignment_loss(target_N.to(log_beta_N.device), 0.0, log_beta_N))
        return torch.stack(losses).sum() + gradient.negative_entropy

    def _of_this_step(self, gradient: TokenGradients) -> tuple[_OpenBatch, ImagePair]:
        found = self._batch_of_pair.get(gradient.pair_id)
        if found is None or gradient.encoder_version != self._step:
            raise TrainingError(
                f"token gradient of encoder version {gradient.encoder_version}",
                where=f"pair {gradient.pair_id}",
                expected=f"a pair encoded in this step, version {self._step}",
            )
        return found

    def _note(self, name: str, value: float) -> None:
        self._metrics.setdefault(name, []).append(value)

    def _forget_open_batches(self) -> None:
        self._open.clear()
        self._batch_of_pair.clear()

    # ------------------------------------------------------------------ evaluation

    def labels(self, split: str) -> np.ndarray:
        """Returns the int64 [I] labels of a split, empty where this data has no such split."""
        return self._images.labels(split)

    def split_hash(self) -> str:
        """Returns the sha256 of which images, classes and labels the splits hold."""
        return self._images.split_hash

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split; with ``pretrained`` the normalised mean of the main tokens, no pooler."""
        return self._images.embed(split, pretrained=pretrained)

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[EncoderTokens]:
        """Returns the tokens of evaluation pairs, without gradient or augmentation."""
        return self._images.encode_pairs(split, pairs, encoder_version=self._step)

    # ------------------------------------------------------------------ state

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer state and step into ``folder`` (safetensors and JSON, no pickle)."""
        save_tensors(folder / "learner.safetensors", self._state())
        save_optimizer(folder, self.optimizer)
        (folder / "learner.json").write_text(json.dumps({"step": self._step}), "utf-8")

    def load(self, folder: Path) -> None:
        """Restores what ``save`` wrote.

        Raises:
            CheckpointError: a tensor is missing or has another shape than this configuration's model.
        """
        saved, own = load_tensors(folder / "learner.safetensors"), self._state()
        shapes, expected = ({name: tensor.shape for name, tensor in state.items()} for state in (saved, own))
        wrong = [name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)]
        if wrong:
            raise CheckpointError(
                f"tensor {min(wrong)} does not fit the model",
                where=str(folder),
                fix="resume with the config of this run",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        load_optimizer(folder, self.optimizer)
        self._step = int(json.loads((folder / "learner.json").read_text("utf-8"))["step"])
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_open_batches()

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder: tower and pooler, no MLLM."""
        self.encoder.save(folder)

    def _state(self) -> dict[str, torch.Tensor]:
        parts = {"tower": self.encoder.tower, "pooler": self.encoder.pooler, "metric_loss": self.metric_loss}
        return {
            f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()
        }
