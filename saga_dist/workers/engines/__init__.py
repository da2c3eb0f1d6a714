"""Engines that sample completions from encoder tokens: vLLM, transformers, and a scripted one for tests and dry runs.

Only ``vllm_engine`` and ``vllm_requests`` import vLLM, and only when an engine is constructed.
"""
