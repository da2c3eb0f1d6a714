"""Manifests from a run's configuration: KubeRay RayJob and RayCluster, and the file of Ray's cluster launcher.

Plain functions build dictionaries from ``RunConfig`` and ``DeployOptions``; ``render`` prints them as YAML. Building a
manifest needs neither Ray nor Kubernetes.
"""
