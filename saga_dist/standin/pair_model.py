"""The stand-in on a fixed prompt for image pairs, in large batches, for pre-training and its evaluation.

All images have one size and all prompts one layout, so the tower runs on [I, N] batches (Hugging Face's tower loops
over the images in attention) and positions are computed once. The results equal those of the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.data.prompts import render_prompt
from saga_dist.standin.language import STANDIN_PROMPT, verdict_first_text
from saga_dist.standin.tokenizer import IMAGE_PLACEHOLDER, SPECIAL_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen3VLForConditionalGeneration

END_OF_TURN = SPECIAL_TOKENS.index("<|im_end|>")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Output of the tower for a batch of images; an index array selects images."""

    main_IND: torch.Tensor
    """float32 [I, N, D], the main tokens."""
    deepstack: tuple[torch.Tensor, ...]
    """L DeepStack maps, each float32 [I, N, D]."""

    def __getitem__(self, images: Any) -> Tokens:
        return Tokens(self.main_IND[images], tuple(level[images] for level in self.deepstack))


class PairModel:
    """A model with its prompt for two images, and batched forward passes for pre-training and evaluation.

    Args:
        model: the stand-in; its parameters are used in place.
        image_size: side S of all images in pixels.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, *, image_size: int) -> None:
        self.model = model
        self.tokenizer = build_tokenizer()
        vision = model.config.vision_config
        self.rows = image_size // vision.patch_size
        """Patches per side, before merging."""
        self.merge = vision.spatial_merge_size
        """Patches per side that are merged into one token."""
        self.num_tokens = (self.rows // self.merge) ** 2
        """N, tokens of one image."""
        placeholder = IMAGE_PLACEHOLDER.replace("<|image_pad|>", "<|image_pad|>" * self.num_tokens)
        prompt = render_prompt(STANDIN_PROMPT, image_a=placeholder, image_b=placeholder)
        self.prompt_ids = torch.tensor(self.tokenizer.encode(prompt).ids)
        """int64 [prompt], token ids of the prompt."""
        is_image = (self.prompt_ids == model.config.image_token_id).nonzero()[:, 0]
        # Each int64 [N]: positions of the image's tokens in the prompt.
        self.columns_a, self.columns_b = is_image[: self.num_tokens], is_image[self.num_tokens :]
        yes, no = (self.tokenizer.encode(verdict_first_text(same)).ids for same in (True, False))
        self.verdict_position = [one == other for one, other in zip(yes, no, strict=True)].index(False)
        """Position of the verdict, one token, in an answer that begins with it."""
        self.opening_ids = torch.tensor(yes[: self.verdict_position])
        """int64 [opening], token ids of such an answer up to the verdict."""
        self.verdict_ids = {True: yes[self.verdict_position], False: no[self.verdict_position]}
        """Token id of the verdict by its meaning, True for "same species"."""
        self._positions = self._position_ids(256)
        self._tower_constants = _tower_constants(model, self.rows, self.merge)

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the prompt, images included."""
        return len(self.prompt_ids)

    def encode(self, images: np.ndarray) -> Tokens:
        """Returns the tokens of images, uint8 [I, S, S, 3]."""
        tower = self.model.model.visual
        order, cosine, sine = self._tower_constants
        hidden = self._patches(images) @ tower.patch_embed.proj.weight.flatten(1).T + tower.patch_embed.proj.bias
        hidden = hidden + tower.pos_embed.weight[order]
        levels = {}
        for index, block in enumerate(tower.blocks):
            hidden = _tower_block(block, hidden, cosine, sine)
            if index in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(index)]
                levels[index] = merger(hidden.flatten(0, 1)).unflatten(0, (len(images), -1))
        main = tower.merger(hidden.flatten(0, 1)).unflatten(0, (len(images), -1))
        return Tokens(main, tuple(levels[index] for index in tower.deepstack_visual_indexes))

    def hidden(self, a: Tokens, b: Tokens, answers_PT: torch.Tensor, *, cache: Any = None) -> torch.Tensor:
        """Returns the last hidden states from the prompt's last token on, float32 [P, 1 + T, D].

        Row t predicts answer token t, and the last row predicts the token after the answer.

        Args:
            a: tokens of the first image of P pairs.
            b: tokens of the second images.
            answers_PT: int64 [P, T], token ids of the answers.
            cache: empty KV cache of transformers to fill; None: no cache.
        """
        embed = self.model.model.language_model.embed_tokens
        num_pairs, width = len(a.main_IND), a.main_IND.shape[-1]
        sequence = torch.cat([self.prompt_ids.expand(num_pairs, -1), answers_PT], dim=1)
        mask = sequence == self.model.config.image_token_id
        inputs = embed(sequence).masked_scatter(
            mask[..., None], torch.cat([a.main_IND, b.main_IND], dim=1).reshape(-1, width)
        )
        output = self.model.model.language_model(
            inputs_embeds=inputs,
            position_ids=self._positions[:, : sequence.shape[1]].unsqueeze(1).expand(-1, num_pairs, -1),
            visual_pos_masks=mask,
            deepstack_visual_embeds=[
                torch.cat(levels, dim=1).reshape(-1, width) for levels in zip(a.deepstack, b.deepstack, strict=True)
            ],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state[:, self.prompt_length - 1 :]

    def hidden_of_text(self, answers_PT: torch.Tensor) -> torch.Tensor:
        """Returns hidden states float32 [P, 1 + T, D] like ``hidden``, of the prompt's last token and the answers only.

        Args:
            answers_PT: int64 [P, T], token ids of the answers.
        """
        sequence = torch.cat([self.prompt_ids[-1:].expand(len(answers_PT), -1), answers_PT], dim=1)
        positions = slice(self.prompt_length - 1, self.prompt_length - 1 + sequence.shape[1])
        return self.model.model.language_model(
            inputs_embeds=self.model.model.language_model.embed_tokens(sequence),
            position_ids=self._positions[:, positions].unsqueeze(1).expand(-1, len(sequence), -1),
            use_cache=False,
        ).last_hidden_state

    def forced_probability(self, a: Tokens, b: Tokens) -> torch.Tensor:
        """Returns float32 [P], p("same species") against p("different") when an answer must begin with its verdict.

        Args:
            a: tokens of the first image of each pair.
            b: tokens of the second images.
        """
        hidden_PD = self.hidden(a, b, self.opening_ids.expand(len(a.main_IND), -1))[:, -1]
        return self.model.lm_head(hidden_PD)[:, [self.verdict_ids[True], self.verdict_ids[False]]].softmax(dim=-1)[:, 0]

    @contextmanager
    def attention_at(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """Yields a list to which each forward pass appends the head-mean attention of a layer.

        An entry is float32 [P, 1 + T, prompt + T], or [P, 1 + T, 1 + T] for ``hidden_of_text``. Only the rows of the
        answer are computed, and the other layers keep their fast attention.

        Args:
            layer: index of the language layer.
        """
        attention = self.model.model.language_model.layers[layer].self_attn
        rows: list[torch.Tensor] = []

        def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            without_prompt = kwargs["hidden_states"].shape[1] < self.prompt_length
            rows.append(_head_mean(attention, kwargs, 0 if without_prompt else self.prompt_length - 1))

        handle = attention.register_forward_pre_hook(record, with_kwargs=True)
        try:
            yield rows
        finally:
            handle.remove()

    @torch.no_grad()
    def answer(
        self,
        a: Tokens,
        b: Tokens,
        *,
        num_answers: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        max_tokens: int = 48,
    ) -> list[list[str]]:
        """Returns ``num_answers`` decoded answers for each of the P pairs.

        Args:
            a: tokens of the first image of each pair.
            b: tokens of the second images.
            num_answers: answers per pair.
            temperature: sampling temperature; 0: greedy decoding.
            top_p: nucleus of the sampling, in (0, 1].
            generator: source of random numbers for sampling; None: torch's global one.
            max_tokens: longest answer in tokens.
        """
        from transformers.cache_utils import DynamicCache

        num_pairs = len(a.main_IND)
        cache = DynamicCache()
        hidden = self.hidden(a, b, torch.zeros(num_pairs, 0, dtype=torch.long), cache=cache)[:, -1]
        if num_answers > 1:
            cache.batch_repeat_interleave(num_answers)
            hidden = hidden.repeat_interleave(num_answers, dim=0)
        chosen: list[torch.Tensor] = []
        finished = torch.zeros(len(hidden), dtype=torch.bool)
        for position in range(self.prompt_length, self.prompt_length + max_tokens):
            ids = _sample(self.model.lm_head(hidden), temperature, top_p, generator)
            ids = ids.masked_fill(finished, END_OF_TURN)
            chosen.append(ids)
            finished |= ids == END_OF_TURN
            if finished.all():
                break
            hidden = self.model.model.language_model(
                inputs_embeds=self.model.model.language_model.embed_tokens(ids)[:, None],
                position_ids=self._positions[:, position : position + 1].unsqueeze(1).expand(-1, len(ids), -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        texts = self.tokenizer.decode_batch(torch.stack(chosen, dim=1).tolist(), skip_special_tokens=True)
        return [texts[start : start + num_answers] for start in range(0, len(texts), num_answers)]

    def _patches(self, images: np.ndarray) -> torch.Tensor:
        """Returns float32 [I, rows * rows, C * 2 * p * p] patches in the image processor's order, grouped by token."""
        vision = self.model.config.vision_config
        side, merge, merged = vision.patch_size, self.merge, self.rows // self.merge
        pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1
        blocks = pixels.view(-1, merged, merge, side, merged, merge, side, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        blocks = blocks.reshape(-1, self.rows**2, 3, 1, side, side)
        return blocks.expand(-1, -1, -1, vision.temporal_patch_size, -1, -1).reshape(len(images), self.rows**2, -1)

    def _position_ids(self, longest_answer: int) -> torch.Tensor:
        """Returns int64 [3, prompt + longest_answer], rotary positions computed by the model's own function."""
        sequence = torch.cat([self.prompt_ids, torch.full((longest_answer,), END_OF_TURN)])[None]
        grid = torch.tensor([[1, self.rows, self.rows]] * 2)
        kinds = (sequence == self.model.config.image_token_id).int()
        positions, _ = self.model.model.get_rope_index(sequence, kinds, image_grid_thw=grid)
        return positions[:, 0]


def _tower_constants(
    model: Qwen3VLForConditionalGeneration, rows: int, merge: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the position table's row of each patch, and cosines and sines of its rotary embedding.

    Shapes: int64 [rows * rows], float32 [rows * rows, head_dim] twice.
    """
    merged = rows // merge
    grid = torch.arange(rows * rows).view(merged, merge, merged, merge).permute(0, 2, 1, 3).flatten()
    positions = torch.stack([grid // rows, grid % rows], dim=-1)
    tower = model.model.visual
    cosine, sine = tower.rotary_pos_emb(torch.zeros(1), positions)
    return grid, cosine, sine


def _tower_block(block: Any, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    attention = block.attn
    query, key, value = (
        attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )
    query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden = hidden + attention.proj(mixed)
    return hidden + block.mlp(block.norm2(hidden))


def _head_mean(attention: Any, kwargs: dict[str, Any], first_row: int) -> torch.Tensor:
    inputs = kwargs["hidden_states"]
    cosine, sine = (part.unsqueeze(1) for part in kwargs["position_embeddings"])
    split = (*inputs.shape[:-1], -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(inputs).view(split)).transpose(1, 2)
    key = attention.k_norm(attention.k_proj(inputs).view(split)).transpose(1, 2)
    query = _rotate(query, cosine, sine)[:, :, first_row:]
    key = _rotate(key, cosine, sine).repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * attention.scaling
    future = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).triu(1)[first_row:]
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1).mean(dim=1)


def _rotate(values: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = values.chunk(2, dim=-1)
    return values * cosine + torch.cat([-second, first], dim=-1) * sine


def _sample(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> torch.Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before > top_p, 0.0)
    return order.gather(1, torch.multinomial(kept, 1, generator=generator))[:, 0]
