"""Try every order of the commands of overlapping requests, and hold the promises against each.

The requests are the product's own code, over a fake server that stops each request before each of
its commands. `python -m tests.explore --help` says what can be chosen.
"""
