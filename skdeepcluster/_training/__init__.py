"""The network, and its training on pseudo-labels."""
