"""From features to pseudo-labels, and from pseudo-labels to clusters."""
