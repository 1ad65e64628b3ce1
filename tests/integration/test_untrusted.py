"""Folders, recipes, grids and models of strangers: no code of theirs runs in any command, unless it was asked for by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fairprune_framework as fp
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.integrity import seal

EVIL = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n"


class Stranger:
    """What a stranger may hand over. Every piece of their code leaves a file at `marker` when it runs."""

    def __init__(self, folder: Path, finished: Path, llama: Path, prompts: Path) -> None:
        self.folder, self.marker, self.prompts = folder, folder / "code-ran", prompts
        code = EVIL.format(marker=str(self.marker))
        (folder / "evil_logger.py").write_text(code + "class Logger:\n    def __init__(self, save_dir): pass\n")
        self.model = folder / "evil-model"
        shutil.copytree(llama, self.model)
        self.poison(self.model, code)
        self.run = folder / "run"
        shutil.copytree(finished, self.run)
        self.poison(self.run / "model", code)
        recipe = yaml.safe_load((self.run / "recipe.yaml").read_text())
        recipe |= {"model": str(self.model), "trust_remote_code": True, "allow_pickle": True, "log": "evil_logger.Logger"}
        (self.run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.recipe = folder / "evil.yaml"
        self.grid = folder / "grid.yaml"
        self.grid.write_text(f"model: {self.model}\nprompts: {prompts}\nbudget: ['0.1']\ntrust_remote_code: true\n")

    @staticmethod
    def poison(model: Path, code: str) -> None:
        (model / "modeling_evil.py").write_text(
            code + "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class Config(LlamaConfig): pass\nclass Model(LlamaForCausalLM): config_class = Config\n"
        )
        config = json.loads((model / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
        (model / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        tokenizer["auto_map"] = {"AutoTokenizer": ["modeling_evil.Model", None]}
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    def ask_for_nothing(self) -> None:
        """Take the options out of recipe and grid that ask for code: what is left is the code itself."""
        for path in (self.run / "recipe.yaml", self.grid):
            values = yaml.safe_load(path.read_text())
            unsafe = ("trust_remote_code", "allow_pickle", "log")
            path.write_text(yaml.safe_dump({name: value for name, value in values.items() if name not in unsafe}))

    def evil_restoration(self) -> Path:
        """A restoration that points the config at their code, and names a class."""
        path = self.run / "restoration.safetensors"
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata())
        content = json.loads(header["fairprune"])
        content["config"] |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"}, "__class__": 5}
        save_file(load_file(path), path, metadata=header | {"fairprune": json.dumps(content)})
        return path


@pytest.fixture
def stranger(tmp_path: Path, finished: Path, llama: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - nobody answers "run this code? [y/N]"
    sys.modules.pop("evil_logger", None)
    return Stranger(tmp_path, finished, llama, prompts)


COMMANDS = (
    "ask overlap RUN",
    "ask transfer RUN",
    "ask stability RUN",
    "ask scorers RUN",
    "ask causal RUN",
    "inspect RUN --unit 0:3",
    "explore RUN",
    "run --output RUN --overwrite",
    "audit --output RUN --overwrite",
    "score --output RUN --overwrite",
    "plan --output RUN --overwrite",
    "prune --output RUN --overwrite",
    "prune MODEL --plan PLAN --output OUT",
    "evaluate --output RUN --overwrite",
    "report RUN",
    "restore RUN --output OUT",
    "ablate GRID --output OUT",
    "push RUN --repo owner/name",
    "run MODEL --prompts PROMPTS --output OUT --recipe RECIPE",
    "audit MODEL --prompts PROMPTS --output OUT --recipe RUN/recipe.yaml",
    "prompts check PROMPTS --model MODEL",
)


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_code_of_a_stranger_runs(
    command: str, asks: bool, stranger: Stranger, fairprune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asks:
        stranger.ask_for_nothing()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("fairprune_framework.exploring.page.serve", lambda *_, **__: None)
    stranger.evil_restoration()
    stranger.recipe.write_text("budget: 0.1\nlog: evil_logger.Logger\n")
    places = {
        "RUN": stranger.run,
        "MODEL": stranger.model,
        "PLAN": stranger.run / "plan.json",
        "PROMPTS": stranger.prompts,
        "RECIPE": stranger.recipe,
        "GRID": stranger.grid,
        "OUT": stranger.folder / "out",
    }
    words = [
        str(stranger.run / "recipe.yaml") if word == "RUN/recipe.yaml" else str(places.get(word, word))
        for word in command.split()
    ]
    answer = fairprune(*words)
    assert not stranger.marker.exists(), answer.err
    assert answer.code in (0, 2), answer.err
    if answer.code == 2:
        assert len(answer.errors) == 1
        assert len(answer.errors[0]) < 600


@pytest.mark.parametrize(
    "line", ["trust_remote_code: true", "trust-remote-code: 'true'", "allow_pickle: 1", "log: evil_logger.Logger"]
)
def test_no_file_asks_for_code(line: str, stranger: Stranger, fairprune: Callable[..., Any]) -> None:
    out = stranger.folder / "out"
    stranger.recipe.write_text(f"budget: 0.1\n{line}\n")
    for grid in (False, True):
        text = f"model: {stranger.model}\nprompts: {stranger.prompts}\n{line}\n"
        stranger.grid.write_text(text)
        words = (
            ("ablate", stranger.grid, "--output", out)
            if grid
            else ("run", stranger.model, "--prompts", stranger.prompts, "--output", out, "--recipe", stranger.recipe)
        )
        answer = fairprune(*words)
        assert answer.code == 2
        assert "can run code. No file may ask for that" in answer.err
        assert not out.exists()


def test_a_recipe_that_a_package_ships_asks_for_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework import discovery
    from fairprune_framework.recipes.loading import read_shipped

    (tmp_path / "shipping").mkdir()
    (tmp_path / "shipping" / "theirs.yaml").write_text("trust_remote_code: true\n")
    entry = discovery.Entry(kind="recipe", name="theirs", distribution="d", version="1", value="shipping")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(discovery, "find", lambda *_: entry)
    with pytest.raises(UserError, match="No file may ask for that"):
        read_shipped("theirs")


def test_asked_for_by_name_it_runs_and_is_named(
    stranger: Stranger, fairprune: Callable[..., Any], quick: tuple[str, ...]
) -> None:
    """run.json, the report and the card say that code of others was allowed; the folder's recipe does not."""
    out = stranger.folder / "out"
    tokenizer = json.loads((stranger.model / "tokenizer_config.json").read_text())
    tokenizer.pop("auto_map")  # it names no tokenizer
    (stranger.model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    answer = fairprune("run", stranger.model, "--prompts", stranger.prompts, "--output", out, *quick, "--trust-remote-code")
    assert stranger.marker.exists(), answer.err
    assert answer.code == 0, answer.err
    assert json.loads((out / "run.json").read_text())["unsafe_options"] == {"trust_remote_code": True}
    assert "trust_remote_code" not in (out / "recipe.yaml").read_text()
    assert "Code of others was allowed" in (out / "report.html").read_text()
    assert "| code of others | allowed by trust_remote_code |" in (out / "model" / "README.md").read_text()
    stranger.marker.unlink()
    assert fairprune("ask", "overlap", out).code == 0  # llama's own code: theirs is not needed
    assert not stranger.marker.exists()


@pytest.mark.parametrize("words", ["prompts check PROMPTS --model MODEL --json", "audit MODEL --prompts PROMPTS --output OUT"])
def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(
    words: str, tmp_path: Path, llama: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, fairprune: Callable[..., Any]
) -> None:
    """transformers would ask on stdout; somebody there says yes to anything."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "m"
    shutil.copytree(llama, model)
    code = (
        "open('code-ran', 'w')\nfrom transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast): pass\n"
    )
    (model / "tokenization_mine.py").write_text(code)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "tokenization_mine.Mine"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    places = {"PROMPTS": prompts, "MODEL": model, "OUT": tmp_path / "out"}
    command = [places.get(word, word) for word in words.split()]
    answer = fairprune(*command)
    assert (answer.code, answer.out, len(answer.errors)) == (2, "", 1)
    assert answer.errors[0].endswith("give --trust-remote-code if you trust its source")
    assert not (tmp_path / "code-ran").exists()
    assert not (tmp_path / "out").exists()


# -- models ----------------------------------------------------------------------------------------------------------------


def as_pickle(model: Path) -> None:
    import torch

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def test_a_pickle_is_loaded_only_when_asked_for(tmp_path: Path, llama: Path) -> None:
    from fairprune_framework.models.loading import load_model

    shutil.copytree(llama, tmp_path / "m")
    as_pickle(tmp_path / "m")
    with pytest.raises(UserError, match=r"a pickle \(pytorch_model.bin\), which can run code.*--allow-pickle"):
        load_model(str(tmp_path / "m"))
    model, _ = load_model(str(tmp_path / "m"), allow_pickle=True)
    assert fp.Recipe(allow_pickle=True).unsafe == {"allow_pickle": True}
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../llama/model.safetensors", 5])
def test_an_index_names_safetensors_of_its_own_folder(tmp_path: Path, llama: Path, shard: object) -> None:
    from fairprune_framework.models.loading import load_model

    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is no safetensors file beside it"):
        load_model(str(tmp_path / "m"))


KERNEL = '"attn_implementation": "someone/kernel"'


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (KERNEL, "asks for compiled code from the hub"),
        (f'{KERNEL}, "time_step_limit": [0.0, Infinity]', "asks for compiled code from the hub"),
        (f'"text_config": {{{KERNEL}}}', "asks for compiled code from the hub"),
        (f'"attn_implementation": "sdpa", {KERNEL}', "the key 'attn_implementation' occurs twice"),
        (f'{KERNEL}, "x": "\\ud800"', "cannot load the model"),
    ],
)
def test_a_config_brings_no_kernel(fields: str, expected: str, tmp_path: Path, llama: Path) -> None:
    from fairprune_framework.models.loading import load_model

    shutil.copytree(llama, tmp_path / "m")
    config = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(f"{config.rstrip().removesuffix('}')}, {fields}}}")
    with pytest.raises(UserError, match=expected):
        load_model(str(tmp_path / "m"))


# -- restorations ----------------------------------------------------------------------------------------------------------


def header_of(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = run / "restoration.safetensors"
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    content = json.loads(header["fairprune"])
    change(content)
    save_file(load_file(path), path, metadata=header | {"fairprune": json.dumps(content)})
    record = json.loads((run / "run.json").read_text())
    record["stages"]["prune"]["files"] = seal(run, record["stages"]["prune"]["files"])
    (run / "run.json").write_text(json.dumps(record))


def first(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(content["parameters"].values()))
    return found


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "auto_map": lambda c: c["config"].update(auto_map={"AutoModel": "evil.Model"}),
    "class": lambda c: c["config"].update(__class__=5),
    "model_type": lambda c: c["config"].update(model_type="evil"),
    "another width": lambda c: c["config"].update(vocab_size=9),
    "a width that is text": lambda c: c["config"].update(intermediate_size="48"),
    "a width below what is left": lambda c: c["config"].update(intermediate_size=1),
    "a width that the model lacks": lambda c: c["config"].update(ffn_dim=64),
    "a unit out of range": lambda c: next(iter(c["units"].values()))[0].append(10**6),
    "a unit twice": lambda c: next(iter(c["units"].values()))[0].append(next(iter(c["units"].values()))[0][0]),
    "a unit below 0": lambda c: next(iter(c["units"].values()))[0].append(-1),
    "no units": lambda c: c["units"].popitem(),
    "an axis that is none": lambda c: first(c)["pieces"][0].update(axis=9),
    "another axis": lambda c: first(c)["pieces"][0].update(axis=1 - first(c)["pieces"][0]["axis"]),
    "a lead": lambda c: first(c)["pieces"][0].update(lead=[10**9]),
    "another start": lambda c: first(c)["pieces"][0].update(start=10**9),
    "a huge shape": lambda c: first(c).update(shape=[10**9, 10**9]),
    "another site": lambda c: first(c)["pieces"][0].update(site="nowhere"),
    "a parameter that is none": lambda c: c["parameters"].update(nowhere=c["parameters"].popitem()[1]),
    "hashes of numbers": lambda c: first(c).update(sha256=5),
    "no pieces": lambda c: first(c).update(pieces=[]),
    "a plan of other units": lambda c: c["plan"]["sites"].popitem(),
    "no plan": lambda c: c.pop("plan"),
    "a width rounded to nothing": lambda c: c.update(round_to=0),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_restoration_says_nothing_but_widths_and_places(
    what: str, tmp_path: Path, finished: Path, fairprune: Callable[..., Any]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    header_of(run, lambda content: void(HEADERS[what](content)))
    answer = fairprune("restore", run, "--output", tmp_path / "back")
    assert answer.code == 2, answer.err
    assert "damaged" in answer.err
    assert len(answer.errors) == 1
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def void(_: object) -> None:
    return None


# -- YAML ------------------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BOMB + "bias: *a9\n", "line 1 is no YAML: anchors and aliases"),
        ("bias: {plugin: variance, <<: *x}\n", "anchors and aliases"),
        ("bias: &x variance\n", "anchors and aliases"),
        ("columns: " + "[" * 5000 + "]" * 5000 + "\n", "more than 20 collections inside one another"),
        ("seed: " + "{a: " * 5000 + "}" * 5000 + "\n", "more than 20 collections inside one another"),
        ("".join(f"k{i}: {i}\n" for i in range(100_000)), "is larger than 256 KiB"),
        ("".join(f"k{i}: {i}\n" for i in range(10_000)), "has no option 'k0'"),
        ("seed: 0x" + "f" * 5000 + "\n", "a number beyond 64 bits"),
        ("seed: " + "9" * 5000 + "\n", "is no YAML"),
        ("budget: 2024-99-99\n", "month must be in 1..12"),
        ("bias: " + "x" * 100_000 + "\n", "no bias named"),
        ("x" * 1_000 + ": 1\n", "has no option"),
        ("columns: [" + "'yyyyyyyyyyyyyyyyyyy', " * 9_000 + "]\n", "The 'columns' of"),
        ("? [a, b]\n: 1\n", "is no YAML"),
        ("budget: !!python/name:os.system x\n", "could not determine a constructor"),
    ],
)
def test_a_small_recipe_stays_small(
    content: str, expected: str, tmp_path: Path, llama: Path, prompts: Path, fairprune: Callable[..., Any]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(content)
    answer = fairprune("audit", llama, "--prompts", prompts, "--recipe", recipe, "--output", tmp_path / "o")
    assert answer.code == 2
    assert expected in answer.err
    assert len(answer.errors) == 1
    assert len(answer.errors[0]) <= 520
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("log", ["os.system", "fairprune_framework.cli.main", "nowhere.Logger", "logger", ":", "x" * 5000])
def test_a_logger_is_checked_before_anything_is_written(
    log: str, tmp_path: Path, llama: Path, prompts: Path, fairprune: Callable[..., Any]
) -> None:
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "o", "--log", log)
    assert answer.code == 2
    assert "--log must be csv, tensorboard or the import path of a Lightning logger" in answer.err
    assert not (tmp_path / "o").exists()
