"""What is done with updates beside taking their mean, where parts overlap.

Robust merging, so that a few hostile nodes do not decide: `middle` merges element by element
(median, trimmed mean), `krum` leaves whole updates out, `clip` shortens them. `optimizers` say how
far the base goes where the merged updates point, `layers` how far each layer. `aggregate` and
`outer` put a config's choice to work.
"""
