"""Post-hoc audit: from saved activations of any framework to a report.

Map (every shard to the moments of its layers), merge, decide (a second pass with the final means, for
NC4), measure. Every stage is resumable and gives the same numbers in one process, in several, and on a
Dask cluster.
"""

from __future__ import annotations

from .options import Options, Running
from .run import audit, audit_steps, map_files, merge_files

__all__ = ["Options", "Running", "audit", "audit_steps", "map_files", "merge_files"]
