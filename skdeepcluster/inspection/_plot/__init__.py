"""Displays of clusters, embeddings and filters."""
