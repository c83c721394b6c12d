"""The load test of `memtok serve`: `python -m memtok_benchmarks.load`. What it measures is in docs/serving.md.

Open loop: requests come when they come, by a Poisson process, whether or not earlier ones are answered, and a latency
counts from the moment at which its request was due. So a server that stands still for a second is charged for every
request of that second.

Data flows one way: settings, material, client, figures, own_pass, peer_server, servers, rates, steady, picture, report.
"""
