"""A compiled program at work: compiling, launching, streaming batches, measuring time and memory."""
