"""KServe's client in a process of its own: asks the server at an address, and prints the answers as JSON."""

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np

from kserve import InferenceGRPCClient, InferInput, InferRequest


def tensor(name: str, array: Any, datatype: str, *, raw: bool) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=raw)
    return made


async def answers(target: str) -> dict[str, Any]:
    client = InferenceGRPCClient(url=target)
    found: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model": await client.is_model_ready("simple"),
        "nothing": await client.is_model_ready("nothing"),
    }
    a, b = np.arange(16, dtype=np.int32)[None], np.full((1, 16), 3, np.int32)
    for raw in (True, False):
        inputs = [tensor("INPUT0", a, "INT32", raw=raw), tensor("INPUT1", b, "INT32", raw=raw)]
        response = await client.infer(InferRequest("simple", inputs, request_id="k"))
        found["raw" if raw else "contents"] = {
            "id": response.id,
            "version": response.model_version,
            **{each.name: each.as_numpy().tolist() for each in response.outputs},
        }
    words = np.array([["a", "\u00e9"]], object)
    strings = await client.infer(InferRequest("strings", [tensor("IN", words, "BYTES", raw=True)]))
    found["strings"] = [bytes(each).decode() for each in strings.outputs[0].as_numpy().ravel().tolist()]
    try:
        await client.infer(InferRequest("nothing", inputs))
    except grpc.aio.AioRpcError as error:
        found["error"] = str(error)
    await client.close()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(answers(sys.argv[1]))))
