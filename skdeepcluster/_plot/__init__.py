"""Axes, colors and layout that the Displays share."""
