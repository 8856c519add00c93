"""What `kserve`'s client is made to do; run by `record_clients.py` in an environment of its own."""

import asyncio
import json
import sys
from importlib.metadata import version

sys.path.pop(0)  # this file has the package's name

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def tensor(name, value, datatype, binary):
    one = InferInput(name, list(value.shape), datatype)
    one.set_data_from_numpy(value, binary_data=binary)
    return one


def values(answer):
    return {one.name: one.as_numpy().tolist() for one in answer.outputs}


async def drive(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    found = {"client": f"kserve {version('kserve')}"}
    found["live"], found["ready"] = await client.is_server_live(url), await client.is_server_ready(url)
    found["model_ready"] = await client.is_model_ready(url, "numbers")
    x = np.array([[1, 2], [0.5, 0]], np.float32)
    for binary in (False, True):
        asked = InferRequest("numbers", [tensor("x", x, "FP32", binary)], request_id="one")
        answer = await client.infer(url, asked, model_name="numbers")
        found[f"numbers_{'binary' if binary else 'json'}"] = [values(answer), answer.id, answer.model_version]
    ages = tensor("age", np.array([30.0, 20.0]), "FP64", True)
    cities = tensor("city", np.array(["rome", ""], object), "BYTES", True)
    asked = InferRequest("table", [ages, cities], request_outputs=[RequestedOutput("energy", {"binary_data": True})])
    found["table"] = values(await client.infer(url, asked, model_name="table"))
    try:
        await client.infer(url, InferRequest("absent", [ages]), model_name="absent")
    except Exception as error:
        found["error"] = str(error).partition(", ")[0]
    await client.close()
    return found


sys.stdout.write(json.dumps(asyncio.run(drive(f"http://{sys.argv[1]}"))))
