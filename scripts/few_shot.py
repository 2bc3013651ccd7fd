"""Few-shot accuracy of the frozen encoder of a training run, inductive and transductive classifiers apart.

python scripts/few_shot.py --run runs/quickstart/0 --shot "[1, 5]" --episodes 2000 --other runs/quickstart/1
"""

from jsonargparse import auto_cli

from contrastive.evaluation import few_shot_run

if __name__ == "__main__":
    auto_cli(few_shot_run, as_positional=False)  # it prints its table
