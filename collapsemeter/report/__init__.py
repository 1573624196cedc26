"""The report of a measurement, in words, in a file and in figures.

report    the layers of a network: summary, JSON
report_table    the same as a table of text
criteria  what counts as collapsed, in shares and words
file      a report's JSON, checked field by field
history   reports of one or several runs in order, read from JSON lines
tags      a report as flat numbers, one safe tag for each curve
origin    which rows, classes and files a report is of
figure    the six panels of Papyan, Han & Donoho 2020 over a history
drawing   style and file of every figure
depth_profile   what depth does: the first layer as collapsed as the last one, the law over depth
trends          a run over time: the terminal phase, slopes of metrics
training_error  the training error that a report may carry
step      the step of a report, a whole number
trust_words trust_notes   what is known of the noise in a metric, beside its value
imbalance_words what is said of classes of unequal size
"""
