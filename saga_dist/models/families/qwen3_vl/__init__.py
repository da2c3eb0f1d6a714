"""Qwen3-VL (2B, 4B, 8B, 32B): DeepStack tower, interleaved three-axis rotary positions, Qwen3 language model."""
