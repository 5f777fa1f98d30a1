"""The limit: the same pipeline in one process, without any server.

`python -m tests.bench.limit MODEL PICTURE... --seconds 3` decodes, letterboxes, infers and
decodes boxes on as many threads as there are CPUs, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

from polyolo.serving.detector import resolve
from polyolo.serving.engines import EXACT, Options
from polyolo.serving.image import configure_opencv, decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.loading import open_detector
from polyolo.types import DetectionSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--arithmetic", default=EXACT)
    args = parser.parse_args()
    configure_opencv()
    detector = open_detector(
        args.model.read_bytes(),
        family=None,
        classes=(),
        engine=args.engine,
        options=Options(arithmetic=args.arithmetic, streams=args.threads),
    )
    criteria = resolve(DetectionSettings(), detector.names)
    pictures = [path.read_bytes() for path in args.pictures]
    limits = ImageLimits()
    latencies: list[float] = []

    def work(start: int, until: float) -> None:
        position = start
        while True:
            before = time.perf_counter()
            if before >= until:
                return
            data = pictures[position % len(pictures)]
            image = decode(data, read_header(data, limits))
            detector.detect([image], [criteria])
            latencies.append(time.perf_counter() - before)
            position += 1

    work(0, time.perf_counter() + 0.3)  # warm
    latencies.clear()
    started = time.perf_counter()
    threads = [
        threading.Thread(target=work, args=(i, started + args.seconds)) for i in range(args.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    latencies.sort()
    json.dump(
        {
            "rate": round(len(latencies) / elapsed, 2),
            "p50": round(latencies[len(latencies) // 2] * 1e3, 3),
            "p99": round(latencies[int(len(latencies) * 0.99)] * 1e3, 3),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
