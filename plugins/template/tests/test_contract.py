"""All that a plugin's author has to write."""

from fairprune_example import MeanDeviation

from fairprune_framework.testing.contracts import check_plugin


def test_contract() -> None:
    check_plugin("bias", MeanDeviation()).raise_if_failed()
    check_plugin("bias", MeanDeviation(power=2.0)).raise_if_failed()
