"""Post-hoc audit: from saved activations of any framework to a report.

Every stage is resumable, and gives the same numbers in one process, in several, and on a Dask cluster.
In the order of the flow:

==================  =====================================================================
`options`           what is asked for: `Options` and `Running`
`run`               the flow itself: `audit`, `audit_steps`, `map_files`
`state_reports`     from states that were mapped to a report: `merge_files`
`inputs`            names on the command line -> files of each step
`array_roles`       which array of a file is a layer, and which labels and the like
`plan`              arrays -> shards
`head_file`         the classifier among saved weights
`epochs`            files of several epochs are no shards
`prepare`           all of the above -> a job
`job`               the plain data: stored arrays, shards, pieces, tasks, jobs
`digests`           what identifies rows and files
`piece_rows`        features of a piece, reduced to one row per label
`first_pass`        pieces -> states
`resuming`          states of an earlier run that count again
`saved_state`       state files
`merge`             states of pieces -> of shards -> of all
`second_pass`       rows and final means -> decisions, for NC4
`audit_report`      merged states and decisions -> a report
`workers`           this process, several, or those of a Dask `cluster`
==================  =====================================================================
"""

from .options import Options, Running
from .run import audit, audit_steps, map_files
from .state_reports import merge_files

__all__ = ["Options", "Running", "audit", "audit_steps", "map_files", "merge_files"]
