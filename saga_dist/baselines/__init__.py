"""Evaluates frozen encoders (timm, Hugging Face, another run, a user's own) with the protocol of a SAGA run."""
