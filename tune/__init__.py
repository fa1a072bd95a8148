"""The search: `python -m tune SPACE.yaml --budget 50` spends dollars on finding a generator."""
