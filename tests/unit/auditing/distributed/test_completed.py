"""The ledger of completed micro-batches: each once, merged without loss, the same after JSON."""

from __future__ import annotations

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
