"""InternVL3.5 in Hugging Face format: InternViT, pixel shuffle and projector, a Qwen3 decoder with plain positions."""
