"""A stream of digits sent by Triton's own client, as any application would: it knows nothing of EdgeKit.

    python examples/client.py HOST:PORT MODEL DATA.npz [--count N] [--rate HZ]

Runs in an environment that has tritonclient; prints one JSON line: what was sent and how much of it was right.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import tritonclient.http as triton


def main() -> None:
    """Send images one at a time, keep the pace, count what is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", metavar="HOST:PORT")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--rate", type=float, default=40.0)
    options = parser.parse_args()
    data = np.load(options.data)
    client = triton.InferenceServerClient(options.url)
    assert client.is_server_ready()
    metadata = client.get_model_metadata(options.model)
    name, output = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
    images, labels = data[name], data["y"]
    right, times = 0, []
    start = time.perf_counter()
    for i in range(options.count):
        time.sleep(max(0.0, start + i / options.rate - time.perf_counter()))
        tensor = triton.InferInput(name, [1, *images.shape[1:]], "FP32")
        tensor.set_data_from_numpy(images[i % len(images)][None])
        sent = time.perf_counter()
        answer = client.infer(options.model, [tensor]).as_numpy(output)
        times.append(time.perf_counter() - sent)
        right += int(answer.argmax() == labels[i % len(labels)])
    print(
        json.dumps(
            {
                "sent": options.count,
                "true_accuracy": round(right / options.count, 4),
                "client_p50_ms": round(float(np.median(times)) * 1e3, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
