"""Hold out a dev and a test set from training data, so that no query or positive of theirs is one of training's.

    python scripts/split.py --data pairs.jsonl --output my-set
    python scripts/split.py --data pairs.csv --columns query=question,positive=body --output my-set
    python scripts/split.py --data intents.csv --group_by queries --output my-set
    python train/embed.py --model BAAI/bge-small-en-v1.5 --train my-set/train.jsonl --dev my-set --output_dir runs/mine
    python scripts/evaluate.py --model runs/mine/final --data my-set

Rows of one query or one positive, or of near duplicates of them, stay together; negatives of training may be positives
of dev and test. The folder has train.jsonl, and dev and
test in the BEIR layout, where the documents of all rows are searched. Rows that are added at the end of the data later
move no row to another split.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import SplitConfig, parse_config, require, require_extra, run

if TYPE_CHECKING:
    import numpy as np

    from nestling.data_checks.held_out import SplitSize
    from nestling.data_checks.rows import SourceRows

# A group of more than this share of the rows makes the shares of the splits a matter of chance.
LARGE = 0.1


def main() -> None:
    config = parse_config(SplitConfig, __doc__)
    require_extra("splitting data", "hygiene", "rensa", "regex")

    from nestling.data_checks.groups import assign, group_rows
    from nestling.data_checks.held_out import split_sizes, write_held_out
    from nestling.data_checks.near_duplicates import NearDuplicateCriterion
    from nestling.data_checks.rows import open_rows
    from nestling.export.serving_files import new_directory, refuse_existing
    from nestling.records.load import require_splits

    output, progress = Path(config.output), sys.stderr.isatty()
    refuse_existing(output)
    require_splits(config.data, config.split)
    rows = open_rows(config.data, split=config.split, columns=config.columns, progress=progress)
    require(not rows.graded, f"{config.data} holds graded pairs; expected queries with their positives")
    criterion = NearDuplicateCriterion(config.threshold, config.shingle)
    groups = group_rows(rows, criterion, documents=config.group_by == "documents", progress=progress)
    split = assign(rows, groups, dev_share=config.dev_share, test_share=config.test_share, seed=config.seed)
    sizes = split_sizes(rows, groups, split)
    show(rows, groups, sizes)
    require_rows(config, sizes)
    with new_directory(output) as folder:
        write_held_out(rows, groups, split, folder)
    print(f"{output}: train.jsonl to train on, and the folder itself for --dev and for scripts/evaluate.py --data")


def show(rows: "SourceRows", groups: "np.ndarray", sizes: "list[SplitSize]") -> None:
    """Print what was read, the sizes of the splits, and a warning of a large group."""
    import numpy as np

    from nestling.console import table

    print(rows.summary)
    cells = [[each.split, each.groups, each.rows, each.queries, each.positives] for each in sizes]
    print(table(["split", "groups", "rows", "queries", "positives"], cells))
    largest = int(np.unique(groups, return_counts=True)[1].max())
    if largest > LARGE * len(rows):
        print(
            f"warning: one group has {largest:,} of the {len(rows):,} rows, so that the shares are rough; a higher "
            "--threshold takes fewer texts for near duplicates, --group_by queries looks at queries only"
        )


def require_rows(config: SplitConfig, sizes: "list[SplitSize]") -> None:
    """Raise ValueError for a split that is to have rows and has none."""
    shares = [1.0, config.dev_share, config.test_share]
    empty = [each.split for each, share in zip(sizes, shares, strict=True) if share and not each.positives]
    groups = sum(each.groups for each in sizes)
    require(
        not empty,
        f"{' and '.join(empty)} would be empty: the {groups:,} groups are too few for these shares; raise them, give "
        "another --seed, or keep only rows of one query together with --group_by queries",
    )


if __name__ == "__main__":
    run(main)
