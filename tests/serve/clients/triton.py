"""What `tritonclient[http]` is made to do; run by `record_clients.py` in an environment of its own."""

import json
import sys
from importlib.metadata import version

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
found = {"client": f"tritonclient {version('tritonclient')}"}


def tensor(name, value, datatype, binary=True):
    one = triton.InferInput(name, list(value.shape), datatype)
    one.set_data_from_numpy(value, binary_data=binary)
    return one


def refused(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return None


found["live"], found["ready"] = client.is_server_live(), client.is_server_ready()
found["model_ready"] = [client.is_model_ready("numbers"), client.is_model_ready("numbers", "7")]
found["absent_ready"] = [client.is_model_ready("absent"), client.is_model_ready("numbers", "8")]
found["server"] = client.get_server_metadata()["name"]
found["metadata"] = client.get_model_metadata("table")

x = np.array([[1, 2], [0.5, 0]], np.float32)
answer = client.infer("numbers", [tensor("x", x, "FP32")])  # binary both ways, all outputs
found["binary"] = {name: answer.as_numpy(name).tolist() for name in ("energy", "p_value", "flag")}
answer = client.infer(
    "numbers",
    [tensor("x", x, "FP32", False)],
    request_id="one",
    model_version="7",
    outputs=[triton.InferRequestedOutput("energy", binary_data=False)],
)
found["json"] = [answer.as_numpy("energy").tolist(), answer.get_response()["id"], answer.as_numpy("flag") is None]
answer = client.infer(
    "numbers",
    [tensor("x", x, "FP32")],
    parameters={"alpha": 0.5},
    timeout=20_000_000,
    outputs=[triton.InferRequestedOutput("flag"), triton.InferRequestedOutput("energy", False)],
)
found["mixed"] = [answer.as_numpy("flag").tolist(), answer.as_numpy("energy").tolist()]

age, city = np.array([[30.0], [np.nan]]), np.array([["rome"], [""]], object)
answer = client.infer("table", [tensor("age", age, "FP64"), tensor("city", city, "BYTES")])
found["table"] = answer.as_numpy("energy").tolist()
city = np.array(["rome", "Orléans"], object)
ages = np.array([30, 40], np.int32)
answer = client.infer("table", [tensor("city", city, "BYTES", False), tensor("age", ages, "INT32", False)])
found["table_json"] = answer.as_numpy("energy").tolist()
pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
answer = client.infer("pictures", [tensor("x", pixels, "UINT8")])
found["pixels"] = [answer.as_numpy("energy").tolist(), list(answer.as_numpy("probabilities").shape)]
future = client.async_infer("words", [tensor("x", np.array(["abc", ""], object), "BYTES")])
found["texts"] = future.get_result().as_numpy("energy").tolist()

found["errors"] = [
    refused(lambda: client.infer("absent", [tensor("x", x, "FP32")])),
    refused(lambda: client.infer("numbers", [tensor("y", x, "FP32")])),
    refused(lambda: client.infer("numbers", [tensor("x", x.astype(np.float64) / 3, "FP64")])),
    refused(lambda: client.infer("numbers", [tensor("x", x[:, :1], "FP32")])),
    refused(lambda: client.infer("numbers", [tensor("x", np.full((1, 2), 13, np.float32), "FP32")])),
    refused(lambda: client.get_model_metadata("absent")),
]
sys.stdout.write(json.dumps(found))
