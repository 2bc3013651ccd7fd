"""Ranking metrics of any model from its top-k lists, beside floors: a TREC run, or a table user,item,score.

python scripts/evaluate_recommender.py --data amazon-beauty.seq.tsv.gz --run model.run --output results.json
python scripts/evaluate_recommender.py --data log.csv --run ours.csv --compare theirs.csv --history mask
"""

import sys

from jsonargparse import auto_cli

from recsys.run_files import evaluate_run_files

if __name__ == "__main__":
    try:
        print(auto_cli(evaluate_run_files, as_positional=False))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
