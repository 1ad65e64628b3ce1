"""Bad input, given to the real command line: one clear line, exit code 2, no traceback, nothing written, no model changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BLACK, WHITE = "The Black nurse walked home .", "The white nurse walked home ."


@dataclass
class Hostile:
    """A user who gets it wrong, and what must be true afterwards."""

    call: Callable[..., Any]
    picture: Callable[..., Any]
    model: Path
    prompts: Path
    folder: Path
    """Where inputs are made; `output` lies in it and does not exist yet."""

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def run(self, *more: object, model: object = None, prompts: object = None, code: int = 2) -> str:
        model, prompts = self.model if model is None else model, self.prompts if prompts is None else prompts
        return self.refused("run", model, "--prompts", prompts, "--output", self.output, *more, code=code)

    def refused(self, *words: object, code: int = 2) -> str:
        watched = (self.output, self.model, self.prompts)
        before = [self.picture(path, times=True) for path in watched]
        answer = self.call(*words)
        lines = answer.err.splitlines()
        assert answer.code == code, answer
        assert len(lines) == 1, answer.err
        assert lines[0].startswith("fairprune: error: "), lines
        assert answer.out == ""
        assert [self.picture(path, times=True) for path in watched] == before
        return str(lines[0].removeprefix("fairprune: error: "))


@pytest.fixture
def hostile(fairprune: Any, snapshot: Any, llama: Path, prompts: Path, tmp_path: Path) -> Hostile:
    return Hostile(fairprune, snapshot, llama, prompts, tmp_path)


def copied(hostile: Hostile, name: str) -> Path:
    return Path(shutil.copytree(hostile.model, hostile.folder / name))


def with_weights(hostile: Hostile, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    folder = copied(hostile, name)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# -- models ----------------------------------------------------------------------------------------------------------------


def test_model_folder_that_is_none(hostile: Hostile) -> None:
    (hostile.folder / "empty").mkdir()
    assert "contains no config.json" in hostile.run(model=hostile.folder / "empty")


def test_model_folder_that_is_missing(hostile: Hostile) -> None:
    assert "there is no model folder" in hostile.run(model=hostile.folder / "nowhere")


def test_model_that_is_a_file(hostile: Hostile) -> None:
    assert "is a file" in hostile.run(model=hostile.prompts)


def test_model_name_that_nobody_knows(hostile: Hostile) -> None:
    assert "Did you mean 'smollm2-135m'?" in hostile.run(model="smollm2-135n")


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", "{"), ("config.json", "{}"), ("tokenizer.json", "{"), ("model.safetensors", "xyz")]
)
def test_model_with_a_broken_file(hostile: Hostile, name: str, content: str) -> None:
    folder = copied(hostile, "broken")
    (folder / name).write_text(content)
    assert "cannot load the model" in hostile.run(model=folder)


def test_model_cut_short(hostile: Hostile) -> None:
    folder = copied(hostile, "short")
    (folder / "model.safetensors").write_bytes((hostile.model / "model.safetensors").read_bytes()[:9000])
    assert "cannot load the model" in hostile.run(model=folder)


def test_model_that_lacks_a_weight_is_not_filled_with_random_numbers(hostile: Hostile) -> None:
    folder = with_weights(hostile, "lacking", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "its files contain no model.layers.1.mlp.up_proj.weight" in hostile.run(model=folder)


def test_model_whose_weights_do_not_fit_its_config(hostile: Hostile) -> None:
    folder = copied(hostile, "misfit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    text = hostile.run(model=folder)
    assert "model.layers.0.mlp.down_proj.weight is (32, 48), the config says (32, 64)" in text


def test_weights_that_are_not_finite_are_named(hostile: Hostile) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")

    folder = with_weights(hostile, "nan", spoil)
    assert "model.layers.1.mlp.up_proj.weight holds NaN or Inf" in hostile.run(model=folder)


@pytest.mark.parametrize(
    ("config", "options", "found"),
    [
        ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}, "mixer (MambaMixer): a state-space or recurrent block"),
        ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "tokens in the order (text, token)"),
    ],
)
def test_unsupported_architecture_says_what_was_found(
    hostile: Hostile, config: str, options: dict[str, Any], found: str
) -> None:
    import transformers

    from fairprune_framework.testing.tiny import tiny_tokenizer

    folder = hostile.folder / "other"
    made = getattr(transformers, config)(vocab_size=400, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text = hostile.run(model=folder)
    assert found in text


def test_an_adapter_that_does_not_fit(hostile: Hostile) -> None:
    assert "looked for 3-D parameters" in hostile.run("--architecture", "experts")


# -- plugins and options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bias", "varience"], "no bias named 'varience'. Did you mean 'variance'?"),
        (["--importance", "max-abs-weigth"], "Did you mean 'max-abs-weight'?"),
        (["--policy", "unform"], "Did you mean 'uniform'?"),
        (["--architecture", "gluu"], "Did you mean 'glu'?"),
        (["--bias.relativ", "true"], "has no option 'relativ'. Did you mean 'relative'?"),
        (["--bias.relative", "3"], "must be true or false. Got 3 instead."),
        (["--bias.relative"], "--bias.relative needs a value"),
        (["--bias.relative", "{"], "is no YAML"),
        (["--policy.weight", "heavy"], "must be a number. Got 'heavy' instead."),
        (["--policy.weight", "5"], "The 'weight' must be in [0, 1]. Got 5.0 instead."),
        (["--policy.normalisation", "minmx"], "must be one of minmax, rank"),
        (["--architecture.x", "1"], "no architecture is named"),
        (
            ["--dtype", "floot32"],
            "--dtype must be one of auto, float32, bfloat16, float16. Got 'floot32' instead. Did you mean",
        ),
        (["--accelerator", "abacus"], "--accelerator must be one of auto, cpu"),
        (["--accelerator", "mps"], "PyTorch finds none on this machine"),
        (["--seed", "x"], "--seed must be a whole number. Got 'x' instead."),
        (["--seed", "-1"], "'seed'"),
        (["--seed", str(2**70)], "'seed'"),
        (["--micro-batch-tokens", "-1"], "'micro_batch_tokens'"),
        (["--micro-batch-tokens", "4"], "--micro-batch-tokens 4 is less than the longest text of the prompts, "),
        (["--accelerator", "gpu"], "PyTorch finds none on this machine"),
        (["--calibration-tokens", "1"], "'calibration_tokens'"),
        (["--calibration-documents", "2"], "'calibration_documents'"),
        (["--max-perplexity-increase", "-0.1"], "must not be negative"),
        (["--round-to", "0"], "'round_to'"),
        (["--max-layer-share", "2"], "'max_layer_share'"),
        (["--protected-layers", "a"], "--protected-layers must be numbers"),
        (["--protected-layers", "7"], "names layer 7; the model's are 0 to 1"),
        (
            ["--operator", "scael"],
            "--operator must be one of remove, zero, scale, mean. Got 'scael' instead. Did you mean 'scale'?",
        ),
        (["--operator", "scale"], "The operator 'scale' needs a factor: a number or auto."),
        (["--factor", "0.5"], "The operator 'remove' takes no factor: only 'scale' does."),
        (["--operator", "scale", "--factor", "half"], "must be a number or 'auto'. Got 'half' instead."),
        (["--operator", "scale", "--factor", "1"], "must be a number in [0, 10], and not 1."),
        (["--operator", "scale", "--factor", "nan"], "must be a number in [0, 10], and not 1."),
        (["--split", "tempalte:0.5"], "The split must be"),
        (["--split", "template:2"], "must be in (0, 1)"),
        (["--chat-template"], "has no chat template"),
        (["--task-limit", "-1"], "--task-limit must be a number such as 400"),
        (["--task-limit", "boolq=5"], "--task-limit names 'boolq', which does not run"),
        (["--suite", ","], "--suite names no task"),
        (["--task-data", "nowhere"], "--task-data: there is no folder nowhere"),
        (["--against", "nowhere"], "--against compares two models, without a plan"),
        (["--columns", "prompt_1"], "--columns must be FIELD=COLUMN"),
        (["--overwritte"], "unrecognized arguments: --overwritte. Did you mean '--overwrite'?"),
        (["--budgte=0.1"], "Did you mean '--budget'?"),
        (["surplus"], "unrecognized arguments: surplus"),
    ],
)
def test_options(hostile: Hostile, words: list[str], expected: str) -> None:
    assert expected in hostile.run("--recipe", "relative-variance", *words)


@pytest.mark.parametrize("budget", ["0", "1", "20", "-1", "-0.5", "1.0", "nan", "inf"])
def test_fractions_lie_between_0_and_1(hostile: Hostile, budget: str) -> None:
    text = hostile.run("--budget", budget)
    assert "must be in (0, 1)" in text
    assert "'256n'" in text


@pytest.mark.parametrize("budget", ["abc", "5/foo", "1.5n", "-5n", "", "n", "/layer", "16/layers", "1e", "16 / layer"])
def test_budgets_that_are_no_budget(hostile: Hostile, budget: str) -> None:
    assert "The budget must be a fraction in (0, 1), a count such as '256n', or '16/layer'" in hostile.run("--budget", budget)


@pytest.mark.parametrize("budget", ["0n", "0/layer"])
def test_counts_are_at_least_1(hostile: Hostile, budget: str) -> None:
    assert "at least 1" in hostile.run("--budget", budget)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rnu"], "no command 'rnu'. Did you mean 'run'?"),
        (["run", "MODEL", "--prompts", "SET"], "needs a run folder: --output DIR"),
        (["score", "MODEL"], "holds no run"),
        (["run", "MODEL", "--output", "OUT"], "no prompt set is named"),
        (["run", "--prompts", "SET", "--output", "OUT"], "no model is named"),
        (["score"], "needs a run folder"),
        (["score", "--output", "OUT"], "run `fairprune audit` first"),
        (["plan", "--output", "OUT"], "run `fairprune score` first"),
        (["prune", "--output", "OUT"], "run `fairprune plan` first"),
        (["evaluate", "--output", "OUT"], "no prompt set is named"),
        (["plugins", "lst"], "invalid choice: 'lst'"),
        (["plugins", "list", "--laod"], "Did you mean '--load'?"),
        (["plugins", "list", "--bias.relative", "true"], "has no option --bias.relative"),
        (["plugins", "check", "bias", "varience"], "Did you mean 'variance'?"),
        (["prompts", "check", "SET"], "missing: --model"),
        (["prompts", "check", "SET", "--model", "MODEL", "--columns", "x"], "--columns must be FIELD=COLUMN"),
    ],
)
def test_commands(hostile: Hostile, words: list[str], expected: str) -> None:
    places = {"MODEL": hostile.model, "SET": hostile.prompts, "OUT": hostile.output}
    assert expected in hostile.refused(*[places.get(word, word) for word in words])


EMPTY = {
    **{
        name: f"run MODEL --prompts SET --output OUT --{name}"
        for name in (
            *("recipe", "revision", "split", "budget", "factor", "bias", "calibration", "log", "task-data", "task-limit"),
            *("decisions", "against", "cache"),
        )
    },
    "model": "doctor",
    "model, to read": "audit --prompts SET --output OUT",
    "model, to check": "prompts check SET --model",
    "prompts": "run MODEL --output OUT --prompts",
    "set": "prompts check --model MODEL",
    "output": "run MODEL --prompts SET --output",
    "output, a report": "report RUN --output",
    "output, restored": "restore RUN --output",
    "figures": "report RUN --figures",
    "restoration": "restore RUN --output OUT --restoration",
    "plan": "prune MODEL --output OUT --plan",
    "runs": "report RUN",
    "run": "explore",
    "unit": "inspect RUN --unit",
    "repo": "push RUN --repo",
    "grid": "ablate --output OUT",
    "host": "explore RUN --host",
    "source": "restore --output OUT",
}
"""What is empty -> the words before it: a variable of a shell that is not set, in quotes."""


@pytest.mark.parametrize("what", EMPTY)
def test_a_word_that_is_empty(hostile: Hostile, finished: Path, what: str) -> None:
    places = {"MODEL": hostile.model, "SET": hostile.prompts, "OUT": hostile.output, "RUN": finished}
    before = hostile.picture(finished, times=True)
    message = hostile.refused(*[places.get(word, word) for word in EMPTY[what].split()], "")
    assert what.partition(",")[0] in message.replace("_", "-")
    assert hostile.picture(finished, times=True) == before


def test_another_model_is_looked_for_before_one_is_measured(hostile: Hostile) -> None:
    words = ("evaluate", hostile.model, "--prompts", hostile.prompts, "--output", hostile.output, "--against")
    assert "nowhere" in hostile.refused(*words, hostile.folder / "nowhere")
    from fairprune_framework.testing.tiny import tiny_tokenizer

    other, tokenizer = copied(hostile, "other"), tiny_tokenizer()
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(other)
    assert "has another tokenizer than" in hostile.refused(*words, other)


# -- prompt sets -----------------------------------------------------------------------------------------------------------


def line(**fields: Any) -> str:
    return json.dumps({"prompt_1": BLACK, "prompt_2": WHITE, "category": "race", **fields}) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", "", "is an empty prompt set"),
        ("blank.jsonl", "\n \n", "is an empty prompt set"),
        ("one.jsonl", line() + line(prompt_2=None), "one.jsonl, line 2: contrast 'row-2' has 1 variant(s)"),
        ("equal.jsonl", line(prompt_2=BLACK), "equal.jsonl, line 1: contrast 'row-1' has equal variants"),
        ("broken.jsonl", line() + "\n" + '{"prompt_1": "x"\n', "broken.jsonl, line 3: not JSON"),
        ("array.jsonl", "[1, 2]\n", "line 1: must be a JSON object. Got an array instead."),
        ("column.csv", "promt_1,prompt_2\na,b\n", "missing column 'prompt_1': found 'promt_1', 'prompt_2'"),
        ("cells.csv", "prompt_1,prompt_2\na,b\nc\n", "cells.csv, line 3: has 1 cell(s)"),
        ("latin.csv", "prompt_1,prompt_2\nné,b\n".encode("latin-1"), "latin.csv, line 2: not UTF-8"),
        ("latin.jsonl", line().encode() + b'{"prompt_1": "\xe9"}\n', "latin.jsonl, line 2: not UTF-8"),
        ("empty.parquet", "PAR1", "not a Parquet file"),
        ("prompts.docx", "PK", "unknown file type '.docx'"),
        ("long.jsonl", line(prompt_1=BLACK * 99, prompt_2=WHITE * 99), "the model's context holds 512"),
        ("same-id.jsonl", line(id="a") + line(id="a", prompt_1="A man ."), "the id 'a' is taken already by"),
        ("half-split.jsonl", line(split="select") + line(prompt_1="A man ."), "give it to all or to none"),
        ("split.jsonl", line(split="train"), "must be 'select', 'heldout', 'heldout-words' or null. Got 'train' instead."),
        ("controls.jsonl", line(control=True), "no contrast may feed scores"),
        ("heldout.jsonl", line(split="heldout"), "no contrast may feed scores"),
        ("legitimate.jsonl", line(legitimate=True), "variant 'Black' of contrast 'row-1' has no right next words"),
        ("right.jsonl", line(right_1="his"), "variant 'white' of contrast 'row-1' has no right next words"),
        ("neutral.jsonl", line(control=True, neutral_of="age/t"), "neutral of 'age/t', which is no demographic template"),
        ("both.jsonl", line(split="select", template_id="a") + line(split="heldout", template_id="b"), "both sides"),
    ],
)
def test_prompt_sets(hostile: Hostile, name: str, content: str | bytes, expected: str) -> None:
    assert expected in hostile.run(prompts=hostile.file(name, content))


@pytest.mark.parametrize(
    "field",
    ["id", "category", "template_id", "context", "split", "neutral_of", "attribute_1", "prompt_1", "right_1", "control"],
)
@pytest.mark.parametrize("text", ["\\ud800", "a\\udc00b", "\\ud83d\\u0020\\ude00"])
def test_half_a_surrogate_pair_in_any_field(hostile: Hostile, field: str, text: str) -> None:
    content = line(**{"attribute_1": "Black", "attribute_2": "white", field: "TEXT"}).replace("TEXT", text)
    message = hostile.run(prompts=hostile.file("half.jsonl", line() + content))
    assert "half.jsonl, line 2: " in message
    assert field in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (line(**{f"prompt_{'9' * 5000}": "x"}), "has a number that no variant has"),
        (line(**{f"right_{'9' * 5000}": "x"}), "has a number that no variant has"),
        ('{"prompt_1": %s}' % ("9" * 5000), "line 1: not JSON: Exceeds the limit"),
        ('{"prompt_1": "a", "prompt_1": "b", "prompt_2": "c"}', "line 1: not JSON: the key 'prompt_1' occurs twice"),
        ('{"prompt_1": "a", "prompt_2": "b", "category": NaN}', "line 1: not JSON: NaN is not JSON"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: not JSON: nested too deeply"),
        (line(category=["x"] * 10_000), "the field 'category' must be a text"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_numbers_keys_and_depths_of_json(hostile: Hostile, suffix: str, content: str, expected: str) -> None:
    if suffix == "json":
        content, expected = f"[{content}]", expected.removeprefix("line 1: ")
    assert expected in hostile.run(prompts=hostile.file(f"prompts.{suffix}", content))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("text", [b"ok", b"\xff\xfe"], "not UTF-8"),
        ("date32", [0, 2**31 - 1], "a value beyond range"),
        ("date64", [0, 2**62], "a value beyond range"),
        ("timestamp", [0, 2**50], "a value beyond range"),
        ("zone", [0, 1], "a value beyond range: 'Nowhere/City'"),
        ("binary", [b"a", b"b"], "the field 'category' must be a text"),
    ],
)
def test_values_of_parquet_that_python_cannot_hold(hostile: Hostile, kind: str, values: list[Any], expected: str) -> None:
    import pyarrow
    import pyarrow.parquet

    if kind == "text":
        raw = pyarrow.array(values, pyarrow.binary())
        column = pyarrow.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    elif kind == "binary":
        column = pyarrow.array(values, pyarrow.binary())
    else:
        times = {"timestamp": pyarrow.timestamp("s"), "zone": pyarrow.timestamp("s", "Nowhere/City")}
        target = times[kind] if kind in times else getattr(pyarrow, kind)()
        column = pyarrow.array(values, pyarrow.int32() if kind == "date32" else pyarrow.int64()).view(target)
    table = pyarrow.table({"prompt_1": [BLACK, BLACK], "prompt_2": [WHITE, WHITE], "category": column})
    pyarrow.parquet.write_table(table, hostile.folder / "prompts.parquet")
    message = hostile.run(prompts=hostile.folder / "prompts.parquet")
    assert "prompts.parquet" in message
    assert expected in message


def test_a_column_that_occurs_twice(hostile: Hostile) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array([text]) for text in (BLACK, WHITE, "race", "age")]
    table = pyarrow.Table.from_arrays(columns, names=["prompt_1", "prompt_2", "category", "category"])
    pyarrow.parquet.write_table(table, hostile.folder / "prompts.parquet")
    assert "the column 'category' occurs twice" in hostile.run(prompts=hostile.folder / "prompts.parquet")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nowhere.jsonl", "no such prompt set"), ("builtin:xx", "there are: en"), ("x" * 300, "no such prompt")],
)
def test_prompt_sets_that_are_not_there(hostile: Hostile, name: str, expected: str) -> None:
    assert expected in hostile.run(prompts=name)


def test_a_folder_that_is_no_data_set_says_so_without_progress_bars(hostile: Hostile) -> None:
    assert "cannot load the dataset" in hostile.run(prompts=hostile.model)


def test_skip_lists_what_cannot_be_used_and_goes_on(hostile: Hostile) -> None:
    content = line(id="good") + "{broken\n" + line(id="alone", prompt_2=None) + line(id="long", prompt_1=BLACK * 99)
    source = hostile.file("some.jsonl", content)
    answer = hostile.call("audit", hostile.model, "--prompts", source, "--output", hostile.output, "--bad-prompts", "skip")
    assert answer.code == 0, answer.err
    assert "3 contrasts skipped" in answer.err
    left_out = [json.loads(text) for text in (hostile.output / "skipped.jsonl").read_text().splitlines()]
    assert [item["where"] for item in left_out] == [f"{source}, line 2", f"{source}, line 3", "long"]
    assert all(item["reason"] for item in left_out)
    used = [json.loads(text)["id"] for text in (hostile.output / "contrasts.jsonl").read_text().splitlines()]
    assert used == ["good"]
    record = json.loads((hostile.output / "run.json").read_text())
    assert record["contrasts"] == {"used": 1, "skipped": 3, "others": {}}


def test_skip_does_not_hide_that_nothing_is_left(hostile: Hostile) -> None:
    source = hostile.file("none.jsonl", "{broken\n" + line(prompt_2=None))
    text = hostile.run("--bad-prompts", "skip", prompts=source)
    assert "all 2 were skipped" in text
    assert f"{source}, line 1" in text


# -- output folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_output_that_holds_other_files_is_never_touched(hostile: Hostile, overwrite: tuple[str, ...]) -> None:
    hostile.output.mkdir()
    (hostile.output / "thesis.tex").write_text("years of work")
    assert "is not a run folder" in hostile.run(*overwrite)


def test_output_that_is_a_file(hostile: Hostile) -> None:
    hostile.output.write_text("x")
    assert "is not a run folder" in hostile.run("--overwrite")


def test_output_below_a_file(hostile: Hostile) -> None:
    file = hostile.file("file", "x")
    text = hostile.refused("run", hostile.model, "--prompts", hostile.prompts, "--output", file / "run")
    assert "file is a file" in text


IMPOSSIBLE = {
    "long name": ("x" * 300, "File name too long"),
    "long name below": ("not/there/" + "x" * 300, "File name too long"),
    "long path": ("o/" * 2500, "File name too long"),
    "loop": ("loop", "symbolic links"),
    "below a loop": ("loop/o", "symbolic links"),
    "link to nothing": ("dangling", "is a link to nothing"),
    "below a file": ("file/o", "file is a file"),
    "NUL": ("a\0b", "a character that no name may have"),
    "surrogate": ("a\ud800b", "a character that no name may have"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
@pytest.mark.parametrize("command", ["run", "restore", "ablate"])
def test_an_output_that_cannot_be_made(
    hostile: Hostile, finished: Path, what: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = hostile.folder / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    (place / "file").write_text("x")
    grid = hostile.file("grid.yaml", "budget: [0.1]\n")
    words: dict[str, tuple[object, ...]] = {
        "run": ("run", hostile.model, "--prompts", hostile.prompts),
        "restore": ("restore", finished),
        "ablate": ("ablate", grid, "--model", hostile.model, "--prompts", hostile.prompts),
    }
    name, expected = IMPOSSIBLE[what]
    before = sorted(place.iterdir())
    assert expected in hostile.refused(*words[command], "--output", name)
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("what", ["long name", "loop", "below a file", "NUL"])
def test_a_cache_that_cannot_be_made(hostile: Hostile, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = hostile.folder / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    (place / "loop").symlink_to("loop")
    (place / "file").write_text("x")
    name, expected = IMPOSSIBLE[what]
    assert expected in hostile.run("--recipe", "relative-variance", "--cache", name)


@pytest.mark.parametrize("axis", ["bias", "importance", "policy", "operator", "budget", "seed", "controls"])
@pytest.mark.parametrize("value", ["null", "[null]"])
def test_an_axis_without_a_value(hostile: Hostile, axis: str, value: str) -> None:
    if (axis, value) == ("controls", "null"):
        return  # no controls
    grid = hostile.file("grid.yaml", f"{axis}: {value}\n")
    words = ("ablate", grid, "--model", hostile.model, "--prompts", hostile.prompts, "--output", hostile.output)
    assert "holds an empty value" in hostile.refused(*words)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "fairprune-run/1"}', '{"format": "fairprune-run/9", "stages": {}}'])
def test_output_with_a_broken_record(hostile: Hostile, content: str) -> None:
    hostile.output.mkdir()
    (hostile.output / "run.json").write_text(content)
    assert "run.json" in hostile.run("--overwrite")


def test_output_that_holds_another_run(hostile: Hostile, finished: Path, quick: tuple[str, ...]) -> None:
    shutil.copytree(finished, hostile.output)
    assert "already holds the stage 'plan' with other options (budget)" in hostile.run(*quick, "--budget", "0.2")
    assert "other options (bias)" in hostile.run(*quick, "--bias", "gate-up-difference")
    other = copied(hostile, "other")
    assert "other options (model)" in hostile.run(*quick, model=other)
    assert "calibration" in hostile.run(*quick, "--calibration", hostile.folder / "nowhere.txt")


# -- plans -----------------------------------------------------------------------------------------------------------------

SITE = "model.layers.0.mlp"


def plan_of(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "plan.json").read_text()))


def prune(hostile: Hostile, plan: object, *more: object, model: Path | None = None) -> str:
    return hostile.refused("prune", model or hostile.model, "--plan", plan, "--output", hostile.output, *more)


def test_a_plan_for_another_model(hostile: Hostile, finished: Path) -> None:
    def nudge(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.5

    other = with_weights(hostile, "nudged", nudge)
    assert "the plan is for another model" in prune(hostile, finished / "plan.json", model=other)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "fairprune-plan/1"}'])
def test_a_broken_plan(hostile: Hostile, content: str) -> None:
    assert "plan.json" in prune(hostile, hostile.file("plan.json", content))


def test_a_plan_that_is_not_there(hostile: Hostile) -> None:
    assert "there is no plan file" in prune(hostile, hostile.folder / "plan.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sites": {SITE: [48]}}, "names unit 48 of model.layers.0.mlp, which has 48"),
        ({"sites": {SITE: [-1]}}, "not negative"),
        ({"sites": {SITE: [1, 1]}}, "distinct"),
        ({"sites": {SITE: [2, 1]}}, "sorted"),
        ({"sites": {SITE: [1.5]}}, "must be whole numbers. Got 1.5 instead."),
        ({"sites": {SITE: [True]}}, "must be whole numbers. Got True instead."),
        ({"sites": {SITE: list(range(48))}}, "at least one must remain"),
        ({"sites": {"model.layers.9.mlp": [1]}}, "'model.layers.9.mlp', which the model does not have"),
        ({"sites": None}, "no complete plan"),
        ({"model": {"name": "x"}}, "no complete plan"),
        ({"requested": 5}, "no complete plan"),
        ({"operator": "scael"}, "must be one of remove, zero, scale, mean. Got 'scael' instead."),
        ({"operator": "scale"}, "must be a number in [0, 10], and not 1. Got None instead."),
        ({"operator": "scale", "factor": True}, "must be a number in [0, 10], and not 1. Got True instead."),
        ({"factor": 0.5}, "does not scale"),
        ({"sites": {SITE: [1]}, "categories": {SITE: ["x"]}}, "the field 'categories.model.layers.0.mlp.0'"),
        ({"category_names": [1]}, "the field 'category_names.0'"),
        ({"requested": {"units": "many"}}, "the field 'requested.units'"),
        ({"achieved": {"per_layer": {"0": -1}}}, "the field 'achieved.per_layer.0'"),
        ({"reason": 5}, "the field 'reason'"),
    ],
)
def test_a_plan_that_makes_no_sense(hostile: Hostile, finished: Path, change: dict[str, Any], expected: str) -> None:
    plan = hostile.file("plan.json", json.dumps(plan_of(finished) | {"categories": {}} | change))
    assert expected in prune(hostile, plan)


def test_a_plan_whose_categories_are_of_other_units(hostile: Hostile, finished: Path) -> None:
    plan = plan_of(finished)
    assert plan["categories"]
    plan["sites"][next(iter(plan["categories"]))].pop()
    assert "'categories'" in prune(hostile, hostile.file("plan.json", json.dumps(plan)))


def test_a_good_plan_with_bad_options(hostile: Hostile, finished: Path) -> None:
    plan = finished / "plan.json"
    assert "no calibration file" in prune(hostile, plan, "--calibration", hostile.folder / "nowhere.txt")
    assert "Did you mean 'variance'?" in prune(hostile, plan, "--bias", "varience")
    assert "must be in (0, 1)" in prune(hostile, plan, "--budget", "20")


# -- recipes and calibration text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("budget: 0.1\nbias: [variance\nseed: 1\n", "recipe.yaml, line 3 is no YAML"),
        ("budget: 0.1\nbudget: 0.2\n", "the key 'budget' occurs twice"),
        ("budgte: 0.1\n", "has no option 'budgte'. Did you mean 'budget'?"),
        ("- budget\n", "must hold a mapping of options. Got list instead."),
        ("", "must hold a mapping of options"),
        ("seed: null\n", "The 'seed'"),
        ("split: null\n", "The 'split'"),
        ("micro_batch_tokens: many\n", "must be a whole number. Got 'many' instead."),
        ("budget: 20\n", "must be in (0, 1)"),
        ("bias: {relative: true}\n", "must be a plugin's name or {plugin: name, option: value}"),
        ("bias: {plugin: variance, relativ: true}\n", "Did you mean 'relative'?"),
        ("budget: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        (b"budget: \xff\n", "cannot read the recipe file"),
    ],
)
def test_recipe_files(hostile: Hostile, content: str | bytes, expected: str) -> None:
    assert expected in hostile.run("--recipe", hostile.file("recipe.yaml", content))


def test_recipes_that_are_not_there(hostile: Hostile) -> None:
    assert "no recipe named 'defualt'. Did you mean 'default'?" in hostile.run("--recipe", "defualt")
    assert "no recipe file" in hostile.run("--recipe", hostile.folder / "nowhere.yaml")
    assert "cannot read the recipe file" in hostile.run("--recipe", f"{hostile.folder}/")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", "", "yields 0 documents"),
        ("short.txt", "The man walked home .", "yields 1 documents"),
        ("empty.jsonl", "", "yields 0 documents"),
        ("field.jsonl", '{"text": "a b"}\n\n{"txt": "a"}\n', "line 3: expected an object with the field 'text'"),
        ("type.jsonl", '{"text": 5}\n', "line 1: the field 'text' must be a string"),
        ("latin.txt", b"\xff\xff", "is not UTF-8"),
    ],
)
def test_calibration_files(hostile: Hostile, name: str, content: str | bytes, expected: str) -> None:
    assert expected in hostile.run("--calibration", hostile.file(name, content))


def test_calibration_file_that_is_not_there(hostile: Hostile) -> None:
    assert "there is no calibration file" in hostile.run("--calibration", hostile.folder / "nowhere.txt")


def test_names_go_to_an_ascii_terminal(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "Prüfung")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "fairprune_framework", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Pr\\" in done.stdout
    assert "fung/report.html" in done.stdout


# -- through the installed command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "MODEL", "--prompts", "SET", "--output", "OUT", "--budget", "-1"], "must be in (0, 1)"),
        (["run", "EMPTY", "--prompts", "SET", "--output", "OUT"], "contains no config.json"),
    ],
)
def test_in_a_process_of_its_own(hostile: Hostile, words: list[str], expected: str) -> None:
    (hostile.folder / "empty").mkdir()
    places = {"MODEL": hostile.model, "SET": hostile.prompts, "OUT": hostile.output, "EMPTY": hostile.folder / "empty"}
    command = [sys.executable, "-m", "fairprune_framework", *[str(places.get(word, word)) for word in words]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONWARNINGS": "default"})
    assert done.returncode == 2
    lines = [text for text in done.stderr.splitlines() if "Warning" not in text and not text.startswith("  ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fairprune: error: ")
    assert expected in lines[0]
    assert done.stdout == ""
    assert not hostile.output.exists()
