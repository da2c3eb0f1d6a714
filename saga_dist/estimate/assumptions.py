"""Assumed utilisations and durations, used where nothing was measured; each has a range and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assumption:
    """A number that has not been measured for this program on such a card."""

    value: float
    """Expected value."""
    low: float
    """Lower end of the plausible range."""
    high: float
    """Upper end of the plausible range."""
    reason: str
    """Reason for the range, as printed with the rate."""


_TRAINING = "published trainings of large transformers reach 38 to 46 %"
UTILISATIONS = {
    "encoder": Assumption(0.35, 0.20, 0.50, f"{_TRAINING}, narrow layers and few patches less"),
    "backward": Assumption(0.35, 0.20, 0.50, f"{_TRAINING}, narrow layers and few patches less"),
    "replay": Assumption(0.40, 0.20, 0.50, f"{_TRAINING}, ragged and padded completions less"),
    "prefill": Assumption(0.50, 0.30, 0.60, "large matrix products, no backward pass; few prompts at once less"),
    "decode": Assumption(0.60, 0.40, 0.80, "long contiguous reads come near the peak, many short ones do not"),
    "decode_operations": Assumption(0.50, 0.30, 0.60, "as prefill"),
    "update": Assumption(0.60, 0.40, 0.80, "one fused pass comes near the peak, passes with temporaries do not"),
    "link": Assumption(0.50, 0.25, 0.80, "large buckets reach 80 %, small ones wait for launches"),
}
"""Utilisation of the data sheet's peak, 0 to 1, by name of the rate."""
ENGINE_STEP_S = Assumption(
    0.003, 0.001, 0.008, "kernel launches and sampling: with CUDA graphs, or one kernel after the other"
)
"""Seconds of overhead in every engine step, besides matrix products and memory reads."""
LONGEST = Assumption(
    1.25, 1.0, 1.5, "answers with the same keys differ little in length; now and then one runs on, up to max_tokens"
)
"""Tokens of the longest completion of an engine's batch, divided by the mean."""
IMAGE_S = Assumption(0.004, 0.002, 0.020, "decoding and resizing on one core: a thumbnail, or a large photograph")
"""Seconds to read and preprocess one image on one core."""
