"""Asks the endpoint at a port 200 things, slowly enough to be killed meanwhile. Started by ``test_descriptions.py``.

python ask.py PORT FILE
"""

import sys

from recsys.descriptions import describe

if __name__ == "__main__":
    describe(
        [f"prompt {number}" for number in range(200)],
        sys.argv[2],
        base_url=f"http://127.0.0.1:{sys.argv[1]}/v1",
        model="stub",
        workers=2,
    )
