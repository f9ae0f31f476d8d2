"""Displays of a fit and of its clusters against classes."""
