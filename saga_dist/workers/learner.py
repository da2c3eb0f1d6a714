"""The learner: owns encoder, metric loss and optimizer, the only parts of the system that training changes.

One optimizer step is one or more ``encode`` calls and one ``finish_step``:

    encode       images ──tower──► X ──detach──► leaf ──pooler──► z ──► L_DML, backward to the leaf and the pooler
    (elsewhere)  rollout and replay turn X into dL_GRPO/dX
    finish_step  leaf.grad += dL_GRPO/dX;  L_KL into the pooler;  X.backward(leaf.grad): one backward through the tower

The graph is cut at the tokens, and the gradients of all losses at the tokens are added at the leaf. By the chain rule
the result equals that of end-to-end autograd.

The paper does not say how several micro-batches of a step combine; here their metric gradients are added, because the
paper writes the step as a sum. See ``optimization.py`` for clipping.
"""

from __future__ import annotations

import json
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
from saga_dist.models.lora import merged_weights
from saga_dist.models.trained_part import trained_parameters, trained_weights
from saga_dist.models.weight_digest import state_digest
from saga_dist.objectives.attention import attention_alignment_loss, buffer_alignment_loss
from saga_dist.protocols import Embeddings, EncodedBatch
from saga_dist.types import EncoderTokens, ImagePair, MicroBatch, StepResult, TokenGradients
from saga_dist.utils.output_files import write_file
from saga_dist.workers.data_parallel import ALONE, Ranks
from saga_dist.workers.encoding import SplitEncoder, TokenBatch
from saga_dist.workers.loss_shares import GradientNorms
from saga_dist.workers.optimization import build_optimizer, clip_gradients, schedule_factor


@dataclass(slots=True)
class _OpenBatch:
    """A micro-batch of the present step; its tower graph is kept until ``finish_step``."""

    tokens: TokenBatch
    """Output of the tower with the graph attached."""
    leaf_NW: torch.Tensor
    """The same values as a float32 leaf; dL/dX of all losses is added up in ``leaf_NW.grad``."""


class Learner:
    """Owns encoder, metric loss and optimizer; implements ``protocols.Learner``.

    Args:
        encoder: trainable tower and pooler.
        metric_loss: maps float32 embeddings [I, E] and labels [I] to L_DML; its parameters are the proxies.
        splits: image sets of the run, read in this process.
        data: section ``[data]`` of the configuration, with the augmentation.
        objective: section ``[objective]``, with the weights of the losses.
        optimizer: section ``[optimizer]``.
        num_steps: optimizer steps of the whole run, for the learning-rate schedule.
        autocast_dtype: bfloat16 to run the tower under autocast (weights and losses stay float32); None for no
            autocast.
        ranks: processes of this learner, see ``data_parallel.py``. With several ranks, ``encode``,
            ``encode_no_grad``, ``finish_step`` and ``embed`` are collective calls.
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
        self._norms = GradientNorms()
        self.optimizer = build_optimizer(
            optimizer, encoder=encoder, tower=encoder.tower, pooler=encoder.pooler, metric_loss=self.metric_loss
        )
        ranks.broadcast_weights([*encoder.parameters(), *self.metric_loss.parameters()])

    @property
    def step(self) -> int:
        """Number of optimizer steps done; also the encoder version."""
        return self._step

    # ------------------------------------------------------------------ one training step

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch of the present step and back-propagates lambda_dml * L_DML to its tokens.

        Returns one ``EncoderTokens`` per pair, in the order of the batch's pairs.

        Raises:
            TrainingError: the micro-batch belongs to another step.
        """
        if batch.step != self._step:
            raise TrainingError(f"micro-batch of step {batch.step}", where="learner", expected=f"step {self._step}")
        if batch.index == 0:  # drop the batches and gradients of a step that was abandoned before finish_step
            self._forget_open_batches()
            self._metrics.clear()
            self._norms = GradientNorms()
            self.optimizer.zero_grad(set_to_none=True)
        tokens = self._images.train_batch(batch)
        # The leaf is float32 for any dtype of the tower, because gradients of several losses and pairs add up in it.
        opened = _OpenBatch(tokens, tokens.values_NW.detach().float().requires_grad_())
        self._back_propagate_metric_loss(opened, batch.labels)
        self._open.append(opened)
        self._batch_of_pair.update({pair.pair_id: (opened, pair) for pair in batch.pairs})
        return self._publish(tokens, batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a later micro-batch with the present encoder; returns one ``EncoderTokens`` per pair.

        No graph is kept, and the state of the present step does not change. The batch is encoded again when it has its
        turn; with the same weights the tokens are then the same to the bit.
        """
        with torch.no_grad():
            tokens = self._images.train_batch(batch, again=True)
        return self._publish(tokens, batch)

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Starts reading the images of micro-batches that will probably be encoded soon; does not wait."""
        self._images.expect(batches)

    def finish_step(self, handles: Sequence[TokenGradients]) -> StepResult:
        """Takes one optimizer step with the token gradients of its pairs; returns the step's losses and norms.

        Args:
            handles: token gradients of the groups or pairs that train; empty when only the metric loss trains.

        Raises:
            TrainingError: a gradient is not finite, or belongs to another step.
        """
        signal = self._objective.signal
        signal_norm = self.accumulate(handles)
        clipped = clip_gradients(self.optimizer, self._settings.clip_norm)
        factor = schedule_factor(self._settings, self._step, self._num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._step += 1
        metrics = {name: float(np.mean(values)) for name, values in self._metrics.items()}
        self._metrics.clear()
        metrics |= {
            f"loss/{signal}": sum(gradient.loss for gradient in handles),
            "gradient/total_norm": clipped.encoder_norm,
            "gradient/proxies_norm": clipped.proxies_norm,
            "gradient/clip_factor": clipped.encoder_factor,
            f"gradient/{signal}_at_tokens_norm": signal_norm,
            **self._norms.shares(),
            "optimizer/lr_encoder": self.optimizer.param_groups[0]["lr"],
        }
        return StepResult(step=self._step, metrics=metrics)

    def accumulate(self, handles: Sequence[TokenGradients]) -> float:
        """Back-propagates the losses of the step into all parameters; returns the norm of lambda_lm * dL_GRPO/dX.

        This is the first half of ``finish_step``. Afterwards ``grad`` of every parameter is complete on all ranks, and
        not yet clipped.

        Args:
            handles: token gradients of the contributing groups.

        Raises:
            TrainingError: a gradient is not finite, or belongs to another step.
        """
        self._inject(handles)
        self._back_propagate_alignment(handles)
        for opened in self._open:
            assert opened.leaf_NW.grad is not None
            opened.tokens.values_NW.backward(opened.leaf_NW.grad.to(opened.tokens.values_NW.dtype))
        self._forget_open_batches()
        self._ranks.sum_gradients(trained_parameters(self.encoder.tower))
        self._ranks.broadcast_gradients([*self.encoder.pooler.parameters(), *self.metric_loss.parameters()])
        return self._norms.norm("tower", self._objective.signal)

    def _publish(self, tokens: TokenBatch, batch: MicroBatch) -> EncodedBatch:
        """Returns the payloads of a batch's pairs."""
        records = tuple(tokens.of_pair(pair, encoder_version=self._step) for pair in batch.pairs)
        return EncodedBatch(records, num_bytes=sum(record.values_NW.nbytes for record in records))

    def _back_propagate_metric_loss(self, opened: _OpenBatch, labels: Sequence[int]) -> None:
        """Back-propagates lambda_dml * L_DML to the leaf, the pooler and the proxies."""
        embeddings_IE = self.encoder.pooler(opened.tokens.main(opened.leaf_NW)).embeddings_IE
        loss = self.metric_loss(embeddings_IE.float(), torch.as_tensor(labels, device=embeddings_IE.device))
        (self._objective.lambda_dml * loss).backward()
        if opened.leaf_NW.grad is None:  # no gradient reached the tokens: lambda_dml = 0, max pooling of a constant
            opened.leaf_NW.grad = torch.zeros_like(opened.leaf_NW)
        self._record("loss/dml", loss.item())
        self._record("gradient/dml_at_tokens_norm", opened.leaf_NW.grad.norm().item())
        self._norms.add("tower", "dml", [opened.leaf_NW.grad])

    def _inject(self, gradients: Sequence[TokenGradients]) -> None:
        """Adds lambda_lm * dL_GRPO/dX to the leaves, scaled as ``objective.balance`` says."""
        signal, weight = self._objective.signal, self._objective.lambda_lm
        for gradient in gradients:
            if not torch.isfinite(gradient.values_NW).all():
                raise TrainingError(
                    "token gradient is not finite", where=f"pair {gradient.pair_id}", fix="see rollouts/"
                )
            self._norms.add("tower", signal, [gradient.values_NW], weight=weight)
        weight *= self._balancing_factor("tower", signal, weight)
        for gradient in gradients:
            opened, pair = self._of_this_step(gradient)
            values_NW = weight * gradient.values_NW.to(opened.leaf_NW.device)
            rows_a, rows_b = opened.tokens.rows[pair.image_a], opened.tokens.rows[pair.image_b]
            num_a = rows_a.stop - rows_a.start
            assert opened.leaf_NW.grad is not None
            opened.leaf_NW.grad[rows_a] += values_NW[:num_a]
            opened.leaf_NW.grad[rows_b] += values_NW[num_a:]

    def _back_propagate_alignment(self, gradients: Sequence[TokenGradients]) -> None:
        """Back-propagates lambda_kl * L_KL into the pooler only; tokens and targets are constants."""
        pooler = list(self.encoder.pooler.parameters())
        self._norms.add("pooler", "dml", [weight.grad for weight in pooler if weight.grad is not None])
        attended = [gradient for gradient in gradients if gradient.num_attended]
        if not self._objective.lambda_kl or not attended:
            return
        counts_P = torch.tensor([gradient.num_attended for gradient in attended])
        losses_P = torch.stack([self._alignment(gradient) for gradient in attended])
        loss = buffer_alignment_loss(losses_P, counts_P, int(counts_P.sum()))
        alignment = torch.autograd.grad(self._objective.lambda_kl * loss, pooler, allow_unused=True)
        self._norms.add("pooler", "kl", [gradient for gradient in alignment if gradient is not None])
        factor = self._balancing_factor("pooler", "kl", self._objective.lambda_kl)
        for weight, gradient in zip(pooler, alignment, strict=True):
            if gradient is not None:
                weight.grad = factor * gradient + (0 if weight.grad is None else weight.grad)
        self._record("loss/kl", loss.item())

    def _balancing_factor(self, place: str, loss: str, weight: float) -> float:
        """Returns the factor that ``objective.balance`` gives the gradient of a loss; 1 without balancing."""
        if self._objective.balance == "none":
            return 1.0
        return self._norms.balance(place, loss, to=weight / self._objective.lambda_dml)

    def _alignment(self, gradient: TokenGradients) -> torch.Tensor:
        """Returns the mean over a group's correct completions of KL(target || beta), summed over both images."""
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
        """Returns batch and pair of a token gradient.

        Raises:
            TrainingError: the gradient belongs to another step.
        """
        found = self._batch_of_pair.get(gradient.pair_id)
        if found is None or gradient.encoder_version != self._step:
            raise TrainingError(
                f"token gradient of encoder version {gradient.encoder_version}",
                where=f"pair {gradient.pair_id}",
                expected=f"a pair encoded in this step, version {self._step}",
            )
        return found

    def _record(self, name: str, value: float) -> None:
        """Adds a value of a metric, which is averaged over the step."""
        self._metrics.setdefault(name, []).append(value)

    def _forget_open_batches(self) -> None:
        self._open.clear()
        self._batch_of_pair.clear()
        self._images.forget_cast_weights()

    # ------------------------------------------------------------------ evaluation

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64 [I]; empty when the data has no such split."""
        return self._images.labels(split)

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns training images before augmentation, uint8 [H, W, 3] each."""
        return self._images.training_images(indices)

    def split_hash(self) -> str:
        """Returns the sha256 of the images, classes and labels of all splits."""
        return self._images.split_hash

    def tower_digest(self) -> str:
        """Returns the sha256 of the tower's present weights."""
        return state_digest(merged_weights(self.encoder.tower))

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split, float32 [I, E], l2-normalised.

        Args:
            split: name of the split.
            pretrained: True for the normalised mean of the main tokens, without the pooler.
        """
        return self._images.embed(split, pretrained=pretrained)

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[EncoderTokens]:
        """Returns one ``EncoderTokens`` per evaluation pair, without gradient or augmentation."""
        return self._images.encode_pairs(split, pairs, encoder_version=self._step)

    # ------------------------------------------------------------------ state

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer state and step into an existing folder (safetensors and JSON, no pickle)."""
        save_tensors(folder / "learner.safetensors", self._state())
        save_optimizer(folder, self.optimizer)
        write_file(folder / "learner.json", json.dumps({"step": self._step}))

    def load(self, folder: Path) -> None:
        """Restores the state that ``save`` wrote.

        Raises:
            CheckpointError: a tensor is missing, or its shape differs from the configured model's.
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
        """Writes the deployable encoder (tower and pooler, no MLLM)."""
        self.encoder.save(folder)

    def _state(self) -> dict[str, torch.Tensor]:
        """Returns the weights that training changes by name, ``part.parameter``."""
        parts = {
            "tower": trained_weights(self.encoder.tower),
            "pooler": self.encoder.pooler.state_dict(),
            "metric_loss": self.metric_loss.state_dict(),
        }
        return {f"{part}.{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}
