"""Any frozen encoder under the protocol of a SAGA run: timm, Hugging Face, or another run."""
