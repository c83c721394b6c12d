"""Benchmarks: `memtok bench`. What is timed, beside whom, and the floor, is in docs/performance.md.

Data flows one way: floor, timing, machine, sizes, scene, dense, peers, contenders, memory, lines, rows, report, runner.
"""
