"""Displays of clusters, of an embedding and of filters."""
