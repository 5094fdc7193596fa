"""Batch inference on a Ray cluster: pictures in, Parquet files out, each picture exactly once."""
