"""The machine: files, processes, memory and the terminal.

files      written whole or not at all
processes  that end with their parent
memory     what does not fit is refused before it is asked for
terminal   the only printers
patterns   `*` within one part of a name, `**` across
escaping   names as text that a terminal and a page can be trusted with
suggest    "did you mean", and several names as words
warning    warnings that never become exceptions in a training loop
"""
