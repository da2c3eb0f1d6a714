"""Qwen2.5-VL: window-attention tower without DeepStack, three-axis rotary positions, Qwen2.5 language model."""
