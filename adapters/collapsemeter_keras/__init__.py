"""The Keras adapter: a callback that measures neural collapse inside the compiled training step.

In the order of the flow:

============  ====================================================================================================================
`meter`       `CollapseMeter`: the callback; `streams` says when Keras calls it, `callback_order` its place among others
`attachment`  one meter on one model
`study`       what a forward pass tells: scores (`outputs`), head (`head`, `linear`, `positions`), layers (`selection`, `points`)
`graph`       ... from the `traced_tensors` of a forward pass, or of the backend's own operations (`backend_graph`); `running` runs parts again
`untouched`   ... while the model stays as it was
`instrument`  the wrappers that count
`batch`       a block around a forward of the user's own loop
`updating`    what a step computed -> rows, labels and decisions, by `reduction`, `operations` and `labels`
`waiting`     small batches, until they make a block; `host_rows` are added on the host
`state`       the sums, as `variables` of the step, by the operations of `namespace`
`stateless`   steps of JAX, which return what they counted
`frozen`      a pass over a data set with frozen weights
`costs`       what counting costs beside a step, and `memory` what it holds
`checkpoint`  what was counted as arrays, and back
`reporting`   sums -> report
`publishing`  ... to sinks and Keras' logs; `entries` names the streams
`demo`        the demo's network
============  ====================================================================================================================
"""

try:
    import keras as _keras  # noqa: F401 # whether it is there, and with a backend that loads
except ImportError as error:
    raise ImportError(
        f"the keras adapter needs keras and one of its backends ({error}): "
        "pip install 'collapsemeter[keras]'"
    ) from error

from .meter import CollapseMeter, watch

__all__ = ["CollapseMeter", "watch"]
