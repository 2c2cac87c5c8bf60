"""Code that comes with a model runs only where it is trusted, is recorded with the run, and is exported."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nestling.config import EmbedConfig
from nestling.config.datasets import TrainData
from nestling.export.embedder import export_embedder
from nestling.models import remote_code
from nestling.models.embedder import Embedder, read_width
from nestling.models.remote_code import code_files, is_trusted, trust_code
from nestling.training.exportable import require_exportable
from nestling.training.recorded_code import record_code, require_same_code
from tiny import tiny_bert
from trained import with_noise

TEXTS = ["find all files", "short", "def f(x):\n    return x"]
CONFIGURATION = """
from transformers import BertConfig


class OwnConfig(BertConfig):
    model_type = "own_bert"
"""
MODELING = """
from transformers import BertModel

from .configuration_own import OwnConfig


class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **more):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)
        output.last_hidden_state = output.last_hidden_state.flip(-1) * 2 + 1
        return output
"""
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_code, "_trusted", set())


def own_bert(folder: Path, *, model_type: str = "own_bert") -> Path:
    tiny_bert(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": model_type, "architectures": ["OwnModel"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    return folder


def settings(model: Path, output: Path) -> EmbedConfig:
    return EmbedConfig(
        model=str(model), output_dir=str(output), train=[TrainData("unused")], tuning="full", trust_remote_code=True
    )


def test_a_model_of_an_unknown_type_is_refused_without_the_flag(tmp_path: Path) -> None:
    folder = own_bert(tmp_path / "base")
    message = r"model_type 'own_bert' is none of transformers', and its code in configuration_own.py is not run unasked"
    for load in (Embedder.from_pretrained, read_width):
        with pytest.raises(ValueError, match=message + ".*--trust_remote_code true"):
            load(folder)


def test_of_a_known_type_transformers_own_class_is_used_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_bert(tmp_path / "base", model_type="bert")
    Embedder.from_pretrained(folder)
    said = capsys.readouterr().err
    assert f"{folder}: its code in configuration_own.py is not run, transformers' own bert is" in said


def test_trusted_code_is_named_with_its_hash_run_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_bert(tmp_path / "base")
    trust_code(folder)
    said = capsys.readouterr().err
    for name, text in (("configuration_own.py", CONFIGURATION), ("modeling_own.py", MODELING)):
        assert f"{folder}: its own code is run: {name}, sha256 {hashlib.sha256(text.encode()).hexdigest()}" in said
    require_exportable(settings(folder, tmp_path / "run"))
    embedder = with_noise(Embedder.from_pretrained(folder))
    assert type(embedder.backbone).__name__ == "OwnModel"
    report = export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    assert report.failures == []
    assert sorted(path.name for path in (tmp_path / "final").glob("*.py")) == [
        "configuration_own.py",
        "modeling_own.py",
    ]
    assert not is_trusted(tmp_path / "final")  # the next command has to be told again
    reference = SentenceTransformer(str(tmp_path / "final"), device="cpu", trust_remote_code=True)
    theirs = torch.tensor(reference.encode(TEXTS, normalize_embeddings=True))
    torch.testing.assert_close(embedder.encode(TEXTS, kind="query", max_length=32), theirs, atol=1e-5, rtol=0)
    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert 'SentenceTransformer("MODEL", trust_remote_code=True)' in card
    assert 'AutoModel.from_pretrained("MODEL", trust_remote_code=True)' in card
    assert "vllm serve" not in card


def test_a_resumed_run_has_the_same_code(tmp_path: Path) -> None:
    folder = own_bert(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    record_code(run, str(folder))
    assert not list(run.iterdir())
    trust_code(folder)
    record_code(run, str(folder))
    assert json.loads((run / "remote_code.json").read_text()).keys() == {"configuration_own.py", "modeling_own.py"}
    require_same_code(run, str(folder))
    (folder / "modeling_own.py").write_text(MODELING + "# another\n")
    with pytest.raises(ValueError, match=r"its code is not what .*run began with: modeling_own.py changed since"):
        require_same_code(run, str(folder))


def test_code_that_is_named_and_missing_or_elsewhere(tmp_path: Path) -> None:
    folder = own_bert(tmp_path / "base")
    (folder / "configuration_own.py").unlink()
    with pytest.raises(ValueError, match=r"no file configuration_own\.py, which auto_map names"):
        trust_code(folder)
    other = own_bert(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    named = {name: f"{other}--{value}" for name, value in AUTO_MAP.items()}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": named}))
    assert set(code_files(str(folder)).values()) == {other / "configuration_own.py", other / "modeling_own.py"}
    config["auto_map"] = {"AutoModel": "../modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no file \.\./modeling_own.py"):
        code_files(str(folder))


def test_a_class_that_takes_no_token_embeddings_is_refused(tmp_path: Path) -> None:
    folder = own_bert(tmp_path / "base")
    (folder / "modeling_own.py").write_text(
        MODELING.replace(", inputs_embeds=None, **more", ", **more").replace(", inputs_embeds=inputs_embeds", "")
    )
    # transformers keeps the class that it once loaded for a class of configurations
    (folder / "configuration_own.py").write_text(CONFIGURATION + "# another\n")
    trust_code(folder)
    with pytest.raises(ValueError, match="its own class OwnModel takes no inputs_embeds"):
        Embedder.from_pretrained(folder)
