"""The server's side: Flower's own FedAvg, and its log with the time on each line."""

from __future__ import annotations

import logging

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.common.logger import FLOWER_LOGGER
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All the rounds."""
    config = context.run_config
    handler = logging.FileHandler(str(config["log"]))
    handler.setFormatter(logging.Formatter("%(created).6f %(message)s"))
    FLOWER_LOGGER.addHandler(handler)
    width, layers, nodes = (int(config[key]) for key in ("width", "layers", "nodes"))
    random = np.random.default_rng(0)
    model = {
        str(layer): Array(random.standard_normal((width, width), dtype=np.float32))
        for layer in range(layers)
    }
    strategy = FedAvg(
        fraction_evaluate=0.0,  # no second message a round
        min_train_nodes=nodes,
        min_available_nodes=nodes,
    )
    strategy.start(grid, ArrayRecord(model), num_rounds=int(config["rounds"]))
