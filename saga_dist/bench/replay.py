"""Replay compared with full sequences: forward and backward of prompt and completion, once per completion.

The alternative is the usual method of GRPO trainers, without anything that would slow it down here: the same frozen
decoder, the same attention kernel, no cache, no padding, logits of the completion only, no gradient for weights. The
limit of the gain is the ratio of token counts, G * (prompt + completion) to prompt + G * completion. Attention saves
less than that, because a completion still attends to the whole prompt: in operations (without gradients of weights) the
ratio is 3.7, 2.0 and 1.5 for T = 100, 350 and 700, so for T >= 350 the target of 0.92 of the token ratio can only be
reached by more efficient kernels. The completions are random and all different here: processing equal completions only
once, which speeds up training, has no effect in this benchmark.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.bench.common import (
    BenchRow,
    Report,
    Size,
    in_own_process,
    in_turns,
    less_is_better,
    one_thread,
    peak_memory,
    random_model,
)
from saga_dist.bench.random_groups import prompt_of_length, random_task, random_tokens
from saga_dist.models.families import resolve_family
from saga_dist.workers.replay import ReplayWorker

if TYPE_CHECKING:
    from saga_dist.models.families.qwen3_vl.backbone import Qwen3VLBackbone

TIME_SHARE = 0.92
"""Target for the ratio of the times, as a share of the ratio of token counts."""
TOLERANCE_FP32 = 1e-5
"""Largest relative error between the gradients of both sides, by the Euclidean norm."""


@dataclass(frozen=True, slots=True)
class ReplayCase:
    """Sizes of one group: the model, the prompt and G completions."""

    layers: int
    """Layers of the language model."""
    width: int
    """D, hidden size of the language model."""
    side: int
    """Tokens per side of each of the two square images."""
    num_prompt: int
    """Tokens of the whole prompt, images included."""
    lengths: tuple[int, ...]
    """[G] lengths of the completions in tokens."""

    @property
    def token_ratio(self) -> float:
        """Tokens of full sequences divided by those with a shared prompt: the gain if only token counts mattered."""
        total = sum(self.lengths)
        return (len(self.lengths) * self.num_prompt + total) / (self.num_prompt + total)


def run(size: Size) -> Report:
    """Returns processor time per group and peak memory for several lengths of completions."""
    rows: list[BenchRow] = []
    for name, work in _cases(size).items():
        with tempfile.TemporaryDirectory() as folder:
            _write_model(Path(folder), work)
            with one_thread():
                rows.append(_time(name, work, Path(folder), repeats=1 if size is Size.TINY else 3))
            ours, batch, single = in_own_process(_peaks, work, folder)
        detail = {"one_by_one_mb": single}
        rows.append(less_is_better(f"{name}: memory", ours, batch, "MB", equal=rows[-1].equal, bar=2.0, detail=detail))
    return Report(
        bench="replay",
        alternative="full sequences, one per completion",
        rows=tuple(rows),
        notes=(
            "time: processor seconds per group, one thread; the bar is 0.92 of the token-count ratio",
            "memory: peak above the loaded model, all completions of the group in one batch on the other side",
        ),
    )


def _cases(size: Size) -> dict[str, ReplayCase]:
    if size is Size.TINY:
        return {"T = 6": ReplayCase(2, 32, 2, 40, (6,) * 3), "ragged": ReplayCase(2, 32, 2, 40, (3, 9, 6))}

    def work(*lengths: int) -> ReplayCase:
        return ReplayCase(layers=6, width=384, side=16, num_prompt=600, lengths=lengths)

    ragged = tuple(int(length) for length in np.linspace(100, 700, 8))
    shuffled = tuple(ragged[index] for index in (3, 0, 6, 2, 7, 1, 5, 4))
    cases = {"T = 350": work(*(350,) * 8), "ragged 100-700": work(*shuffled)}
    if size is Size.QUICK:
        return cases
    others = {"T = 100": work(*(100,) * 8), "T = 700": work(*(700,) * 8), "T = 350, G = 2": work(350, 350)}
    return cases | others


def _write_model(folder: Path, work: ReplayCase) -> None:
    heads = max(2, work.width // 64)
    random_model(
        folder,
        layers=work.layers,
        width=work.width,
        heads=heads,
        kv_heads=heads // 2,
        head_dim=min(64, work.width // 2),
        intermediate=3 * work.width,
    )


class _ReplaySides:
    """Both sides of the comparison on the same backbone, prompt and group.

    Args:
        work: sizes of the group.
        folder: folder of the model.
    """

    def __init__(self, work: ReplayCase, folder: Path) -> None:
        family = resolve_family(folder)
        self._work, self._family = work, family
        self._backbone: Qwen3VLBackbone = family.load_backbone()  # type: ignore[assignment]
        text = prompt_of_length(family, work.num_prompt, side=work.side)
        self._prompt_ids = family.load_tokenizer().encode(text, add_special_tokens=False)
        self._worker = ReplayWorker(self._backbone, family=family, prompt_text=text, kl_layer=work.layers - 1)
        self._tokens = random_tokens(family, side=work.side)
        self._task = random_task(work.lengths, family.config["text_config"]["vocab_size"], self._tokens)

    def ours(self) -> torch.Tensor:
        """Returns dL/d(tokens), float32 [N, W], computed by replay."""
        return self._worker.replay(self._task, self._tokens).values_NW

    def single(self) -> torch.Tensor:
        """Returns dL/d(tokens), float32 [N, W], summed over full sequences one by one: no padding, least memory."""
        return self._full_sequences([[index] for index in range(len(self._work.lengths))])

    def batch(self) -> torch.Tensor:
        """Returns dL/d(tokens), float32 [N, W], from one batch of all full sequences, as a trainer's micro-batch."""
        return self._full_sequences([list(range(len(self._work.lengths)))])

    def _full_sequences(self, batches: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns dL/d(tokens), float32 [N, W], from full sequences.

        Args:
            batches: indices of the completions of each batch.
        """
        backbone, model = self._backbone, self._backbone.language_model
        prompt = backbone.build_layout(self._prompt_ids, self._tokens.grids)
        num_prompt = len(prompt.token_ids_S)
        values_NW = self._tokens.values_NW.clone().requires_grad_()
        group = self._task.group
        for rows in batches:
            sequences = [torch.tensor(group.completions.token_ids[row]) for row in rows]
            targets_BT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            mask_BT = torch.arange(targets_BT.shape[1]) < torch.tensor([len(ids) for ids in sequences])[:, None]
            ids_BS = torch.cat([prompt.token_ids_S.expand(len(rows), -1), targets_BT], dim=1)
            after_T = prompt.next_position + torch.arange(targets_BT.shape[1])
            positions_RS = torch.cat([prompt.position_ids_RS, after_T.expand(3, -1)], dim=1)
            images_S = torch.zeros(ids_BS.shape[1], dtype=torch.bool)
            images_S[prompt.image_positions()] = True
            main_ND = backbone.layout.main(values_NW).repeat(len(rows), 1)
            levels = [level.repeat(len(rows), 1) for level in backbone.layout.levels(values_NW)]
            images_BS = images_S.expand(len(rows), -1)
            inputs_BSD = model.embed_tokens(ids_BS).masked_scatter(images_BS[..., None], main_ND)
            hidden_BSD = model(
                inputs_embeds=inputs_BSD,
                position_ids=positions_RS[:, None].expand(-1, len(rows), -1),
                use_cache=False,
                visual_pos_masks=images_BS,
                deepstack_visual_embeds=levels,
            ).last_hidden_state
            logits_RV = backbone.logits(hidden_BSD[:, num_prompt - 1 : -1][mask_BT])
            log_probs_R = -F.cross_entropy(logits_RV, targets_BT[mask_BT], reduction="none")
            advantages_B = torch.from_numpy(group.advantages_G[list(rows)])
            weights_R = advantages_B[:, None].expand_as(mask_BT)[mask_BT]
            (-(weights_R * log_probs_R).sum() / self._task.num_tokens_total).backward()
        assert values_NW.grad is not None
        return values_NW.grad


def _time(name: str, work: ReplayCase, folder: Path, *, repeats: int) -> BenchRow:
    sides = _ReplaySides(work, folder)
    ours, other = in_turns(sides.ours, sides.single, repeats)
    found, expected = ours.results[-1], other.results[-1]
    error = ((found - expected).norm() / expected.norm()).item()
    detail = {
        "token_ratio": work.token_ratio,
        "relative_error": error,
        "ours_wall_s": ours.wall,
        "other_wall_s": other.wall,
    }
    return less_is_better(
        f"{name}: time",
        ours.cpu,
        other.cpu,
        "s",
        equal=error <= TOLERANCE_FP32,
        bar=TIME_SHARE * work.token_ratio,
        detail=detail,
    )


def _peaks(work: ReplayCase, folder: str) -> tuple[float, ...]:
    """Returns the peak memory above the loaded model in MB of ``ours``, ``batch`` and ``single``.

    Runs in a separate process.
    """
    torch.set_num_threads(1)
    small = _ReplaySides(replace(work, lengths=work.lengths[:1]), Path(folder))
    small.ours()  # libraries that are loaded at the first use must not be counted
    small.single()
    sides = _ReplaySides(work, Path(folder))
    return tuple(peak_memory(run) / 2**20 for run in (sides.ours, sides.batch, sides.single))
