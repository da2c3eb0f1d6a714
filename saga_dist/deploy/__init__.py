"""Manifests from a run's configuration: KubeRay RayJob and RayCluster, and the file of Ray's cluster launcher.

Plain functions from ``RunConfig`` and ``DeployOptions`` to dictionaries; ``render`` prints them. Neither Ray nor
Kubernetes is needed to make one.
"""
