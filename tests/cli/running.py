"""Running the real command line in this process, with its exit code and both streams."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from edgekit.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def edgekit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Ran:
    monkeypatch.setattr("sys.argv", ["edgekit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    streams = capsys.readouterr()
    code = stopped.value.code
    return Ran(code if isinstance(code, int) else 0, streams.out, streams.err)
