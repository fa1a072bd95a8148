"""From a bucket of videos to batches of clips."""
