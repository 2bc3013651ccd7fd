#!/usr/bin/env bash
# milvus-lite 3.2.2 with pymilvus 3.0.2: a collection with a graph gives as many neighbours as are asked for while it is
# the one that was written, and about a quarter of them once it was released and loaded again, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pymilvus==3.0.2 milvus-lite==3.2.2 numpy
cd "$folder"
cat > shown.py <<'PYTHON'
import sys

import numpy as np
from pymilvus import DataType, MilvusClient

vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype("f4")
client = MilvusClient("entries.db")
schema = client.create_schema()
schema.add_field("id", DataType.INT64, is_primary=True)
schema.add_field("vector", DataType.FLOAT_VECTOR, dim=16)
parameters = client.prepare_index_params()
parameters.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
client.create_collection("entries", schema=schema, index_params=parameters)
for start in range(0, 3000, 1000):
    rows = [{"id": i, "vector": vectors[i].tolist()} for i in range(start, start + 1000)]
    client.insert("entries", rows)
client.flush("entries")
client.load_collection("entries")


def found():
    return [len(client.search("entries", data=vectors[:1].tolist(), limit=limit)[0]) for limit in (2000, 3000)]


written = found()
client.release_collection("entries")
client.load_collection("entries")
loaded = found()
print("as written:", *written)
print("loaded anew:", *("fewer than 1000" if count < 1000 else count for count in loaded))
print(loaded, file=sys.stderr)
if written != [2000, 3000] or max(loaded) >= 1000:
    sys.exit("changed: as many are found after loading as before")
PYTHON
"$folder/venv/bin/python" shown.py
# Seen:
#   as written: 2000 3000
#   loaded anew: fewer than 1000 fewer than 1000
