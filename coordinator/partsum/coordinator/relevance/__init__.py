"""How much each unit of a model matters: ARD, and cheaper scores behind the same interface.

layers.py     which layers are known, and how each of them multiplies
ard.py        sparse variational dropout on a model, and off again
training.py   a few epochs on the coordinator, with ARD or without
scores.py     numbers for each weight -> one score for each unit
probing.py    scores that need data: Taylor, activation
survey.py     a run's scores: found before its first round, kept in its journal
"""
