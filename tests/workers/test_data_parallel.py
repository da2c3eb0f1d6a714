"""Several Gloo processes against one: the same weights, rank for rank the same bits, and no endless wait.

Each rank is this file run as a script; ``main`` at its end is what a rank does.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saga_dist.config import parse_config
from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.models.encoder import Encoder
from saga_dist.models.pooler import Pooler
from saga_dist.models.trained_part import choose_trained
from saga_dist.objectives.metric_losses import build_metric_loss
from saga_dist.runtime.build import build_family
from saga_dist.types import EncoderTokens, LogProbMismatch, TokenGradients
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.data_parallel import ALONE, PeerLost, Ranks, join, join_store, leave, open_store
from saga_dist.workers.learner import Learner

ROOT = Path(__file__).resolve().parents[2]
STEPS, LR = 3, 1e-4


@contextmanager
def ranks_of(
    size: int, folder: Path, checkpoint: Path, what: str, *, timeout_s: float = 300
) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs all ranks of a learner, which meet in this process; none outlives the block."""
    store = open_store("127.0.0.1", size=size, timeout_s=timeout_s)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ranks = []
    for rank in range(size):
        words = [rank, size, store.port, timeout_s, folder, checkpoint, what]
        command = [sys.executable, __file__, *map(str, words)]
        pipe = subprocess.PIPE
        ranks.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True))
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def train(size: int, folder: Path, checkpoint: Path, what: str) -> list[Path]:
    """Returns each rank's folder after ``STEPS`` steps; one rank needs no process of its own."""
    if size == 1:
        return [run_rank(ALONE, folder, checkpoint, what)]
    with ranks_of(size, folder, checkpoint, what) as ranks:
        said = [rank.communicate(timeout=400)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(said)
    return [folder / f"{what}-{size}-{rank}" for rank in range(size)]


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.integration
# Three ranks whose shares and images differ in size are the harder case of the same sums.
@pytest.mark.parametrize(
    ("size", "what"),
    [
        pytest.param(2, "equal", marks=pytest.mark.slow),
        (3, "ragged"),
        pytest.param(2, "lora", marks=pytest.mark.slow),
    ],
)
def test_ranks_take_the_steps_of_one_process(size: int, what: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (alone,) = train(1, tmp_path, tiny_checkpoint, what)
    first, *others = train(size, tmp_path, tiny_checkpoint, what)
    assert [digests(rank) for rank in others] == [digests(first)] * (size - 1), "of all ranks, to the bit"
    expected, found = (load_file(folder / "learner.safetensors") for folder in (alone, first))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        # Biases and B of low-rank updates start at zero and hence are the sum of Adam's steps of LR, which enlarge the
        # rounding of gradients that are zero in exact arithmetic (the keys' bias): they are measured by what they may
        # move.
        starts_at_zero = name.endswith((".bias", ".lora_B.default.weight"))
        scale = 100 * LR * STEPS * tensor.numel() ** 0.5 if starts_at_zero else tensor.norm()
        error = (found[name] - tensor).norm() / scale
        assert error < 1e-6, f"{name}: relative error {error:.2e}"
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (alone, first)]
    for of_one, of_several in zip(*metrics, strict=True):
        assert of_several == pytest.approx(of_one, rel=1e-4)
    for split in ("val", "val-pretrained"):  # before the first step: the same weights, hence the same bits
        before = [np.load(folder / f"{split}.npy") for folder in (alone, first)]
        np.testing.assert_array_equal(*before)


@pytest.mark.integration
@pytest.mark.parametrize("what", ["die", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_lost_rank_is_one_error_within_the_deadline(what: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with ranks_of(2, tmp_path, tiny_checkpoint, what, timeout_s=30) as (first, _):
        said = first.communicate(timeout=240)[0]  # it does end, that is the point
        assert first.returncode == 3, said
    assert said.splitlines()[-1].startswith("learner: another rank is gone or silent ("), said


@pytest.mark.integration
def test_ranks_that_never_come_are_an_error() -> None:
    store = open_store("127.0.0.1", size=2, timeout_s=3)
    try:
        with pytest.raises(PeerLost, match="another rank is gone or silent"):
            join(store, rank=0, size=2, device=torch.device("cpu"), timeout_s=3)
    finally:
        leave()


@pytest.mark.parametrize(("number", "size"), [(8, 2), (8, 3), (5, 4), (2, 3), (0, 2)])
def test_shares_are_contiguous_and_complete(number: int, size: int) -> None:
    shares = [list(range(number))[Ranks(rank, size).share(number)] for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_copied() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert ALONE.gather_rows(rows) is rows


# ---------------------------------------------------------------------- one rank


@dataclass(frozen=True, eq=False)
class RaggedImageSet(ArrayImageSet):
    """Every third image is smaller: 16 tokens in place of 25."""

    def image(self, index: int) -> np.ndarray:
        return super().image(index)[:64, :64] if index % 3 == 0 else super().image(index)


def make_learner(checkpoint: Path, ranks: Ranks, what: str) -> Learner:
    """A learner whose ranks would start from different poolers and low-rank updates, were they left to themselves."""

    def images(number: int) -> ArrayImageSet:
        pixels = np.random.default_rng(number).integers(0, 256, (number, 80, 80, 3), dtype=np.uint8)
        of_split = RaggedImageSet if what == "ragged" else ArrayImageSet
        return of_split(pixels, np.arange(number) % 4, tuple("abcd"))

    config = parse_config(
        {
            "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2, "crop": 0.5},
            "model": {"path": str(checkpoint), "dtype": "float32", "embedding_dim": 16, "device": "cpu"}
            | ({"train": "lora"} if what == "lora" else {}),
            "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1},
            "optimizer": {"lr_encoder": LR, "lr_pooler": 10 * LR},
            "rollout": {"pairs_per_batch": 4},
        },
        where="test",
    )
    tower = build_family(config).load_tower(dtype=torch.float32, device="cpu")
    choose_trained(tower, config.model, seed=ranks.rank)
    return Learner(
        encoder=Encoder(
            tower, Pooler("attention", width=tower.layout.width, embedding_dim=16, seed=ranks.rank), image_size=80
        ),
        metric_loss=build_metric_loss("proxy_anchor", num_classes=4, embedding_dim=16, seed=2),
        splits=Splits(images(16), images(150), images(17)),
        data=config.data,
        objective=config.objective,
        optimizer=config.optimizer,
        num_steps=STEPS,
        ranks=ranks,
    )


def made_up(tokens: EncoderTokens) -> TokenGradients:
    """Token gradients and attention targets as functions of the pair's id."""
    generator = counter_generator("made-up", tokens.pair_id)
    target_a, target_b = (
        torch.tensor(generator.dirichlet(np.ones(length)), dtype=torch.float32) for length in tokens.lengths
    )
    values_NW = torch.tensor(generator.normal(size=tuple(tokens.values_NW.shape)), dtype=torch.float32)
    return TokenGradients(
        pair_id=tokens.pair_id,
        values_NW=0.01 * values_NW,
        attention_a_N=target_a,
        attention_b_N=target_b,
        negative_entropy=-2.0,
        num_attended=1,
        loss=0.25,
        num_tokens=10,
        mismatch=LogProbMismatch(0.0, 0.0),
        encoder_version=tokens.encoder_version,
    )


def take_step(learner: Learner, what: str, ranks: Ranks) -> dict[str, float]:
    """One optimizer step of two micro-batches; the last rank may be lost in the middle of it."""
    sampler = ClassBalancedSampler(learner.labels("train"), 8, 2, seed=3)
    gradients = []
    batches = [sampler.micro_batch(learner.step, index, 4) for index in range(2)]
    learner.expect(batches)
    early = learner.encode_no_grad(batches[1]).handles
    for batch in batches:
        encoded = learner.encode(batch).handles
        gradients += [made_up(tokens) for tokens in encoded]
    for mine, theirs in zip(early, encoded, strict=True):
        torch.testing.assert_close(mine.values_NW, theirs.values_NW, rtol=0, atol=0)
    if ranks.rank == ranks.size - 1 and what in ("die", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if what == "die" else signal.SIGSTOP)
    return dict(learner.finish_step(gradients).metrics)


def run_rank(ranks: Ranks, folder: Path, checkpoint: Path, what: str) -> Path:
    """Trains one rank and returns the folder with its embeddings, state and metrics."""
    learner = make_learner(checkpoint, ranks, what)
    own = folder / f"{what}-{ranks.size}-{ranks.rank}"
    own.mkdir()
    np.save(own / "val.npy", learner.embed("val").values_IE)
    np.save(own / "val-pretrained.npy", learner.embed("val", pretrained=True).values_IE)
    metrics = [take_step(learner, what, ranks) for _ in range(STEPS)]
    np.save(own / "after.npy", learner.embed("val").values_IE)
    learner.save(own)
    (own / "metrics.json").write_text(json.dumps(metrics))
    return own


def main(arguments: Sequence[str]) -> None:
    rank, size, port = map(int, arguments[:3])
    timeout_s, folder, checkpoint, what = float(arguments[3]), *map(Path, arguments[4:6]), arguments[6]
    store = join_store("127.0.0.1", port, size=size, timeout_s=timeout_s)
    ranks = join(store, rank=rank, size=size, device=torch.device("cpu"), timeout_s=timeout_s)
    try:
        run_rank(ranks, folder, checkpoint, what)
    except PeerLost as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        os._exit(3)  # the process group's own threads would wait for the other rank
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
