"""Example of precomputed image embeddings: vLLM receives the tokens of two images in place of their pixels.

    python docs/examples/image_embeddings_into_vllm.py Qwen/Qwen3-VL-2B-Instruct a.jpg b.jpg

The tokens take the vision tower alone, not the language model, and can be made once, or on another machine. vLLM takes
those of all images of a prompt as two tensors. ``image_embeds`` [N, (1 + L) * D] has the images below each other, and
in each row a token, then its L DeepStack maps. ``image_grid_thw`` int64 [I, 3] has the patch grid of each image before
merging, one row per image; from these vLLM knows which rows are whose. ``enable_mm_embeds`` must be on, for trusted
callers only: vLLM may crash on tensors of other shapes. With an image limit of 0 it would leave the tower out, and with
it the DeepStack maps.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor
from vllm import LLM, RequestOutput, SamplingParams

from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import PixelBatch, VisionTower

PROMPT = """<|im_start|>user
<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>What differs?<|im_end|>
<|im_start|>assistant
"""


def image_tokens(tower: VisionTower, processor: Any, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Returns images as vLLM takes them in place of pixels: ``image_embeds`` and ``image_grid_thw``."""
    pixels = processor(images, return_tensors="pt")
    grids = tuple((frames, rows, columns) for frames, rows, columns in pixels["image_grid_thw"].tolist())
    batch = PixelBatch(pixels["pixel_values"], grids, tuple(map(tower.layout.num_tokens, grids)))
    with torch.no_grad():
        return {"image_embeds": tower(batch), "image_grid_thw": pixels["image_grid_thw"]}


def answer(llm: LLM, images: dict[str, torch.Tensor] | list[Image.Image]) -> RequestOutput:
    """Returns vLLM's greedy answer about two images, given as tokens or as pixels."""
    request: Any = {"prompt": PROMPT, "multi_modal_data": {"image": images}}
    return llm.generate(request, SamplingParams(temperature=0, max_tokens=128, logprobs=0))[0]


if __name__ == "__main__":
    model, *files = sys.argv[1:]
    images = [Image.open(file).convert("RGB") for file in files]
    tower = resolve_family(model).load_tower()  # a trained one is saga_dist.load("runs/mine").tower
    tokens = image_tokens(tower, AutoImageProcessor.from_pretrained(model), images)
    llm = LLM(model, enable_mm_embeds=True, limit_mm_per_prompt={"image": 2, "video": 0})
    print(answer(llm, tokens).outputs[0].text)
