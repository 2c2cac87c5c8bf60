"""Strict configuration: frozen dataclasses that YAML files and command-line flags fill in.

Every field of a configuration is a key of the YAML file and a flag of the same name (`lora.r` is `--lora.r`).
Nothing here imports torch, so that `--help` answers at once.
"""

from nestling.config.arguments import parse_config, run
from nestling.config.check_data import CheckConfig
from nestling.config.checks import (
    require,
    require_dims,
    require_extra,
    require_model,
    require_new,
    require_unique,
)
from nestling.config.choose import ChooseConfig
from nestling.config.costs import CostsConfig, LaunchCosts, StageCosts
from nestling.config.datasets import CandidateData, DevData, TrainData
from nestling.config.documents import ReadDocumentsConfig
from nestling.config.embed import EmbedConfig, LossConfig, RefreshConfig
from nestling.config.evaluate import EvaluateConfig, details_path
from nestling.config.export import ExportConfig
from nestling.config.lora import LoraConfig
from nestling.config.merge import LayerWeights, MergeConfig
from nestling.config.mine import MineConfig
from nestling.config.onnx_check import OnnxCheckConfig
from nestling.config.outputs import new_outputs
from nestling.config.pipeline import PipelineConfig
from nestling.config.queries import EndpointConfig, MakeQueriesConfig
from nestling.config.report import ReportConfig
from nestling.config.rerank import RerankConfig, RerankLossConfig
from nestling.config.runs import read_run
from nestling.config.search_stores import SearchStoresConfig
from nestling.config.sections import read_section
from nestling.config.serve_check import ServeCheckConfig
from nestling.config.serve_eval import ServeEvalConfig
from nestling.config.split import SplitConfig
from nestling.config.test_set import MakeTestSetConfig
from nestling.config.training import TrainingConfig

__all__ = [
    "CandidateData",
    "CheckConfig",
    "ChooseConfig",
    "CostsConfig",
    "DevData",
    "EmbedConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LaunchCosts",
    "LayerWeights",
    "LoraConfig",
    "LossConfig",
    "MakeQueriesConfig",
    "MakeTestSetConfig",
    "MergeConfig",
    "MineConfig",
    "OnnxCheckConfig",
    "PipelineConfig",
    "ReadDocumentsConfig",
    "RefreshConfig",
    "ReportConfig",
    "RerankConfig",
    "RerankLossConfig",
    "SearchStoresConfig",
    "ServeCheckConfig",
    "ServeEvalConfig",
    "SplitConfig",
    "StageCosts",
    "TrainData",
    "TrainingConfig",
    "details_path",
    "new_outputs",
    "parse_config",
    "read_run",
    "read_section",
    "require",
    "require_dims",
    "require_extra",
    "require_model",
    "require_new",
    "require_unique",
    "run",
]
