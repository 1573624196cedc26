"""The Keras adapter: a callback that measures neural collapse inside the compiled training step.

In the order of the flow:

============  ====================================================================================================================
`meter`       `CollapseMeter`: the callback; `epochs` says when Keras calls it, `order` its place among others
`attachment`  one meter on one model
`study`       what a forward pass tells: scores (`outputs`), head (`decision`, `linear`, `positions`), layers (`layers`, `points`)
`graph`       ... from the tensors of a forward pass, or of the backend's own operations (`recording`); `running` runs parts again
`untouched`   ... while the model stays as it was
`instrument`  the wrappers that count
`batch`       a block around a forward of the user's own loop
`counting`    what a step computed -> rows, labels and decisions, by `operations` and `labels`
`waiting`     small batches, until they make a block; `host_rows` are added on the host
`statistics`  the sums, as `variables` of the step, by the operations of `namespaces`
`stateless`   steps of JAX, which return what they counted
`frozen`      a pass over a data set with frozen weights
`costs`       what counting costs beside a step
`saving`      what was counted as arrays, and back
`reporting`   sums -> report, with the `head` on the host
`publishing`  ... to sinks and Keras' logs
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
