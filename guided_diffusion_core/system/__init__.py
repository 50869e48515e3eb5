"""The machine: files, processes, interrupts, memory, what has to be installed."""
