"""The SDK: everything a program does with polyolo, sync and async.

    from polyolo.client import Client

    with Client() as polyolo:                  # POLYOLO_URL, POLYOLO_API_KEY
        answer = polyolo.detect("board.jpg")
        for found in answer.detections:
            print(found.class_name, found.confidence, found.bbox)

Answers are the dataclasses of `polyolo.types`, failures the errors of `polyolo.errors`.
`operations` defines each operation once; `Client` and `AsyncClient` are two ways to send it.
"""

from polyolo.client.call import DEFAULT_URL, Call
from polyolo.client.session import AsyncClient, Client

__all__ = ["DEFAULT_URL", "AsyncClient", "Call", "Client"]
