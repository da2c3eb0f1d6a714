"""Code that the Qwen-VL generations share; not a family of its own."""
