"""What this machine is and can do, and processes on it.

In: /proc, /sys and the clock.
Out: the CPU and what this process may use of it, measured peaks and the latency floor, reference boxes, checks for disk space and optional
libraries, and `Worker`, which runs a function in a fresh process. Also two types that every room shares: `Frozen` and `Progress`.
"""
