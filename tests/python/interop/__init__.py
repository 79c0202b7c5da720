"""Tests with real programs: servers on becket, each in a process of its own, and clients that know
nothing of becket: swaks, smtp-source, wrk, Python's own libraries."""
