"""Faults of EpiBERT as data, and where they are judged."""
