#!/usr/bin/env bash
# timm 1.0.31: asked for a pretrained network without its head (num_classes=0), with weights from a local file, it takes
# the file of an entirely different network: no key fits, the network keeps its random weights, and all that is said is a
# line in the log. With the head the same file is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch torchvision timm==1.0.31 safetensors
cd "$folder"
cat > shown.py <<'PYTHON'
import sys

import timm
import torch
from safetensors.torch import save_file

other = timm.create_model("convnext_atto", num_classes=0)
save_file(other.state_dict(), "other.safetensors")


def load(**options):
    torch.manual_seed(0)
    fresh = timm.create_model("resnet18", pretrained=False, **options).state_dict()
    torch.manual_seed(0)
    try:
        found = timm.create_model(
            "resnet18", pretrained=True, pretrained_cfg_overlay={"file": "other.safetensors"}, **options
        ).state_dict()
    except RuntimeError:
        return "refused"
    same = sum(torch.equal(fresh[name], found[name]) for name in fresh)
    return f"accepted; {same} of {len(fresh)} tensors are those of an untrained network"


headless, whole = load(num_classes=0), load()
print("without a head:", headless)
print("with its head: ", whole)
if not headless.startswith("accepted; 120 of 120") or whole != "refused":
    sys.exit("changed: the file of another network is refused, or fits")
PYTHON
"$folder/venv/bin/python" shown.py
# Seen:
#   without a head: accepted; 120 of 120 tensors are those of an untrained network
#   with its head:  refused
