"""``partsum bench swarm``: many light nodes, which speak the protocol and train nothing."""
