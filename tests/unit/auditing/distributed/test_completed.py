"""The ledger of completed micro-batches: each once, merged without loss, the same after JSON."""

from __future__ import annotations

import json

import pytest

from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.micro_batch import BatchId
from fairprune_framework.errors import FairpruneError


def test_a_micro_batch_that_comes_twice_is_an_error() -> None:
    done = CompletedBatches()
    done.add(BatchId(0, 0, 3, 5, 17), 2, 10)
    with pytest.raises(FairpruneError, match="twice"):
        done.add(BatchId(0, 0, 3, 5, 17), 2, 10)
    with pytest.raises(FairpruneError, match="same micro-batch"):
        done.union(done.copy())


def test_it_is_the_same_after_json() -> None:
    done = CompletedBatches()
    for number in (0, 2):
        done.add(BatchId(1, 5, number, 3, 2**255 + number), 4, 10)
    again = CompletedBatches.from_json(json.loads(json.dumps(done.to_json())))
    assert again == done
    assert (1, 5, 2) in again
    assert (1, 5, 1) not in again
    assert not again.is_complete(1, 5)
    again.add(BatchId(1, 5, 1, 3, 1), 4, 10)
    assert again.is_complete(1, 5)
    assert not again.is_complete(1, 6)
