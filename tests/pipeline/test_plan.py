"""The steps of a pipeline from its settings: inputs, outputs, commands and errors."""

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nestling.config import MakeQueriesConfig, PipelineConfig, parse_config
from nestling.config.queries import FREE
from nestling.pipeline.pipeline import select_steps
from nestling.pipeline.plan import Plan
from nestling.pipeline.step import Step, flat_settings
from scripts.make_queries import settings_of

WHOLE: dict[str, Any] = {
    "output_dir": "runs/p",
    "train": "pairs.jsonl",
    "dev": "beir",
    "test": ["beir"],
    "embedder_model": "base-embedder",
    "reranker_model": "base-reranker",
    "check": {"drop": ["repeated_rows"]},
    "mine": {"max_score_ratio": 0.9},
    "embed": {"matryoshka_dims": [32, 16], "loss": {"score_margin": None}},
    "merge": {"last": 2, "search": 9},
    "remine": {"retrievers": ["embedder"], "scorer": "embedder"},
    "score": {"judge": "teacher"},
    "rerank": {"suffix": "[SEP]", "prefix": ""},
    "evaluate": {"dims": [32, 16], "embedding_precision": ["float32", "int8"], "depth": 7},
    "export": {},
}
STEPS = Path("runs/p/steps")


def steps_of(**changes: Any) -> dict[str, Step]:
    return {step.name: step for step in Plan(PipelineConfig(**{**WHOLE, **changes}), Path()).steps}


def setting(step: Step, name: str) -> Any:
    """The value of a flag of its command."""
    (value,) = [word.split("=", 1)[1] for word in step.arguments if word.startswith(f"--{name}=")]
    return json.loads(value) if value[:1] in "[{" else value


def test_every_step_uses_the_latest_outputs() -> None:
    steps = steps_of()
    measured = ["bm25", "base", "embedder", "base-reranker", "reranker", "base-both", "both"]
    names = ["check", "mine", "embed", "merge", "remine", "score", "rerank"]
    exports = ["export-embedder", "export-reranker"]
    assert list(steps) == [*names, "choose", *(f"evaluate-{name}" for name in measured), *exports]
    cleaned, merged = f"{STEPS}/check/cleaned.jsonl", f"{STEPS}/merge/model"
    assert setting(steps["mine"], "data") == setting(steps["remine"], "data") == cleaned
    assert setting(steps["mine"], "retrievers") == ["bm25", "base-embedder"]
    assert setting(steps["embed"], "train") == [{"path": f"{STEPS}/mine/mined.jsonl", "split": "train"}]
    assert setting(steps["embed"], "dev") == [{"path": "beir", "split": "dev"}] == setting(steps["merge"], "dev")
    assert setting(steps["remine"], "retrievers") == [merged]
    assert setting(steps["score"], "data") == f"{STEPS}/remine/mined.jsonl"
    assert setting(steps["rerank"], "train") == [{"path": f"{STEPS}/score/scored.jsonl", "split": "train"}]
    assert setting(steps["rerank"], "dev") == [{"path": "beir", "split": "dev", "depth": 7}]
    assert setting(steps_of(evaluate={})["rerank"], "dev") == [{"path": "beir", "split": "dev"}]
    assert setting(steps["evaluate-embedder"], "model") == merged
    assert steps["export-embedder"].command == ["cp", "-r", merged, "runs/p/embedder"]
    choice = STEPS / "choose" / "choice.json"
    assert setting(steps["choose"], "models") == ["base-embedder", merged]
    assert (setting(steps["choose"], "data"), setting(steps["choose"], "dims")) == ("beir", [32])
    assert setting(steps["evaluate-both"], "rerank_weight") == str(choice)
    assert {each.kind: each.choice for each in steps.values()} == {"": None, "embedder": choice, "reranker": choice}
    assert Path(f"{STEPS}/embed/run/checkpoints") in steps["merge"].reads
    assert Path("beir") in steps["merge"].reads
    assert Path("teacher") in steps["score"].reads and Path("beir") in steps["rerank"].reads


def test_the_report_reads_results_details_and_parts_of_runs() -> None:
    reads = steps_of(report={})["report"].reads
    assert {STEPS / "evaluate-both" / name for name in ("both.json", "both.details.jsonl")} <= set(reads)
    assert STEPS / "embed" / "run" / "metrics.jsonl" in reads
    assert STEPS / "embed" / "run" not in reads


def test_a_server_is_measured_as_the_models_were() -> None:
    serve = {"command": "vllm serve {embedder} --port 8000", "url": "http://localhost:8000", "concurrency": 2}
    steps = steps_of(serve=serve, report={})
    assert list(steps)[-2:] == ["serve", "report"]
    step, model = steps["serve"], f"{STEPS}/merge/model"
    assert setting(step, "command") == f"vllm serve {model} --port 8000"
    assert setting(step, "model") == model
    assert setting(step, "dims") == [32, 16]
    assert setting(step, "embedding_precision") == ["float32", "int8"]
    embedder = f"{STEPS}/evaluate-embedder/embedder.json"
    assert setting(step, "expected") == [embedder]
    assert {Path(model), Path(embedder)} <= set(step.reads)
    results = setting(steps["report"], "results")
    assert results[-2:] == [f"{STEPS}/serve/served.json", f"{STEPS}/evaluate-both/both.json"]

    both = {**serve, "rerank_url": "http://localhost:8001", "rerank_command": "vllm serve {reranker} --port 8001"}
    step = steps_of(serve=both)["serve"]
    assert setting(step, "expected") == [embedder, results[-1]]
    assert setting(step, "rerank_weight") == f"{STEPS}/choose/choice.json"
    assert setting(step, "depth") == "7"
    assert STEPS / "rerank" / "run" / "final" in step.reads
    alone = steps_of(serve={"rerank_url": "http://localhost:8001"})["serve"]
    assert setting(alone, "expected") == [f"{STEPS}/evaluate-reranker/reranker.json"]
    assert setting(alone, "first_stage") == "bm25"


def test_without_its_section_a_step_is_not_done() -> None:
    steps = steps_of(**dict.fromkeys(("check", "merge", "remine", "score", "rerank", "reranker_model"), None))
    assert list(steps) == [
        *("mine", "embed", "choose", "evaluate-bm25", "evaluate-base", "evaluate-embedder"),
        "export-embedder",
    ]
    assert setting(steps["evaluate-embedder"], "model") == f"{STEPS}/embed/run/final"
    assert setting(steps["mine"], "data") == "pairs.jsonl"
    assert setting(steps_of(check={})["mine"], "data") == "pairs.jsonl", "without drop it only looks"


def test_settings_of_the_file_are_kept() -> None:
    steps = steps_of()
    assert "--suffix=[SEP]" in steps["rerank"].arguments
    assert "--prefix=" in steps["rerank"].arguments
    assert "--loss.score_margin=null" in steps["embed"].arguments
    assert steps["embed"].settings["loss.temperature"] == 0.05, "what is not given is in the settings too"
    evaluated = steps["evaluate-reranker"].arguments
    assert "--depth=7" in evaluated and not any(
        word.startswith(("--dims", "--embedding_precision")) for word in evaluated
    )
    assert setting(steps["evaluate-both"], "dims") == [32]


def test_what_an_embedder_reads_is_of_the_steps_with_one() -> None:
    prompts = {"query_prompt": "query: ", "document_prompt": ""}
    steps = steps_of(evaluate={"dims": "32,16", **prompts})
    for name in ("choose", "evaluate-both", "evaluate-base-both"):
        assert setting(steps[name], "dims") == [32]
        assert "--query_prompt=query: " in steps[name].arguments and "--document_prompt=" in steps[name].arguments
    assert not any("prompt" in word for word in steps["evaluate-reranker"].arguments)


def test_the_launcher_starts_training_and_mining() -> None:
    launcher = ["--config_file", "configs/accelerate/ddp.yaml"]
    launched = {
        name: step.program[1:] for name, step in steps_of(launcher=launcher).items() if step.program[1:2] == ("-m",)
    }
    start = ("-m", "accelerate.commands.launch", *launcher)
    assert launched == {
        "mine": (*start, "scripts/mine.py"),
        "embed": (*start, "train/embed.py"),
        "remine": (*start, "scripts/mine.py"),
        "rerank": (*start, "train/rerank.py"),
    }
    assert steps_of()["embed"].program == (sys.executable, "train/embed.py")


def test_launched_steps_read_the_files_of_the_launcher(tmp_path: Path) -> None:
    config, inner = tmp_path / "two.yaml", tmp_path / "zero.json"
    config.write_text(f"num_processes: 2\ndeepspeed_config: {{deepspeed_config_file: {inner}}}\n")
    inner.write_text("{}")
    for launcher in (["--config_file", str(config)], [f"--config_file={config}", "--num_processes", "2"]):
        steps = steps_of(launcher=launcher)
        assert {config, inner} <= set(steps["embed"].reads)
        assert config not in steps["check"].reads
    config.write_text("a: [")
    with pytest.raises(ValueError, match=r"two.yaml: not valid YAML: while parsing"):
        steps_of(launcher=[str(config)])


def test_queries_are_the_records_where_there_are_none() -> None:
    steps = steps_of(train=None, corpus="corpus.jsonl", queries={"model": "m", "endpoint": {"body": {"top_k": 20}}})
    assert next(iter(steps)) == "queries"
    assert setting(steps["queries"], "data") == "corpus.jsonl"
    assert '--endpoint.body={"top_k": 20}' in steps["queries"].arguments
    assert setting(steps["check"], "data") == f"{STEPS}/queries/pairs.jsonl"
    assert setting(steps["mine"], "corpus") == "corpus.jsonl"


@pytest.mark.parametrize(
    ("names", "evaluated"), [(["BertModel"], False), (["BertForSequenceClassification"], True), ([], True)]
)
def test_a_base_without_a_head_is_not_evaluated(names: list[str], evaluated: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
    steps = steps_of(reranker_model=str(tmp_path))
    assert ("evaluate-base-reranker" in steps, "evaluate-base-both" in steps) == (evaluated, evaluated)
    assert "evaluate-reranker" in steps and "evaluate-both" in steps


def test_a_base_on_the_hub_is_looked_at_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ModernBertForMaskedLM"]}')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda model, name: str(tmp_path / name))
    assert "evaluate-base-reranker" not in steps_of(reranker_model="not/here")


def test_the_chosen_weight_is_measured_with_the_models_that_it_is_for() -> None:
    def weighted(**changes: Any) -> set[str]:
        steps = steps_of(**changes)
        return {name for name, step in steps.items() if step.settings.get("rerank_weight") is not None}

    assert weighted() == {"evaluate-both"}
    without = {"embed": None, "merge": None, "remine": None}
    assert weighted(embedder_model=None, evaluate={}, **without) == {"evaluate-reranker"}
    assert weighted(embedder_model=None, evaluate={}, rerank=None, export=None, **without) == {"evaluate-base-reranker"}
    assert weighted(dev=None, merge=None) == set()


def test_a_reranker_is_made_of_the_trained_embedder() -> None:
    steps = steps_of(reranker_model="embedder")
    assert setting(steps["rerank"], "model") == f"{STEPS}/merge/model"
    assert setting(steps["choose"], "reranker") == f"{STEPS}/rerank/run/final"
    assert "evaluate-base-reranker" not in steps and "evaluate-both" in steps
    with pytest.raises(ValueError, match="reranker_model: embedder needs an embedder_model, and the section rerank"):
        steps_of(reranker_model="embedder", rerank=None)


def test_no_reranker_is_made_of_a_causal_embedder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(ValueError, match="is a causal language model, and a reranker is made of an embedder that is"):
        steps_of(embedder_model=str(tmp_path), reranker_model="embedder")


def test_a_reranker_in_another_shape_goes_through_the_script() -> None:
    step = steps_of(export={"shape": "classifier", "dtype": "bfloat16"})["export-reranker"]
    assert step.program[1:] == ("scripts/export.py",)
    assert setting(step, "model") == f"{STEPS}/rerank/run/final"
    assert setting(step, "shape") == "classifier"


def test_a_command_can_be_pasted_into_a_shell() -> None:
    for step in steps_of().values():
        words = shlex.split(str(step))
        assert words[1:] == step.command[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": {"learning_rat": 1}}, "embed: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"remine": {"max_score_rato": 1}}, "remine: unknown key 'max_score_rato'; did you mean 'max_score_ratio'?"),
        ({"mine": {"max_score_ratio": 2}}, "mine: max_score_ratio is 2.0, expected a share"),
        ({"rerank": {"loss": {"objectiv": "listwise"}}}, "rerank: unknown key 'objectiv'"),
        (
            {"embed": {"num_train_epochs": None}},
            "embed: num_train_epochs is 'None', expected a number",
        ),
        ({"embed": None}, "merge needs a trained embedder, thus embed"),
        ({"embed": None, "merge": None}, "remine needs a trained embedder, thus embed"),
        ({"embedder_model": None}, "embed needs an embedder_model, which it adapts"),
        ({"reranker_model": None}, "rerank needs a reranker_model, which it adapts"),
        ({"train": None}, "give either train, the records to train on, or the section queries"),
        ({"queries": {"model": "m"}}, "give either train, the records to train on, or the section queries"),
        ({"train": None, "queries": {"model": "m"}}, "queries needs a corpus to make them for"),
        ({"corpus": "c", "documents": {"folder": "d"}}, "give either corpus or documents, which makes one"),
        ({"test": []}, "evaluate and report need a test set"),
        ({"evaluate": None, "report": {}}, "report shows evaluations; give the section evaluate"),
        ({"test": ["a/beir", "b/beir"]}, "test: two datasets are called 'beir'"),
        ({"split": {}}, "give either dev or split, which makes one; dev_share: 0"),
        ({"split": {"dev_share": 0}}, "give either test or split, which makes one; test_share: 0"),
        ({"split": {}, "dev": None, "test": [], "test_split": "eval"}, "test_split is eval, and split writes test"),
        ({"split": {}, "dev": None, "test": [], "dev_split": "train"}, "dev_split is train, and split writes dev"),
        ({"split": {"test_share": 0}, "dev": None, "test": []}, "evaluate and report need a test set"),
        ({"split": {"dev_shar": 0}}, "split: unknown key 'dev_shar'; did you mean 'dev_share'?"),
        ({"merge": {"last": 3}}, "merge: last is 3, and embed keeps 2 checkpoints; set its save_total_limit to 3"),
        ({"merge": {"alphas": [0, 1]}}, "merge: alphas is filled in by the pipeline; remove it"),
        ({"embed": {"dry_run": True}}, "embed: dry_run is filled in by the pipeline; remove it"),
        (
            {"train": None, "corpus": "c.jsonl", "queries": {"model": "m", "sample": "sample.html"}},
            "queries: sample is filled in by the pipeline; remove it",
        ),
        ({"evaluate": {"rerank_weight": 0.5}}, "evaluate: rerank_weight is filled in by the pipeline; remove it"),
        ({"report": {"choice": "a.json"}}, "report: choice is filled in by the pipeline; remove it"),
        ({"reranker_model": "embedder", "mine": {"judge": "reranker"}}, "reranker is the latest reranker, and none is"),
        ({"score": {}}, "score: set judge to a reranker or CrossEncoder"),
        ({"only": "mine", "from_step": "mine"}, "give only or from_step, not both"),
    ],
)
def test_contradictory_settings_are_refused_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        steps_of(**changes)


def test_steps_are_chosen_by_name_or_section() -> None:
    steps = list(steps_of().values())
    before, chosen = select_steps(steps, "evaluate", None)
    assert {step.section for step in chosen} == {"evaluate"} and len(chosen) == 8
    assert [step.name for step in before][-1] == "rerank"
    assert select_steps(steps, None, "rerank")[1][0].name == "rerank"
    assert select_steps(steps, None, "rerank")[1][-1].name == "export-reranker"
    with pytest.raises(ValueError, match="no step is called train; this pipeline has check, mine, embed"):
        select_steps(steps, "train", None)


def test_every_yaml_loads_and_every_setting_is_explained() -> None:
    files = sorted((Path(__file__).parents[2] / "configs" / "pipeline").glob("*.yaml"))
    assert files
    for file in files:
        config = parse_config(PipelineConfig, "test", ["--config", str(file)])
        assert Plan(config, Path()).steps[-1].section == "report"
    for each in fields(PipelineConfig):
        assert f"    {each.name}: " in (PipelineConfig.__doc__ or ""), each.name


def test_every_setting_of_queries_is_one_that_answers_depend_on_or_none() -> None:
    """A journal is used again where only the others differ."""
    names = flat_settings(MakeQueriesConfig(data="d", model="m", dry_run=True))
    tops = {name if name.startswith("endpoint.") else name.partition(".")[0] for name in names}
    task = SimpleNamespace(personas=[], candidates=1)
    journaled = set(settings_of(MakeQueriesConfig(data="d", model="m", dry_run=True), task))
    asked = (journaled - {"prompts", "candidates", "endpoint"}) | {"num_personas", "endpoint.body"}
    assert not asked & set(FREE)
    assert asked | set(FREE) == tops | {"multi_hop", "endpoint.body"}


def test_documents_become_the_corpus_of_queries_and_mining() -> None:
    steps = steps_of(train=None, documents={"folder": "papers", "overlap": 16}, queries={"model": "m"})
    corpus = f"{STEPS}/documents/corpus/corpus.jsonl"
    assert list(steps)[:2] == ["documents", "queries"]
    assert setting(steps["queries"], "data") == setting(steps["mine"], "corpus") == corpus
    assert (setting(steps["documents"], "model"), setting(steps["documents"], "overlap")) == ("base-embedder", "16")
    assert steps["documents"].updates and {Path("papers"), Path("base-embedder")} <= set(steps["documents"].reads)
    assert setting(steps_of(documents={"folder": "papers"})["mine"], "corpus") == corpus


def test_sets_are_held_out_before_the_records_are_checked() -> None:
    steps = steps_of(split={"dev_share": 0.2}, dev=None, test=[])
    held_out = f"{STEPS}/split/held-out"
    assert list(steps)[:2] == ["split", "check"]
    assert setting(steps["split"], "data") == "pairs.jsonl"
    assert setting(steps["check"], "data") == f"{held_out}/train.jsonl"
    assert setting(steps["check"], "eval") == setting(steps["evaluate-base"], "data") == [held_out]
    assert setting(steps["embed"], "dev") == setting(steps["merge"], "dev") == [{"path": held_out, "split": "dev"}]
    assert setting(steps["choose"], "data") == held_out
    assert Path(f"{held_out}/train.jsonl") in steps["check"].reads and steps["split"].writes == (Path(held_out),)
    only_dev = steps_of(split={"test_share": "0"}, dev=None)
    assert setting(only_dev["evaluate-base"], "data") == ["beir"]
    assert setting(only_dev["choose"], "data") == held_out
