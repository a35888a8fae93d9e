"""A private Tor network on loopback, and load for it: what the tests and ``circuitloom demo`` run on.

Nothing here knows the agent: it imports the errors of circuitloom and the standard library.
"""
