"""Clusters to run raygen on: `ray up cluster/cluster.yaml`, and what its nodes run."""
