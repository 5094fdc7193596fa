"""What `benchmarks/faults.py` damages, and how each case is judged."""
