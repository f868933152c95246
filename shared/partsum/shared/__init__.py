"""What the coordinator and the node both need, and nothing else."""
