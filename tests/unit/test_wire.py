"""Frames: what was written is read, and what is no frame is noticed before it is believed."""

import socket
import threading

import msgspec
import pytest

from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.wire import LENGTHS, Answer, Job, frame, lengths, split
from polyolo.serving.worker import Stream
from polyolo.types import DetectionSettings
from tests.unit.pictures import encoded


def job(picture: bytes) -> Job:
    return Job(
        size=len(picture),
        header=read_header(picture, ImageLimits()),
        settings=DetectionSettings(classes=("dog", 2)),
        request_id="r",
        media_type="application/json",
    )


def test_a_batch_arrives_as_it_was_sent():
    """Jobs and pictures, an empty one too, in their order, through a real socket pair."""
    picture = encoded(".jpg")
    jobs = [job(picture), job(picture)]
    ours, theirs = socket.socketpair()
    with Stream(ours) as sender, Stream(theirs) as receiver:
        # Larger than the socket's buffer, so that it arrives in pieces.
        parts = [picture * 50, picture]
        sending = threading.Thread(target=sender.send, args=(jobs, parts))
        sending.start()
        received, rest = receiver.receive(list[Job])
        sending.join()
    assert received == jobs
    assert [bytes(part) for part in split(rest, [len(part) for part in parts])] == parts


def test_a_stream_that_ends_within_a_frame_is_an_end():
    """Half a frame is nothing, wherever it breaks off."""
    whole = b"".join(frame([Answer(size=3)], [b"abc"]))
    for cut in (0, 5, LENGTHS.size, LENGTHS.size + 3, len(whole) - 1):
        ours, theirs = socket.socketpair()
        with Stream(theirs) as receiver:
            with ours:
                ours.sendall(whole[:cut])
            with pytest.raises(EOFError):
                receiver.receive(list[Answer])


def test_a_length_beyond_any_batch_is_refused_before_memory_is_taken_for_it():
    """A stream that is out of step, or another end that lies, costs nothing."""
    for header, rest in ((1, 2**60), (2**32 - 1, 0), (0, 2**28 + 1)):
        with pytest.raises(ValueError, match="out of step"):
            lengths(LENGTHS.pack(header, rest))
    assert lengths(LENGTHS.pack(12, 2**20)) == (12, 2**20)


@pytest.mark.parametrize("sizes", [[2], [4], [5, -2], [1, 1], []])
def test_parts_that_do_not_add_up_are_refused(sizes: list[int]):
    """No picture and no answer is cut from bytes that are not its own."""
    with pytest.raises(ValueError, match="add up"):
        split(memoryview(b"abc"), sizes)


def test_a_header_of_another_kind_is_refused():
    """Garbage in a header is an error of the stream, not an object with holes."""
    ours, theirs = socket.socketpair()
    with Stream(ours) as sender, Stream(theirs) as receiver:
        sender.send({"not": "a list"})
        with pytest.raises(msgspec.MsgspecError):
            receiver.receive(list[Job])
