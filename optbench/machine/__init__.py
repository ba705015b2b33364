"""The machine and the processes on it.

In: /proc, /sys and the clock. Out: what the CPU is and may use, its peaks and floors, known reference boxes, and `Worker`, a function
served by a fresh process. Also the two types that every room shares: `Frozen` and `Progress`.
"""
