"""Processes that a rank of a launch starts."""

from nestling.distributed.launch import outside_launch


def test_a_process_outside_the_launch_has_none_of_its_settings() -> None:
    parent = {"PATH": "/bin", "LOCAL_RANK": "1", "RANK": "1", "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_FSDP": "1"}
    environment = outside_launch(parent)
    assert environment.keys() == {"PATH", "TOKENIZERS_PARALLELISM", "PYTHONPATH"}
