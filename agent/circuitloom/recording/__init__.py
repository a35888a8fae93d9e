"""What came and what became of it, written down for ``circuitloom simulate``: ``run --record FILE``.

``lines`` makes the lines, ``recorder`` hands them on, ``child`` writes them, and ``read`` reads them.

Rules of this package:

* A recording holds no destination, no address and no SOCKS name or password, only what is left of them under
  a key that is never written down: the same stays the same within one file, and nothing can be looked up.
* It never holds the agent up and never ends it. What cannot be written ends the recording, in one line.
* Nothing is imported here: the process that writes is to be small.
"""
