"""Checkpoints that are either whole or absent, with a hash of every byte; on the local disk and, if asked, on a mirror.

manifest   what a checkpoint folder holds, sealed; comparing a folder with it
store      the checkpoints of one run on the local disk: write, newest, best, falling back from a damaged one
mirror     copies of them on any pyarrow filesystem, for a cluster that starts with an empty disk
"""

from saga_dist.checkpoint.manifest import MANIFEST, CheckpointInfo, verify
from saga_dist.checkpoint.mirror import CheckpointMirror, open_mirror
from saga_dist.checkpoint.store import CheckpointStore

__all__ = ["MANIFEST", "CheckpointInfo", "CheckpointMirror", "CheckpointStore", "open_mirror", "verify"]
