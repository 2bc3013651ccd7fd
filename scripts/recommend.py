"""What comes next after a history of items, by a trained recommender.

python scripts/recommend.py --model runs/sasrec/0 --history 12 7 103 --k 10
"""

import sys

from contrastive.cli import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
