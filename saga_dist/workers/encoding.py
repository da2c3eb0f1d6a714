"""Encoding of images: reading, augmentation, forward pass of the tower, and the payload of a pair.

These are the learner's forward passes; losses and backward passes are in ``learner.py``. Pixels never leave the
learner's process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from saga_dist.config import DataSection
from saga_dist.data.batch_reader import BatchReader
from saga_dist.data.image_sets import ImageSet, Splits
from saga_dist.data.images import augment
from saga_dist.models.encoder import Encoder
from saga_dist.models.families.base import TokenLayout
from saga_dist.protocols import Embeddings
from saga_dist.types import EncoderTokens, Grid, ImagePair, MicroBatch
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.cast_weights import CastWeights
from saga_dist.workers.data_parallel import ALONE, Ranks

EVALUATION_BATCH = 64
"""Images per forward pass in evaluation."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Encoder tokens of several images, concatenated along the rows."""

    values_NW: torch.Tensor
    """[sum of N, (1 + L) * D]; in training with the tower's graph attached."""
    rows: dict[int, slice]
    """Rows of each image, by image id."""
    grids: dict[int, Grid]
    """Patch grid of each image before merging, by image id."""
    layout: TokenLayout
    """Sizes of the tokens."""

    def main(self, values_NW: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Returns the main tokens of each image, [N_i, D] views, in the order of ``rows``.

        Args:
            values_NW: other values with the same rows; None for the batch's own.
        """
        main_ND = self.layout.main(self.values_NW if values_NW is None else values_NW)
        return [main_ND[rows] for rows in self.rows.values()]

    def of_pair(self, pair: ImagePair, *, encoder_version: int) -> EncoderTokens:
        """Returns the payload of a pair: the tokens of image a, then those of image b, detached from the graph.

        Args:
            pair: two images of this batch.
            encoder_version: optimizer steps of the encoder that the tokens come from.
        """
        images = (pair.image_a, pair.image_b)
        return EncoderTokens(
            pair_id=pair.pair_id,
            values_NW=torch.cat([self.values_NW.detach()[self.rows[image]] for image in images]),
            lengths=tuple(self.rows[image].stop - self.rows[image].start for image in images),
            grids=tuple(self.grids[image] for image in images),
            num_deepstack=self.layout.num_deepstack,
            encoder_version=encoder_version,
        )


class SplitEncoder:
    """Encodes images of a run's splits.

    Args:
        encoder: tower and pooler.
        splits: image sets of the run.
        data: section with the augmentation settings and the number of threads that read training images.
        autocast_dtype: bfloat16 to run the tower under autocast (its weights stay float32); None for no autocast.
        ranks: processes of the learner; ``train_batch`` and ``embed`` divide their images among them.
    """

    def __init__(
        self,
        encoder: Encoder,
        splits: Splits,
        data: DataSection,
        *,
        autocast_dtype: torch.dtype | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._encoder, self._splits, self._data, self._ranks = encoder, splits, data, ranks
        self._weights = CastWeights(encoder.tower, autocast_dtype)
        self._reader = BatchReader(self._training_image, self._own_ids, num_threads=data.decode_threads)

    def forget_cast_weights(self) -> None:
        """Drops copies of the tower's weights; to be called whenever the weights have changed."""
        self._weights.forget()

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64 [I]; empty when the data has no such split."""
        return self._splits.named(split).labels_I if split in self._splits.names else np.zeros(0, np.int64)

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns training images before augmentation, uint8 [H, W, 3] each."""
        return [self._splits.train.image(index) for index in indices]

    @cached_property
    def split_hash(self) -> str:
        """Sha256 of the images, classes and labels of all splits."""
        return self._splits.split_hash()

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Starts reading this rank's images of micro-batches that will probably be encoded; does not wait."""
        for batch in batches:
            self._reader.expect(batch)

    def train_batch(self, batch: MicroBatch, *, again: bool = False) -> TokenBatch:
        """Returns the tokens of augmented training images, on each rank with the graph of its own share attached.

        Args:
            batch: a micro-batch; its augmentation seed and the image id determine the augmentation of an image.
            again: True when the batch will be encoded once more, in its own step.
        """
        self._encoder.train()
        image_ids = batch.image_ids
        own = self._run(self._own_ids(batch), self._reader.take(batch, again=again))
        values_NW = self._ranks.gather_rows(own.values_NW)
        sizes_I4: list[list[int]] = self._ranks.gather_rows(_sizes(own)).tolist()
        grids = {image: (size[1], size[2], size[3]) for image, size in zip(image_ids, sizes_I4, strict=True)}
        return TokenBatch(values_NW, _rows(image_ids, [size[0] for size in sizes_I4]), grids, own.layout)

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair], *, encoder_version: int) -> list[EncoderTokens]:
        """Returns the payloads of evaluation pairs, without gradient or augmentation.

        Args:
            split: name of the split.
            pairs: pairs of images of that split.
            encoder_version: optimizer steps of the encoder.
        """
        image_ids = sorted({image for pair in pairs for image in (pair.image_a, pair.image_b)})
        batches = list(self._evaluation_batches(self._splits.named(split), image_ids))
        lengths = [rows.stop - rows.start for batch in batches for rows in batch.rows.values()]
        joined = replace(
            batches[0],
            values_NW=torch.cat([batch.values_NW for batch in batches]),
            rows=_rows(image_ids, lengths),
            grids={image: grid for batch in batches for image, grid in batch.grids.items()},
        )
        return [joined.of_pair(pair, encoder_version=encoder_version) for pair in pairs]

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split, float32 [I, E], l2-normalised.

        Args:
            split: name of the split.
            pretrained: True for the normalised mean of the main tokens, without the pooler; E is then D.
        """
        images = self._splits.named(split)
        width = self._encoder.tower.layout.width if pretrained else self._encoder.embedding_dim
        # Each rank gets whole evaluation batches, so that the result is bit-identical for any number of ranks.
        batches = self._ranks.share(-(-len(images) // EVALUATION_BATCH))
        first, last = (min(end * EVALUATION_BATCH, len(images)) for end in (batches.start, batches.stop))
        chunks = [torch.zeros(0, width, device=self._encoder.device)]
        for batch in self._evaluation_batches(images, range(first, last)):
            per_image = batch.main()
            if pretrained:
                means_ID = torch.stack([image_ND.float().mean(0) for image_ND in per_image])
                embeddings_IE = nn.functional.normalize(means_ID, dim=-1)
            else:
                with torch.no_grad():
                    embeddings_IE = self._encoder.pooler(per_image).embeddings_IE
            chunks.append(embeddings_IE.float())
        values_IE = self._ranks.gather_rows(torch.cat(chunks)).cpu().numpy()
        return Embeddings(values_IE, images.labels_I, images.attributes_IA, self._splits.attribute_names)

    def _own_ids(self, batch: MicroBatch) -> tuple[int, ...]:
        """Returns the images of a micro-batch that this rank encodes."""
        return batch.image_ids[self._ranks.share(len(batch.image_ids))]

    def _training_image(self, index: int, augmentation_seed: int) -> np.ndarray:
        """Returns an augmented training image, uint8 [height, width, 3]; called in threads."""
        return augment(
            self._splits.train.image(index),
            counter_generator(augmentation_seed, index),
            flip=self._data.flip,
            shift=self._data.shift,
            color_jitter=self._data.color_jitter,
            crop=self._data.crop,
        )

    def _evaluation_batches(self, images: ImageSet, image_ids: Sequence[int]) -> Iterator[TokenBatch]:
        """Yields the tokens of images in batches of ``EVALUATION_BATCH``, without graph or augmentation."""
        self._encoder.eval()
        for start in range(0, len(image_ids), EVALUATION_BATCH):
            chunk = image_ids[start : start + EVALUATION_BATCH]
            with torch.no_grad():
                batch = self._run(chunk, [images.image(index) for index in chunk])
            yield batch

    def _run(self, image_ids: Sequence[int], arrays: Sequence[np.ndarray]) -> TokenBatch:
        """Returns the tower's tokens of uint8 [height, width, 3] images."""
        tower = self._encoder.tower
        pixels = tower.preprocess(arrays)
        values_NW = self._weights.forward(pixels)
        grids = dict(zip(image_ids, pixels.grids, strict=True))
        return TokenBatch(values_NW, _rows(image_ids, pixels.lengths), grids, tower.layout)


def _sizes(batch: TokenBatch) -> torch.Tensor:
    """Returns int64 [I, 4] on the tokens' device: number of tokens, then grid, of each image."""
    sizes = [(rows.stop - rows.start, *batch.grids[image]) for image, rows in batch.rows.items()]
    return torch.tensor(sizes, device=batch.values_NW.device)


def _rows(image_ids: Sequence[int], lengths: Sequence[int]) -> dict[int, slice]:
    """Returns the rows of each image in the concatenated tokens, by image id."""
    ends = np.cumsum(lengths).tolist()
    return {image: slice(end - length, end) for image, length, end in zip(image_ids, lengths, ends, strict=True)}
