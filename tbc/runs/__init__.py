"""Runs: workflow files, their plan, and what becomes of them under a budget."""
