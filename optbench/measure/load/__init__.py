"""Latency as a service sees it, under the names of MLPerf: single stream, server, offline.

In: an artifact, its engine and the token ids of real queries. Out: latencies by arrival rate, and the highest rate within a p99 limit.
"""
