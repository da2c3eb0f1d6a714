"""Total resources of a running cluster, asked of its head without joining it."""

from __future__ import annotations

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime

DEADLINE_S = 3.0
"""Longest time for the connection, and for the answer, seconds."""


def cluster_totals(address: str) -> dict[str, float] | None:
    """Returns the total resources of a cluster by name; None when its head does not give them in time.

    Args:
        address: address of the Ray head, host:port.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return None
    try:
        socket.create_connection((host, int(port)), timeout=DEADLINE_S).close()
    except (OSError, OverflowError):
        return None
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cluster totals")
    try:
        return pool.submit(_ask, address).result(timeout=DEADLINE_S)
    except (OutOfTime, RuntimeError, ValueError):  # another version of Ray, a wrong token, or no Ray at all
        return None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(address: str) -> dict[str, float] | None:
    from ray._raylet import GcsClientOptions, GlobalStateAccessor  # type: ignore[attr-defined]
    from ray.core.generated import gcs_pb2

    accessor = GlobalStateAccessor(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    if not accessor.connect():
        return None
    totals: Counter[str] = Counter()
    for node in accessor.get_all_total_resources():
        totals.update(dict(gcs_pb2.TotalResources.FromString(node).resources_total))
    return dict(totals)
