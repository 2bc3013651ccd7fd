"""Weighted nearest-neighbour accuracy of the frozen encoder of a training run.

python scripts/knn.py --run runs/quickstart/0 --k 200
"""

from jsonargparse import auto_cli

from contrastive.evaluation import format_result, knn_run

if __name__ == "__main__":
    print(format_result(auto_cli(knn_run, as_positional=False)))
