"""The PyTorch adapter: hooks that measure neural collapse while a model trains.

In the order of the flow:

===========================  ==============================================================================================================
`meter`                      `CollapseMeter`: attach, count, report
`lightning`, `transformers`  callbacks for Lightning's Trainer and that of Hugging Face; `streams` and `callers` serve both
`selection`                  which layers and head are watched; `learnt` is what is known then, from
`study`                      ... scores, head and layers in the order of the data, which are found with `trace`, `outputs`, `head`, `points`, `layers`
`memory`                     ... and what every layer keeps
`untouched`                  ... while the model stays as it was; `inert` and `compiled` keep copies and compiled graphs so
`costs`                      ... and counts what a step costs
`attachment`                 the hooks of one meter, put on a model and taken off
`label_hooks`                labels without an edit of the loop; `labels` makes class numbers of them
`pending`                    forwards that wait for a loss that brings labels
`hooks`                      a layer's output -> rows, by `reduction`
`recorder`                   what hooks hold: the network, the open `batch` (its `scope`), the store
`state`                      what one measurement has counted
`waiting`, `blocks`          small batches, until they make a block; what its labels say to every layer
`device_sums`, `tiles`       the sums of one layer on its device, by the operations of `namespace`; a block on a CPU
`checkpoint`                 a store as a state to save, and back
`frozen`                     a pass over a data set with frozen weights; `data_parallel` and `spread` for several processes
`reporting`                  store -> report; `provenance` is what it says of ranks
`tallies`                    ... sums of the device on the host
`merging`                    ... merged over processes, by what they exchange in `ranks`; `counts` and `sharding` serve it, and `members` says which processes merge
`rank_states`                `StateOfRanks`: for checkpoints, the states of all processes side by side, not merged
`demo`                       the demo's network
===========================  ==============================================================================================================
"""

try:
    import torch as _torch  # noqa: F401 # asked for first: the message below names what is missing
except ImportError as error:
    raise ImportError(
        f"the torch adapter needs torch ({error}): pip install 'collapsemeter[torch]'"
    ) from error

from .meter import CollapseMeter
from .rank_states import StateOfRanks

__all__ = ["CollapseMeter", "StateOfRanks"]
