"""Sweeps: a ledger of their jobs, and how they go on after an interruption."""
