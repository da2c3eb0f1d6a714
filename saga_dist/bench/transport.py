"""Transport of encoder tokens from the learner's process to a worker's on the same node: Arrow or pickled tensors.

Both ways use Ray's object store. The lower bound is one copy into shared memory, about 2 ms for 3.2 MB, which both ways
need; readers of Arrow batches copy nothing. So only reading can be 5 times faster: with one write and two reads at the
measured 2.4 ms of the alternative, readers without any cost would give a factor of 3.5. In training a payload is
written once and read by a rollout worker and, when its group contributes, by a replay worker.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from saga_dist.bench.common import Report, Size, in_turns, less_is_better
from saga_dist.config import load_config
from saga_dist.runtime.ray.transport_bench import RoundTrip, digest, transport
from saga_dist.standin import DEMO_CONFIG
from saga_dist.types import EncoderTokens

WIDTH_8B, LEVELS_8B, SIDE_8B = 4096, 3, 7
"""Token width, DeepStack levels and tokens per side of an image in Qwen3-VL-8B at 224 pixels: 49 tokens per image and
3.2 MB per pair in bfloat16."""
SPEED_BAR = 5.0
"""Target for the ratio of the times."""
_LEARNER_ALONE = ("objective.lambda_lm=0", "objective.lambda_kl=0", "evaluation.verdict_pairs=0")


def run(size: Size) -> Report:
    """Returns milliseconds per pair for writing, for reading, and for both together."""
    num_pairs, repeats = {Size.TINY: (2, 1), Size.QUICK: (24, 5), Size.FULL: (48, 15)}[size]
    records = [_record(index, width=64 if size is Size.TINY else WIDTH_8B) for index in range(num_pairs)]
    megabytes = records[0].values_NW.nbytes / 1e6
    config = load_config(DEMO_CONFIG, [*_LEARNER_ALONE, "runtime.local_cpus=2", "runtime.object_store_mb=1024"])
    with transport(config) as ways:
        ours, other = in_turns(lambda: ways.ours(records), lambda: ways.pickled(records), repeats)
        writer_places, reader_places = ways.places(records)
    expected = tuple(digest(record) for record in records)
    equal = all(opened.digests == expected for trip in (*ours.results, *other.results) for opened in trip.opened)
    shared = sum(
        place is not None and place == other_place
        for place, other_place in zip(writer_places, reader_places, strict=True)
    )

    def per_pair(trips: Sequence[RoundTrip], part: Callable[[RoundTrip], float]) -> float:
        return 1e3 * statistics.median(part(trip) for trip in trips) / num_pairs

    parts: dict[str, tuple[Callable[[RoundTrip], float], float | None]] = {
        "write, rollout and replay read": (lambda trip: trip.seconds(2), SPEED_BAR),
        "write, one reads": (lambda trip: trip.seconds(1), SPEED_BAR),
        "write": (lambda trip: trip.put_s, None),
        "read": (lambda trip: trip.opened[0].seconds, None),
    }
    return Report(
        bench="transport",
        alternative="torch tensors pickled by Ray",
        rows=tuple(
            less_is_better(
                name,
                per_pair(ours.results, part),
                per_pair(other.results, part),
                "ms/pair",
                equal=equal and shared == num_pairs,
                bar=bar,
                detail={"megabytes_per_pair": megabytes, "pairs": num_pairs, "shared_buffers": shared},
            )
            for name, (part, bar) in parts.items()
        ),
        notes=(
            f"wall clock; {megabytes:.1f} MB a pair; values bit-equal in both",
            f"zero copy: {shared} of {num_pairs} buffers are the same bytes of the same shared file in both processes",
        ),
    )


def _record(index: int, *, width: int) -> EncoderTokens:
    generator = torch.Generator().manual_seed(index)
    values_NW = torch.randn(2 * SIDE_8B**2, (1 + LEVELS_8B) * width, generator=generator).bfloat16()
    grids = ((1, 2 * SIDE_8B, 2 * SIDE_8B),) * 2
    return EncoderTokens(f"p{index:03d}", values_NW, (SIDE_8B**2,) * 2, grids, LEVELS_8B, encoder_version=0)
