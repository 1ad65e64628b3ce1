"""The operator `mean`: neurons held at their means leave the tensors, and the bias of the output projection takes over what they add."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.uneven import FIELD, FILE
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.biases import name_of_bias
from fairprune_framework.surgery.changes import pruned_in_place
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.export import export
from fairprune_framework.surgery.means import mean_activations
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.partial import Part, without
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.surgery.widths import stored_sites, stored_widths
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))
TEXTS = [row.tolist() for row in torch.randint(3, 300, (5, 12), generator=torch.Generator().manual_seed(3))]
CASES = (
    *(("gpt_neox", "uniform"), ("phi", "exact"), ("gpt2", "uniform"), ("gpt2", "exact")),  # with a bias of their own
    *(("llama", "uniform"), ("llama", "exact"), ("granite", "uniform")),  # `mlp_bias` gives them one
    *(("qwen2", "exact"), ("gemma", "exact"), ("phi3", "exact"), ("recurrent_gemma", "exact")),  # beside the config alone
)


@pytest.fixture(autouse=True)
def own_auto_classes() -> Iterator[None]:
    """transformers keeps the code that it ran as the class of the family, for the rest of the process."""
    auto: list[Any] = [AutoModel, AutoModelForCausalLM]
    before = [dict(each._model_mapping._extra_content) for each in auto]
    yield
    for each, content in zip(auto, before, strict=True):
        each._model_mapping._extra_content = content


def whole(layout: str, folder: Path, dtype: torch.dtype = torch.float32, **shards: Any) -> Any:
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    model.to(dtype).save_pretrained(folder, **shards)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder))[0]


def planned(model: Any, counts: tuple[int, ...] = (5, 9)) -> Plan:
    """Random units of each site, as many as `counts` says in turn, with their means; even ones were chosen for a, others for b."""
    architecture = recognise(model)
    draw = torch.Generator().manual_seed(1)
    sites = {
        name: tuple(sorted(torch.randperm(site.units, generator=draw)[: counts[place % len(counts)]].tolist()))
        for place, (name, site) in enumerate(architecture.sites.items())
        if counts[place % len(counts)]
    }
    means = mean_activations(model, architecture, TEXTS)
    return Plan(
        model="tiny",
        fingerprint=fingerprint(model),
        operator="mean",
        sites=sites,
        means={name: tuple(map(tuple, means[name][list(units)].tolist())) for name, units in sites.items()},
        categories={name: tuple(1 + unit % 2 for unit in units) for name, units in sites.items()},
        category_names=("a", "b"),
        requested={},
        achieved={},
    )


def carried_out(model: Any, plan: Plan, source: Path | None, folder: Path, widths: Any = "uniform") -> Removal:
    return save_pruned_model(
        model,
        tiny_tokenizer(),
        plan,
        recognise(model),
        folder / "model",
        probe_ids=IDS,
        widths=widths,
        reload=lambda saved: load_model(str(saved))[0],
        restoration=folder / "restoration.safetensors",
        original=source,
    )


def same_state(one: Any, other: Any) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize(("layout", "widths"), CASES)
def test_removed_equals_masked_reloads_and_is_restored(layout: str, widths: Any, tmp_path: Path) -> None:
    model = whole(layout, tmp_path / "whole")
    plan = planned(model)
    with fp.applied(plan, model):
        masked = logits_of(model, IDS)
    done = carried_out(model, plan, tmp_path / "whole", tmp_path / "run", widths)
    assert done.cut > 0
    assert done.padded == (0 if widths == "exact" else plan.count - done.cut)
    folder = tmp_path / "run" / "model"
    ours, _ = load_model(str(folder))
    removed = logits_of(ours, IDS)
    assert (removed - masked).abs().max() < 1e-4
    assert (removed - logits_of(model, IDS)).abs().max() > 1e-3
    config = json.loads((folder / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=FIELD in config, dtype="auto").eval()
    assert torch.equal(logits_of(plain, IDS), removed)
    assert (FIELD in config) == (widths == "exact") == (folder / FILE).is_file()
    fp.restore(folder, tmp_path / "original")
    same_state(model, load_model(str(tmp_path / "original"))[0])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "original" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize("layout", ["llama", "gpt_neox", "gpt2"])
def test_the_mean_output_of_each_mlp_on_the_calibration_text_is_unchanged(layout: str) -> None:
    """Each MLP is fed what the original feeds it: a removal in a layer below moves the input of those above."""
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    plan, sites = planned(model), recognise(model).sites
    for name, units in plan.sites.items():
        one = replace(plan, sites={name: units}, means={name: plan.means[name]}, categories={})
        out = name_of_bias(sites[name]).removesuffix(".bias")
        assert (one_mean(model, out, one) - one_mean(model, out)).abs().max() < 1e-6
        assert (one_mean(model, out, replace(one, operator="remove", means={})) - one_mean(model, out)).abs().max() > 1e-4


def one_mean(model: Any, module: str, plan: Plan | None = None) -> torch.Tensor:
    """(H,) float64: the mean output of a module over all tokens of the texts, with a plan carried out in the weights or none."""
    rows: list[torch.Tensor] = []
    sites = stored_sites(recognise(model).sites, "exact")
    with ExitStack() as stack:
        if plan is not None:
            stack.enter_context(pruned_in_place(model, plan, sites, stored_widths(plan, sites, 1)))
        handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, output: rows.append(output.detach()))
        for text in TEXTS:
            model(input_ids=torch.tensor([text]))
        handle.remove()
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).double().mean(0)


def test_means_are_those_of_every_token_and_column() -> None:
    model = tiny_model("llama")
    seen: dict[str, list[torch.Tensor]] = {}
    for name in recognise(model).sites:
        model.get_submodule(f"{name}.down_proj").register_forward_pre_hook(
            lambda _m, args, name=name: seen.setdefault(name, []).append(args[0][0].detach().double())
        )
    for text in TEXTS:
        model(input_ids=torch.tensor([text]))
    for name, found in mean_activations(model, recognise(model), TEXTS).items():
        assert found.shape == (48, 1)
        torch.testing.assert_close(found[:, 0], torch.cat(seen[name][: len(TEXTS)]).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layout", "widths"), [("llama", "uniform"), ("qwen2", "exact"), ("gpt2", "uniform")])
def test_a_part_comes_back_as_if_it_had_never_been_planned(layout: str, widths: Any, tmp_path: Path) -> None:
    model = whole(layout, tmp_path / "whole")
    plan = planned(model, (5, 0))
    carried_out(model, plan, tmp_path / "whole", tmp_path / "run", widths)
    part = Part(categories=("a",))
    carried_out(model, without(plan, part.of(plan, recognise(model).sites)), tmp_path / "whole", tmp_path / "direct", widths)
    fp.restore(tmp_path / "run" / "model", tmp_path / "some", categories=("a",))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "some" / file).read_bytes() == (tmp_path / "direct" / "model" / file).read_bytes(), file
    fp.restore(tmp_path / "some", tmp_path / "original")
    same_state(model, load_model(str(tmp_path / "original"))[0])


def test_biases_in_bfloat16_and_in_shards_are_stored_beside_their_weights(tmp_path: Path) -> None:
    model = whole("llama", tmp_path / "whole", torch.bfloat16, max_shard_size="40KB")
    plan = planned(model)
    carried_out(model, plan, tmp_path / "whole", tmp_path / "run")
    index = json.loads((tmp_path / "run" / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    biases = [name for name in index if name.endswith("_proj.bias")]
    assert len(biases) == 3 * len(plan.sites)
    assert all(index[name] == index[name.removesuffix("bias") + "weight"] for name in biases)
    fp.restore(tmp_path / "run" / "model", tmp_path / "original")
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "original" / file.name).read_bytes() == file.read_bytes(), file.name


def test_pruned_twice_the_bias_holds_both_means(tmp_path: Path) -> None:
    model = whole("qwen2", tmp_path / "whole")
    carried_out(model, planned(model, (5, 0)), tmp_path / "whole", tmp_path / "one", "exact")
    once, _ = load_model(str(tmp_path / "one" / "model"))
    plan = planned(once)
    with fp.applied(plan, once):
        masked = logits_of(once, IDS)
    carried_out(once, plan, tmp_path / "one" / "model", tmp_path / "two", "exact")
    twice, _ = load_model(str(tmp_path / "two" / "model"))
    assert (logits_of(twice, IDS) - masked).abs().max() < 1e-4
    fp.restore(tmp_path / "two" / "model", tmp_path / "back")
    same_state(once, load_model(str(tmp_path / "back"))[0])


@pytest.mark.parametrize(
    ("layout", "widths", "message"),
    [
        ("qwen2", "uniform", r"down_proj\.bias is absent, and no config field gives Qwen2ForCausalLM one .*: --widths exact"),
        ("bitnet", "exact", r"cannot be held at its mean: a norm stands between"),
        ("mixtral", "exact", r"experts\.0 cannot be held at its mean: its output weights are those of an expert"),
        ("gpt_oss", "exact", r"experts\.0 cannot be held at its mean"),
    ],
)
def test_a_model_that_cannot_hold_means_is_refused(layout: str, widths: Any, message: str) -> None:
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    with pytest.raises(UserError, match=message):
        refuse_obstacles(model, recognise(model).sites.values(), "mean", widths)


def test_formats_without_such_a_bias_are_refused_in_one_line(tmp_path: Path) -> None:
    model = whole("qwen2", tmp_path / "whole")
    carried_out(model, planned(model), tmp_path / "whole", tmp_path / "run", "exact")
    for format, message in (("hf", "no field of the config gives Qwen2ForCausalLM"), ("gguf", "its MLPs have biases")):
        with pytest.raises(UserError, match=message):
            export(tmp_path / "run" / "model", tmp_path / f"out.{format}", format)
    assert not list(tmp_path.glob("out.*"))
    assert export(tmp_path / "run" / "model", tmp_path / "served", "vllm").filled == 0


def test_a_run_holds_neurons_at_their_means(
    fairprune: Callable[..., Any], llama: Path, prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    run, words = tmp_path / "run", ("--operator", "mean", "--random-sets", "2")
    answer = fairprune("run", llama, "--prompts", prompts, "--output", run, *quick, *words)
    assert answer.code == 0, answer.err
    plan = json.loads((run / "plan.json").read_text())
    assert {site: len(each) for site, each in plan["means"].items()} == {site: len(u) for site, u in plan["sites"].items()}
    record = json.loads((run / "run.json").read_text())
    assert record["removal"]["operator"] == "mean"
    assert json.loads((run / "model" / "config.json").read_text())["mlp_bias"] is True
    assert fairprune("ask", "causal", run, "--draws", "2").code == 0
    assert fairprune("restore", run, "--output", tmp_path / "original").code == 0
    assert (tmp_path / "original" / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()


def test_a_run_that_cannot_hold_means_writes_nothing(
    fairprune: Callable[..., Any], prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    whole("qwen2", tmp_path / "whole")
    answer = fairprune(
        "run", tmp_path / "whole", "--prompts", prompts, "--output", tmp_path / "run", *quick, "--operator", "mean"
    )
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "--widths exact" in answer.errors[0]
    assert not (tmp_path / "run").exists()
