"""A client that does not train: it sends back what it was sent, hardly changed."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

# One element in each MiB differs from what was sent, and between clients. Flower names what it
# stores by its content, so equal replies would cross the network once, or not at all: no training
# ever gives equal weights.
STRIDE = 1 << 18

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The same arrays, told apart."""
    number = int(context.node_config["number"])
    arrays = {}
    for name, array in message.content["arrays"].items():
        values = array.numpy()
        values.reshape(-1)[::STRIDE] += number + 1
        arrays[name] = Array(values)
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content=content, reply_to=message)
