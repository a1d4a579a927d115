"""Hypothesis draws the same examples at every run, so that a change is judged by its own faults.

`--hypothesis-profile=search` draws new ones.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("repeatable")
