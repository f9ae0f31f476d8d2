"""Utilities of all stages: random numbers, devices, processes, files and messages."""
