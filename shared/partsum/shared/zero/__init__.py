"""DeepSpeed's engine around a model: what the coordinator's own hand-off and the nodes' share.

Nothing here is imported by a process that does not train with DeepSpeed.
"""
