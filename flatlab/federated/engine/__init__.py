"""Ways to run a round's clients: in this process, in worker processes, or stacked on one device. All agree."""
