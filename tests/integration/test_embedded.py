"""The embedded model: found in its package, read from GGUF, saved in the dtype asked for, recognised whole."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.models.loading import EMBEDDED, load_model
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.removal import save_pruned_model

PACKAGE, FILE, _ = EMBEDDED["smollm2-135m"]
pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed"),
    pytest.mark.skipif(find_spec("gguf") is None, reason="the extra `embedded` is not installed"),
]
IDS = torch.tensor([[1, 4093, 198, 504, 2365, 436, 253, 1123]])


def gguf() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / FILE


def test_it_is_recognised_and_every_site_confirmed() -> None:
    model, tokenizer = load_model("smollm2-135m")
    architecture = recognise(model)
    assert architecture.name == "fairprune_framework:glu"
    assert [site.units for site in architecture.sites.values()] == [1536] * 30
    assert confirm(model, architecture) == []
    assert tokenizer.is_fast


def test_a_gguf_file_is_pruned_and_saved_in_bfloat16(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(gguf()), dtype="bfloat16")
    plain, _ = load_model("smollm2-135m", dtype="bfloat16")
    assert fingerprint(model) == fingerprint(plain)
    architecture = recognise(model)
    plan = Plan(
        model="gguf",
        fingerprint=fingerprint(model),
        operator="remove",
        sites=dict.fromkeys(architecture.sites, (1, 5, 700, 1535)),
        requested={},
        achieved={},
    )
    done = save_pruned_model(
        model,
        tokenizer,
        plan,
        architecture,
        tmp_path / "model",
        probe_ids=IDS,
        reload=lambda folder: load_model(str(folder))[0],
    )
    assert done.cut == 120
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert not hasattr(again.config, "quantization_config")
    assert again.config.intermediate_size == 1532
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
