"""What the tests of the load test share."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
# All that answer; there is also one that leaves.
USERS = {
    "AdapterMixUser",
    "BaseUser",
    "FewShotUser",
    "LongPromptUser",
    "LoraAndSoftPromptUser",
    "OneAdapterUser",
    "SoftPromptUser",
    "SwapUser",
    "WholeAnswerUser",
}
CHANGES = {"replace", "rollback", "add", "remove"}
