"""raygen: a bucket of clips and a number of dollars in, the best video generator they buy out."""

__version__ = "0.1.0"
