"""circuitloom spreads the streams of one Tor client over many circuits, as a policy says."""

__version__ = "0.1.0"
