"""Buckets of distances, here and in transformers; test_relative_bias.py starts it.

It writes the number of buckets, the largest distance and whether attention looks ahead, with
whether both agree, to stdout.
"""

import json
import sys
from itertools import product

import torch
from transformers.models.t5.modeling_t5 import T5Attention

from app.engine.plugin.seq2seq.relative_attention import buckets_of

FURTHEST = 700


def agree(num_buckets: int, max_distance: int, looks_ahead: bool) -> bool:
    """Also on distances beyond the last one that has an entry here."""
    relative = torch.arange(-FURTHEST, FURTHEST + 1)
    ours = buckets_of(num_buckets, max_distance, looks_ahead=looks_ahead)
    theirs = T5Attention._relative_position_bucket(
        relative, bidirectional=looks_ahead, num_buckets=num_buckets, max_distance=max_distance
    )
    limited = relative.clamp(-max_distance, max_distance) + max_distance
    return bool((ours[limited] == theirs).all())


if __name__ == "__main__":
    cases = product((8, 32), (20, 128, 512), (False, True))
    sys.stdout.write(json.dumps([[*case, agree(*case)] for case in cases]) + "\n")
