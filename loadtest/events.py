"""The events of softserve's streams, as bytes."""

EVENT_END = b"\n\n"


def holds_text(event: bytes) -> bool:
    """Whether it brings text."""
    # The server writes compact JSON. Inside a text, quotes are escaped: it cannot look like this.
    return b'"text":"' in event and b'"text":""' not in event
