"""Steps that run a script, with the settings of a section of the pipeline's configuration."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nestling.config import PipelineConfig, read_section, require
from nestling.pipeline.step import Step, files_in, flags, flat_settings, paths_in

# Settings that a section must not have: the pipeline sets them, or the step would write nothing for later ones.
FILLED_IN = {
    "documents": ("output",),
    "queries": ("data", "output", "sample", "dry_run"),
    "split": ("data", "output", "split"),
    "check": ("data", "split", "eval", "eval_split", "output", "report"),
    "mine": ("data", "split", "corpus", "output", "audit", "sweep"),
    "embed": ("model", "output_dir", "train", "resume", "dry_run"),
    "merge": ("models", "run", "output", "results", "alphas", "plot"),
    "remine": ("data", "split", "corpus", "output", "audit", "sweep"),
    "score": ("data", "split", "output", "retrievers", "sweep", "audit"),
    "rerank": ("model", "output_dir", "train", "resume", "dry_run"),
    "evaluate": ("data", "split", "model", "first_stage", "reranker", "rerank_weight", "output", "details", "mteb"),
    "export": ("output", "checkpoint", "adapter", "base", "model"),
    "serve": ("data", "split", "model", "first_stage", "rerank_weight", "expected", "output", "details"),
    "report": ("output", "runs", "results", "config_file", "choice"),
}
SCRIPTS = {
    "documents": "scripts/read_documents.py",
    "queries": "scripts/make_queries.py",
    "split": "scripts/split.py",
    "check": "scripts/check_data.py",
    "mine": "scripts/mine.py",
    "merge": "scripts/merge.py",
    "remine": "scripts/mine.py",
    "score": "scripts/mine.py",
    "evaluate": "scripts/evaluate.py",
    "export": "scripts/export.py",
    "serve": "scripts/serve_eval.py",
    "report": "scripts/report.py",
}


@dataclass(frozen=True)
class ScriptSteps:
    """Makes the steps that run a script.

    Args:
        config: Settings of the pipeline.
        scripts: The folder that contains scripts/ and train/, as commands name it.
    """

    config: PipelineConfig
    scripts: Path

    def step(
        self,
        section_name: str,
        cls: type,
        given: Mapping[str, object],
        *,
        writes: list[Path],
        parts: Mapping[Path, list[Path]] | None = None,
        name: str | None = None,
        section: Mapping[str, Any] | None = None,
        script: str | None = None,
        resumes: bool = False,
        updates: bool = False,
        launched: bool = False,
    ) -> Step:
        """Make a step that runs a script.

        Args:
            section_name: Section of the configuration.
            cls: Settings class of the script.
            given: Settings that the pipeline fills in; of these a section may override `dev`.
            writes: Files and folders that the step writes.
            parts: Folder in the settings -> the parts of it that the step reads, if not all.
            name: Name of the step; by default that of the section.
            section: Settings to use instead of those in the configuration.
            script: Path of the script; by default that of the section.
            resumes: Whether the command resumes after a kill.
            updates: Whether it brings its earlier outputs up to date.
            launched: Whether the launcher starts the script.
        """
        section = getattr(self.config, section_name) if section is None else section
        for key in FILLED_IN[section_name]:
            require(
                key not in getattr(self.config, section_name),
                f"{section_name}: {key} is filled in by the pipeline; remove it",
            )
        filled = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        settings = {**filled, **section}
        config: Any = read_section(section_name, cls, settings)
        launcher = ["-m", "accelerate.commands.launch", *self.config.launcher] if launched else []
        launcher = launcher if self.config.launcher else []
        program = (sys.executable, *launcher, str(self.scripts / (script or SCRIPTS[section_name])))
        arguments = tuple(flags(cls, settings, asdict(config)))
        values = flat_settings(config)
        inputs = [path for path in paths_in(values) if path not in writes]
        reads = [each for path in inputs for each in (parts or {}).get(path, [path])]
        reads += files_in(launcher)
        step = Step(name or section_name, section_name, program, arguments, values, tuple(reads), tuple(writes))
        return replace(step, resumes=resumes, updates=updates)
