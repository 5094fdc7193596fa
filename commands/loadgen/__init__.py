"""`--mode loadgen`: MLPerf's LoadGen asks, the executable answers, LoadGen judges."""
