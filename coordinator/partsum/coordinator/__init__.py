"""The coordinator: plans parts, gathers updates, merges them, hands the base to DeepSpeed."""
