"""Every option of public constructors and functions refuses what is out of range, no number, or misspelt."""

import inspect

import numpy as np
import pytest
import torch

import recsys
from recsys import augment, cooccurrence, descriptions, metrics, semantic
from recsys.batches import HeldOutBatches, TrainingBatches, training_prefixes
from recsys.encoders import SequenceEncoder
from recsys.mclrec import regulariser
from recsys.objectives import BCE, BPR, pair_contrast
from recsys.running_metrics import RankingMetrics
from recsys.sracl import Synthesiser, one_way_contrast

DATA = recsys.SequenceData.generate(12, 8, clusters=2)
SPLIT = DATA.split()
ROWS = torch.eye(4)
ITEMS, LENGTHS = torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2])
CHANCE = torch.Generator()
RANKS = np.array([0, 3])
ENCODER = recsys.SASRec(8, 8)


def score(histories):
    return torch.zeros(len(histories), 9)


# What is called, with the arguments that it needs; then its options: whole numbers with what lies below their range,
# numbers with what lies outside, choices, flags.
CASES = [
    (recsys.SASRec, {}, {"num_items": 0, "dim": 0, "layers": 0, "heads": 0, "inner_dim": -1, "max_length": 0},
     {"dropout": 1.0, "attention_dropout": -0.1}, ["positions"], []),
    (recsys.GRU4Rec, {}, {"num_items": -1, "dim": 0, "hidden_dim": 0, "layers": 0, "max_length": 0},
     {"dropout": 1.5}, [], []),
    (recsys.FullSoftmax, {}, {}, {}, [], ["padding_class"]),
    (recsys.SampledSoftmax, {}, {"num_negatives": 0}, {}, [], []),
    (recsys.CL4SRec, {}, {}, {"weight": -1, "crop": 7.0, "mask": -0.1, "reorder": 1.1, "temperature": -2}, [], []),
    (recsys.DuoRec, {}, {}, {"weight": -1, "target_weight": -1, "temperature": 0}, [], []),
    (recsys.MCLRec, {}, {},
     {"data_weight": -1, "model_weight": -1, "regulariser_weight": -1, "crop": 2, "mask": 2, "reorder": 2,
      "temperature": 0}, ["update", "margins", "similarity"], []),
    (recsys.SRACL, {}, {"neighbours": 0},
     {"user_weight": -1, "item_weight": -1, "recency": 0, "attention_dropout": 2.0, "substitution": 5,
      "temperature": -1}, ["semantics", "retrieval"], ["symmetric"]),
    (Synthesiser, {"semantic_dim": 4, "dim": 4}, {"semantic_dim": 0, "dim": 0}, {"dropout": 1}, [], []),
    (recsys.SequentialRecommender, {"encoder": ENCODER}, {"seed": -5},
     {"learning_rate": -1, "weight_decay": -1, "augmenter_learning_rate": 0}, ["history", "ties"], []),
    (recsys.RecommenderData, {"synthetic": {"users": 12, "items": 32}},
     {"core": -1, "max_length": 0, "batch_targets": 0, "samples": 0, "stride": 0, "eval_batch": 0, "seed": -1}, {},
     [], ["shared"]),
    (recsys.SequenceData.generate, {"users": 12, "items": 32}, {"users": 0, "items": 0, "clusters": 1, "seed": -1},
     {"mean_length": 4, "follow": 1.1}, [], []),
    (TrainingBatches, {"train": SPLIT.train},
     {"max_length": 0, "batch_targets": 0, "stride": 0, "samples": -1, "seed": -1}, {}, [], ["shared"]),
    (training_prefixes, {"split": SPLIT, "max_length": 3}, {"max_length": 0, "stride": 0}, {}, [], []),
    (HeldOutBatches, {"cases": SPLIT.test}, {"max_length": 0, "batch_size": -1}, {}, [], []),
    (pair_contrast, {"first": ROWS, "second": ROWS}, {}, {"temperature": 0}, ["similarity"], []),
    (regulariser, {"first": ROWS, "second": ROWS}, {}, {"temperature": 0}, [], []),
    (one_way_contrast, {"states": ROWS, "positives": ROWS}, {}, {"temperature": -1}, [], []),
    *((edit, {"items": ITEMS, "lengths": LENGTHS, "generator": CHANCE}, {}, {"ratio": 1.5}, [], [])
      for edit in (augment.crop, augment.mask, augment.reorder)),
    (augment.random_views, {"items": ITEMS, "lengths": LENGTHS, "generator": CHANCE}, {},
     {"crop": -1, "mask": 2, "reorder": 2}, [], []),
    (augment.insert, {"items": ITEMS, "lengths": LENGTHS, "generator": CHANCE, "ratio": 0.5, "num_items": 8},
     {"num_items": 0, "max_length": 0}, {"ratio": 2}, [], []),
    (augment.substitute, {"items": ITEMS, "lengths": LENGTHS, "neighbours": torch.ones(9, 2, dtype=torch.int64),
                          "probability": 0.5, "generator": CHANCE}, {}, {"probability": 5}, [], ["allow_padding"]),
    (recsys.rank_targets, {"score": score, "cases": SPLIT.test}, {"batch_size": 0}, {}, ["history", "ties"], []),
    (recsys.rank_by_vectors, {"states": ROWS, "item_vectors": ROWS, "targets": np.ones(4, np.int64)},
     {"user_block": 0, "item_block": 0}, {}, ["ties"], []),
    (recsys.top_items, {"score": score, "histories": SPLIT.train, "k": 2}, {"k": 0, "batch_size": 0}, {},
     ["history"], []),
    (recsys.coverage, {"lists": RANKS, "num_items": 8}, {"num_items": 0}, {}, [], []),
    (recsys.paired_bootstrap, {"ranks_a": RANKS, "ranks_b": RANKS}, {"samples": 0, "seed": -1}, {}, [], []),
    (metrics.metrics_by_length, {"ranks": np.zeros(len(SPLIT.test), np.int64), "cases": SPLIT.test}, {"bins": 0}, {},
     [], []),
    (recsys.SequentialRules, {}, {"steps": 0}, {"recency": 0}, [], []),
    (recsys.ItemKNN, {}, {}, {"recency": 1.1}, [], []),
    (recsys.Popularity().fit, {"train": SPLIT.train, "num_items": 8}, {"num_items": 0}, {}, [], []),
    (recsys.TransitionMixture, {"model_score": score, "table": None}, {}, {"weight": 1}, [], []),
    (cooccurrence.interaction_vectors, {"train": SPLIT.train, "num_items": 8},
     {"num_items": 0, "dim": 0, "window": 0}, {}, [], []),
    (semantic.attribute_vectors, {"attributes": DATA.attributes}, {"num_attributes": -1, "dim": 0}, {}, [], []),
    (semantic.embed_texts, {"texts": ["a"]}, {"batch_size": 0}, {}, [], []),
    (semantic.split_prefixes, {"split": SPLIT}, {"length": 0}, {}, ["pool"], []),
    (semantic.prefix_embeddings, {"item_vectors": np.eye(9), "prefixes": semantic.split_prefixes(SPLIT)}, {},
     {"recency": 0}, [], []),
    (semantic.item_neighbours, {"vectors": np.eye(9)}, {"k": 0}, {}, ["drop"], []),
    (semantic.prefix_neighbours,
     {"prefixes": semantic.split_prefixes(SPLIT),
      "embeddings": np.ones((len(semantic.split_prefixes(SPLIT)), 2), np.float32)},
     {"k": 0}, {}, ["drop"], ["exclude_same_user"]),
    (descriptions.item_prompts, {"texts": DATA.texts, "train": SPLIT.train, "domain": "tools"},
     {"contexts": -1, "context_length": 0, "seed": -1}, {}, [], []),
    (descriptions.describe, {"prompts": [], "file": "nowhere.jsonl", "base_url": "http://localhost", "model": "m"},
     {"max_tokens": 0, "workers": 0, "retries": -1},
     {"temperature": -1, "pause": -1, "timeout": 0, "price_in": -1, "price_out": -1, "max_cost": -1}, [], []),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: getattr(case[0], "__qualname__", None))
def test_options_out_of_range_are_refused_by_name(case):
    call, needed, whole, real, choices, flags = case

    def refused(option, value, kind, said):
        with pytest.raises(kind, match=said) as caught:
            call(**{**needed, option: value})
        assert type(caught.value).__module__ == "contrastive.errors", option
        assert option in str(caught.value), caught.value

    for option, outside in {**whole, **real}.items():
        refused(option, outside, ValueError, r"; give a")
        refused(option, True, TypeError, r"is True; give a")
        refused(option, "many", TypeError, r"is 'many'; give a")
        refused(option, float("nan"), (ValueError, TypeError), r"is nan; give a")
    for option in whole:
        refused(option, 1.5, TypeError, r"is 1\.5; give a whole number")
        refused(option, 2**70, ValueError, r"; give a whole number")
    for option in choices:
        refused(option, "masked", ValueError, r"is 'masked'; give one of '")
    for option in flags:
        refused(option, "yes", TypeError, r"is 'yes'; give True or False")


@pytest.mark.parametrize(
    "name", ["SASRec", "GRU4Rec", "CL4SRec", "DuoRec", "MCLRec", "SRACL", "SampledSoftmax"]
)
def test_no_number_of_a_constructor_goes_unchecked(name):
    """A new option has to be added above."""
    (case,) = (case for case in CASES if case[0] is getattr(recsys, name))
    checked = {option for part in case[2:] for option in part} | {"widths", "text_model", "cache"}
    assert not set(inspect.signature(case[0]).parameters) - checked


def test_numpys_numbers_are_numbers():
    encoder = recsys.SASRec(np.int64(8), np.int32(8), dropout=np.float32(0.5), heads=np.int64(2))
    assert {type(value) for value in encoder.config.values()} == {int, float, str}
    recsys.RecommenderData(synthetic={"users": np.int64(12), "items": 32}, eval_batch=np.int64(4))
    assert recsys.MCLRec(widths=[np.int64(3), 2]).widths == (3, 2)
    assert RankingMetrics(np.array([1, 5])).ks == (1, 5)
    assert metrics.top_items(score, SPLIT.train, np.int64(3)).shape == (12, 3)


@pytest.mark.parametrize("widths", [(3,), 3, (3, 0), (3, 2.5), None])
def test_widths_are_two_numbers(widths):
    with pytest.raises((ValueError, TypeError), match=r"MCLRec: widths is .*; give"):
        recsys.MCLRec(widths=widths)


def test_a_catalogue_of_one_item_is_refused_in_a_sentence():
    states, targets, vectors = torch.ones(2, 3), torch.ones(2, dtype=torch.int64), torch.ones(2, 3)
    for loss in (BPR(), BCE()):
        with pytest.raises(ValueError, match="the catalogue has 1; give data of two items or more"):
            loss(states, targets, vectors, CHANCE)
    for rows, count in (([[1, 1, 1]], 1), ([[1, 1, 1], [2]], 2), ([[1], [2], [3]], 3)):
        with pytest.raises(ValueError, match="choose semantics='attributes' or 'texts'"):
            cooccurrence.interaction_vectors(recsys.Sequences.from_lists(rows), count)


def test_a_recommender_names_a_part_of_another_kind():
    with pytest.raises(TypeError, match=r"head is a FullSoftmax; give a recsys\.objectives\.Head"):
        recsys.SequentialRecommender(ENCODER, heads=[recsys.FullSoftmax()])
    with pytest.raises(ValueError, match="item table is for 8; give data of the same catalogue"):
        ENCODER.setup(9)
    assert issubclass(recsys.GRU4Rec, SequenceEncoder)
