"""A base that begins as more than chance: grown from smaller trained models of the same task.

`model` opens one and finds how wide it is, `fusion` lays several side by side, `widening` copies
the units of one. `start` does what a config's [start] asks for.
"""
