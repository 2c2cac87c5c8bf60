"""Every launch configuration, against what accelerate, DeepSpeed and the recipe make of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from nestling.backends.prepare import configure_fsdp, configure_zero
from nestling.distributed.launch import require_launch

ROOT = Path(__file__).parents[2]
LAUNCHES = {
    "one-gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "ddp-cpu": DistributedType.MULTI_GPU,
    "zero1": DistributedType.DEEPSPEED,
    "zero2": DistributedType.DEEPSPEED,
    "zero2-offload": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "fsdp2": DistributedType.FSDP,
    "multi-node": DistributedType.MULTI_GPU,
    "ddp-64": DistributedType.MULTI_GPU,
    "zero2-64": DistributedType.DEEPSPEED,
    "fsdp2-64": DistributedType.FSDP,
}
COUNTS = {"one-gpu": 1, "ddp-cpu": 2, "multi-node": 16, "ddp-64": 64, "zero2-64": 64, "fsdp2-64": 64}  # in the files
STAGES = {"zero1": 1, "zero2": 2, "zero2-offload": 2, "zero3": 3}


def launch_file(name: str) -> Path:
    return ROOT / "configs" / "accelerate" / f"{name}.yaml"


def arguments(name: str, *more: str) -> Any:
    """The launcher's own view of a file and further flags."""
    argv = ["--config_file", str(launch_file(name)), *more, "train/embed.py"]
    return _validate_launch_command(launch_command_parser().parse_args(argv))[0]


def plugin(name: str, monkeypatch: pytest.MonkeyPatch) -> DeepSpeedPlugin:
    """What a rank makes of the launcher's environment."""
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    monkeypatch.chdir(ROOT)
    args = arguments(name, "--num_processes", "2")
    args.deepspeed_fields_from_accelerate_config = ",".join(
        load_config_from_file(str(launch_file(name))).deepspeed_config
    )
    for variable, value in prepare_deepspeed_cmd_env(args)[1].items():
        if variable.startswith("ACCELERATE_"):
            monkeypatch.setenv(variable, value)
    made = DeepSpeedPlugin()
    made.set_mixed_precision("no")
    return made


def accelerator_with(**state: Any) -> Accelerator:
    return cast(Accelerator, SimpleNamespace(state=SimpleNamespace(**state)))


def with_deepspeed(settings: dict[str, Any]) -> Accelerator:
    return accelerator_with(deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    else:
        yield value


def test_every_file_is_tested() -> None:
    assert {path.stem for path in (ROOT / "configs" / "accelerate").iterdir()} == LAUNCHES.keys()
    assert {path.stem for path in (ROOT / "configs" / "deepspeed").iterdir()} == STAGES.keys()


@pytest.mark.parametrize("name", LAUNCHES)
def test_accelerate_knows_every_key(name: str) -> None:
    config = load_config_from_file(str(launch_file(name)))  # refuses unknown ones outside the sections
    assert config.distributed_type == LAUNCHES[name]
    known = vars(launch_command_parser().parse_args(["train/embed.py"]))
    for section in (config.deepspeed_config, config.fsdp_config):
        assert section.keys() <= known.keys()


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_launcher_is_told_how_to_start(name: str) -> None:
    count = () if name in COUNTS else ("--num_processes", "8")
    args = arguments(name, *count)
    assert args.num_processes == COUNTS.get(name, 8)
    assert args.use_deepspeed == (LAUNCHES[name] == DistributedType.DEEPSPEED)
    assert args.use_fsdp == (LAUNCHES[name] == DistributedType.FSDP)
    assert args.multi_gpu == (LAUNCHES[name] == DistributedType.MULTI_GPU)
    assert args.mixed_precision == "no"


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero2-offload", "zero3", "fsdp2"])
def test_the_launcher_asks_for_the_number_of_gpus(name: str) -> None:
    with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
        arguments(name)


@pytest.mark.parametrize("name", ["ddp", "zero2", "fsdp2", "multi-node"])
def test_every_type_runs_on_several_machines(name: str) -> None:
    flags = ["--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", "--main_process_port", "29500"]
    args = arguments(name, *flags, "--main_process_ip", "first")
    if LAUNCHES[name] == DistributedType.DEEPSPEED:
        args.deepspeed_fields_from_accelerate_config = ""
        command, _ = prepare_deepspeed_cmd_env(args)
        assert command is None, "ranks start by torchrun's agents, not over ssh"
    else:
        prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    meeting = args.master_addr + ":" + args.master_port if args.same_network else args.rdzv_endpoint
    assert meeting == "first:29500"


@pytest.mark.parametrize("name", ["zero2", "fsdp2"])
def test_files_for_64_gpus_differ_in_the_launch_alone(name: str) -> None:
    small, large = (load_config_from_file(str(launch_file(each))) for each in (name, f"{name}-64"))
    assert (large.deepspeed_config, large.fsdp_config) == (small.deepspeed_config, small.fsdp_config)
    assert (large.num_machines, large.num_processes, large.main_process_port) == (8, 64, 29500)


def test_fsdp_of_version_2_wraps_layers_that_the_recipe_names() -> None:
    variables = prepare_multi_gpu_env(arguments("fsdp2", "--num_processes", "8"))
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    assert variables["FSDP_VERSION"] == "2"
    assert variables["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert variables["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false", "else transformers loads on the first rank alone"
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in variables


@pytest.mark.parametrize("name", STAGES)
def test_deepspeed_accepts_what_the_recipe_fills_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plugin(name, monkeypatch)
    settings = made.deepspeed_config
    configure_zero(accelerator_with(deepspeed_plugin=made), 8, 0.5)
    assert "auto" not in list(leaves(settings))

    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(dict(settings))
    assert config.zero_optimization_stage == STAGES[name]
    assert config.gradient_clipping == 0.5
    assert (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (8, 1)
    assert not config.float16_config.enabled
    assert not config.bfloat16_config.enabled
    offloaded = config.zero_config.offload_optimizer
    assert (offloaded is not None and offloaded.device == "cpu") == (name == "zero2-offload")
    assert config.zero_config.gather_16bit_weights_on_model_save == (name == "zero3")


@pytest.mark.parametrize("name", STAGES)
def test_deepspeeds_files_leave_to_the_recipe_what_is_its_own(name: str) -> None:
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
    assert settings.keys() == {
        "zero_optimization",
        "gradient_clipping",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "configured with ZeRO stage 0; use 1, 2 or 3, or DDP without DeepSpeed"),
        ({"zero_optimization": {"stage": 0}}, "configured with ZeRO stage 0; use 1, 2 or 3, or DDP without DeepSpeed"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, "configuration enables bf16; remove it"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, "configuration enables fp16; remove it"),
        (
            {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0},
            "gradient_clipping is 1.0 in DeepSpeed's configuration and max_grad_norm 0.5 in the recipe's",
        ),
    ],
)
def test_settings_of_deepspeed_that_train_otherwise_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure_zero(with_deepspeed(settings), 8, 0.5)


def test_fsdp_of_version_1_is_refused() -> None:
    accelerator = accelerator_with(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    with pytest.raises(ValueError, match="FSDP version 1; set fsdp_version: 2"):
        configure_fsdp(accelerator, cast(Any, None))


@pytest.mark.parametrize(
    ("variables", "world_size", "backend", "message"),
    [
        ({"WORLD_SIZE": "2"}, 1, "NO", "the launcher started 2 processes, but they form a group of 1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 1, "MULTI_CPU", "asked for DEEPSPEED, but Accelerate gives MULTI_CPU"),
        ({"ACCELERATE_USE_FSDP": "true"}, 1, "NO", "asked for FSDP, but Accelerate gives NO; FSDP needs GPUs"),
    ],
)
def test_a_launch_that_would_train_otherwise_is_refused(
    variables: dict[str, str], world_size: int, backend: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        require_launch(world_size, backend)
