"""Outputs of a network's layers, for evaluation and inspection."""
