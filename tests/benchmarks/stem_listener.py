"""The plain way with stem: a listener that attaches each stream that waits. ``... SOCKET CIRCUITS``.

What a careful user of stem's Controller writes: one connection, one listener, round robin over its circuits.
"""

from __future__ import annotations

import itertools
import sys
import time

import stem
import stem.control


def main(path: str, circuits: int) -> None:
    """Attach until the connection ends."""
    with stem.control.Controller.from_socket_file(path) as controller:
        controller.authenticate()
        turns = itertools.cycle([controller.new_circuit(await_build=True) for _ in range(circuits)])

        def attach(event: stem.response.events.StreamEvent) -> None:
            if event.status == "NEW" and event.purpose == "USER":
                controller.attach_stream(event.id, next(turns))

        controller.add_event_listener(attach, stem.control.EventType.STREAM)
        controller.set_conf("__LeaveStreamsUnattached", "1")
        while controller.is_alive():
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
