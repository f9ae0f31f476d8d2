"""Axes, colors and layout shared by the Displays."""
