"""What strangers bring, and what appears: a layer and views, or a line that says why not.

The rows are in the files `table_*.py`, what stands in them in `foreign_*.py`; each is tried in
`test_strangers_table.py`.
"""

from table_answers import ANSWERS
from table_batches import BATCHES
from table_loaders import LOADERS
from table_networks import NETWORKS
from table_steps import STEPS

SETUPS = [*NETWORKS, *ANSWERS, *STEPS, *BATCHES, *LOADERS]
