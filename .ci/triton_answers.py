"""Record the answers of the real Triton 2.51 anew, for tests/daemon/test_differential.py.

    python .ci/triton_answers.py

Makes an environment in the cache the first time (55 MB to fetch); x86-64 Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Start Triton, ask, write."""
    from tests.corpus import corpus_folder
    from tests.daemon import test_differential, test_differential_grpc
    from tests.daemon.triton_server import made_environment

    environment = made_environment(corpus_folder())
    for module in (test_differential, test_differential_grpc):
        with tempfile.TemporaryDirectory() as folder:
            module.record(environment, Path(folder))
        size = module.RECORDED.stat().st_size
        print(f"wrote {module.RECORDED.name}: {module.RECORDED_COUNT} answers, {size} bytes")


if __name__ == "__main__":
    main()
