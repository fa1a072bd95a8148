"""Searches that spend dollars well: an application over raygen, run from the checkout."""
