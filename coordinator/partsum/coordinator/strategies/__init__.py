"""Robust merging, where parts overlap: what a few hostile nodes send does not decide.

`middle` merges element by element (median, trimmed mean), `krum` leaves whole updates out, `clip`
shortens them; `rules` puts a config's choice in front of the merge.
"""
