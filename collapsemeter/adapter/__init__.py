"""The parts that adapters import besides the public names; adapters/README.md shows a whole adapter.

An adapter may import these, and from `collapsemeter.stats` the functions that run on a device
(`sums`, `namespace`, `sketch`, `sampling`, `groups`, `labels`):

* `network`: `Network`, what one forward pass told; `find_scores` in what a model returns, and `positions_first`
* `cut_points`: where the whole signal passes through one tensor, and `spread` over the depth
* `selection`: `Selection`, the layers to watch, and `select_layers`, which chooses them
* `memory`: `memory_plan`, what every layer keeps within a budget
* `costs`: what share of a step counting takes, and how often to count
* `settings`: `Settings`, what the user asks for, checked once
* `reduction`: `feature_rows`, from a layer's output to one row per label, over `Operations`
* `batches`: `each_batch` of a frozen pass, `split` into inputs and labels, checks of what users pass
* `budget`: `Budget`, which training batches are counted, and `Clock`, what that costs
* `waiting_on_host`: rows that wait on a device, added on the host when someone looks
* `tally`: `Tally`, what a layer counted, on the host, and `classifier`, the head
* `joint_tally`: one `Tally` of those of several processes
* `layer_report`: one layer's report, unless it missed rows
* `notes`: what must be said beside a layer's metrics
* `network_report`: the report of every watched layer, with its warnings and provenance
* `checkpoint`: checks that a saved state is one of this meter's
* `epoch`: what the demo's training loop yields
* `watch`: the meter of a model's own framework, by entry point
"""
