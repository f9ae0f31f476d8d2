"""From whatever a user passes as X to a source of images or rows."""
