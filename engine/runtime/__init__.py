"""A compiled program at work: compiling, launching, streaming batches, and what it takes and measures."""
