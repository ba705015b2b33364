"""Latency under a service's load, in MLPerf's scenarios: single stream, server, offline.

In: an artifact, its engine and the token ids of real queries. Out: latencies by arrival rate, and the highest rate within a p99 limit.
"""
