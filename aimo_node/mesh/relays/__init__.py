"""The relays of the mesh: which this node knows, how they become known, what is kept on disk."""
