"""What `import nestling` gives."""

import subprocess
import sys

import pytest

import nestling
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker


def test_models_are_at_the_top() -> None:
    assert (nestling.Embedder, nestling.Reranker) == (Embedder, Reranker)
    with pytest.raises(AttributeError, match="module 'nestling' has no attribute 'Ranker'"):
        nestling.Ranker  # noqa: B018


def test_the_package_itself_imports_no_torch() -> None:
    code = "import sys, nestling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
