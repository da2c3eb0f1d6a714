"""Atomic checkpoints with a sha256 of every file, on the local disk and optionally on a mirror.

manifest     the manifest of a checkpoint folder, protected by its own digest; verification of a folder against it
store        the checkpoints of one run on the local disk: write, newest, best, fallback from a damaged one
mirror       copies of checkpoints on any pyarrow filesystem, for a cluster that starts with an empty disk
state_files  tensors and optimizer state as safetensors and JSON
writing      atomic write of one checkpoint folder
"""

from saga_dist.checkpoint.manifest import MANIFEST, CheckpointInfo, verify
from saga_dist.checkpoint.mirror import CheckpointMirror, open_mirror
from saga_dist.checkpoint.store import CheckpointStore

__all__ = ["MANIFEST", "CheckpointInfo", "CheckpointMirror", "CheckpointStore", "open_mirror", "verify"]
