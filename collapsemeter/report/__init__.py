"""What a measurement says, in words, in a file and in figures.

report    the layers of a network: table, summary, JSON
criteria  what counts as collapsed, in shares and words
file      a report's JSON, checked field by field
history   reports of one or several runs in order, read from JSON lines
tags      a report as flat numbers, one safe tag for each curve
origin    which rows, classes and files a report is of
figure    the six panels of Papyan, Han & Donoho 2020 over a history
drawing   style and file of every figure
"""
