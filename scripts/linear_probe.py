"""Linear probe on the frozen encoder of a training run.

python scripts/linear_probe.py --run runs/quickstart/0
python scripts/linear_probe.py --run runs/quickstart/0 --protocol sgd --epochs 100 --standardize false
"""

from jsonargparse import auto_cli

from contrastive.evaluation import format_result, probe_run

if __name__ == "__main__":
    print(format_result(auto_cli(probe_run, as_positional=False)))
