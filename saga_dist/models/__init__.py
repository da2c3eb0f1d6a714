"""Encoder, pooler and the frozen language model, for every supported family of multimodal LLMs."""
