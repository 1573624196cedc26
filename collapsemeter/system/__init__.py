"""What touches the machine: files, processes, memory, the terminal and text that goes there."""
