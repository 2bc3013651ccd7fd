#!/usr/bin/env bash
# faiss-cpu 1.15.1: the table by which an inverted file gives vectors back (direct map, kind Hashtable) is made once and
# not extended by a later add(): rows that are searched and found cannot be reconstructed, although the kind of the map
# is still Hashtable. Making the map anew (NoMap, then Hashtable) mends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.2.6
cd "$folder"
cat > shown.py <<'PYTHON'
import sys

import faiss
import numpy as np

rows = np.random.default_rng(0).random((1010, 16), dtype=np.float32)
index = faiss.index_factory(16, "IVF8,Flat")
index.nprobe = 8
index.train(rows[:1000])
index.add(rows[:1000])
index.set_direct_map_type(faiss.DirectMap.Hashtable)
index.reconstruct(0)
index.add(rows[1000:])
print("found by search:", int(index.search(rows[1005:1006], 1)[1][0, 0]))
try:
    print("reconstructed:", bool(np.allclose(index.reconstruct(1005), rows[1005])))
    sys.exit("changed: rows that were added later are in the map")
except RuntimeError as error:
    print("reconstruct:", str(error).strip().splitlines()[-1].rpartition(":")[2].strip()[:40])
index.set_direct_map_type(faiss.DirectMap.NoMap)
index.set_direct_map_type(faiss.DirectMap.Hashtable)
print("made anew:", bool(np.allclose(index.reconstruct(1005), rows[1005])))
PYTHON
"$folder/venv/bin/python" shown.py
# Seen:
#   found by search: 1005
#   reconstruct: key not found
#   made anew: True
