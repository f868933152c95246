"""The node: dials the coordinator, trains the part that it is given, sends it back."""
