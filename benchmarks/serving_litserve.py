"""LitServe with batching for benchmarks/serving.py, over the same servable; its python needs litserve 0.2.19.

PYTHON benchmarks/serving_litserve.py litserve MODEL PORT
"""

import sys

import litserve as ls
import numpy as np
from serving_beside import predictions, rows_of, servable_of

MAX_BATCH = 64
TIMEOUT = 0.002  # seconds


class Api(ls.LitAPI):
    def setup(self, device):
        import torch

        torch.set_num_threads(1)
        self.servable = servable_of(sys.argv[2])

    def decode_request(self, request):
        return rows_of(request["instances"])

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x):
        return self.servable.score({"x": x})

    def unbatch(self, output):
        return predictions(output)

    def encode_response(self, output):
        return {"predictions": [output]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=TIMEOUT, api_path="/v1/score")
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(port=int(sys.argv[3]), log_level="warning", generate_client_file=False, access_log=False)
