"""Displays of training curves and of contingency tables."""
