"""An inference request that came over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from edgekit.daemon import oip
from edgekit.daemon.compression import COMPRESS_FROM_BYTES, compress, decompress
from edgekit.daemon.http1 import Head, HttpError, Reply, error_reply
from edgekit.daemon.lane import INLINE_JSON_BYTES, Call, Lane
from edgekit.daemon.replies import encode_outputs
from edgekit.daemon.signature import Inference

if TYPE_CHECKING:
    import numpy as np

__all__ = ["HttpCall"]


class HttpCall(Call[Reply]):
    """One inference request over HTTP.

    Args:
        lane: Of the model.
        head: The request's.
        body: The request's; a view that is valid until the call has been answered.
    """

    __slots__ = ("body", "head")

    def __init__(self, lane: Lane, head: Head, body: memoryview) -> None:
        super().__init__(lane)
        self.head, self.body = head, body

    @property
    def light(self) -> bool:
        """Tell whether decoding it is quick enough for the event loop; inflating it, or long JSON, is not."""
        head, size = self.head, len(self.body)
        if head.encoding:
            return False
        if size <= INLINE_JSON_BYTES:
            return True
        json_length = head.json_length
        return json_length is not None and json_length <= INLINE_JSON_BYTES and not self.lane.takes_strings

    def _decode(self) -> Inference:
        body = self.body
        if self.head.encoding:
            body = decompress(body, self.head.encoding, self.lane.body_limit)
        return oip.decode_inference(self.lane.signature, body, self.head.json_length)

    def encode(self, inference: Inference, outputs: Mapping[str, np.ndarray]) -> Reply:
        """Return the reply, which views large outputs."""
        reply = encode_outputs(self.lane.signature, inference, outputs)
        reply.owned = self.lane.fresh
        return reply

    def keep(self, answer: Reply) -> Reply:
        """Return the reply with copies in place of views."""
        if answer.owned:
            return answer
        chunks = tuple(chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in answer.chunks)
        return msgspec.structs.replace(answer, chunks=chunks, owned=True)

    def shrinks(self, answer: Reply) -> bool:
        """Tell whether the client wants the reply compressed, and it is worth it."""
        return bool(self.head.accepts) and answer.length >= COMPRESS_FROM_BYTES

    def finish(self, answer: Reply) -> Reply:
        """Compress what is to be compressed."""
        if not self.shrinks(answer):
            return answer
        encoding = self.head.accepts
        headers = {**answer.headers, "Content-Encoding": encoding}
        return msgspec.structs.replace(answer, chunks=(compress(answer.chunks, encoding),), headers=headers)

    def refuse(self, error: HttpError) -> Reply:
        """Return the reply that says no."""
        return error_reply(error)
