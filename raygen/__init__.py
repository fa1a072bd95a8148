"""raygen: a bucket of clips and a number of dollars in, the best video generator they buy out."""

import os

__version__ = "0.1.0"

# Before torch is imported. By default OpenMP's threads wait for each other spinning, on cores that
# another process may need: judging beside training took seven times as long, and ten times the CPU.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
