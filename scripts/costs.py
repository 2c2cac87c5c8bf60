"""Estimate memory and GPU hours of recipes from their settings and the configuration of their model.

    python scripts/costs.py --config configs/costs/qwen3-0.6b.yaml
    python scripts/costs.py --config configs/costs/qwen3-8b.yaml --gpu a100-80 --mfu 0.3
    python scripts/costs.py --gpu l4 \\
        --launches '[{backend: one, num_processes: 1}, {backend: ddp, num_processes: 4}]' \\
        --stages '[{path: configs/rerank/qwen3-0.6b-lora.yaml, script: rerank, examples: 10000, query_tokens: 112,
                   document_tokens: 208}]'

No weights, no data and no GPU are needed. The estimate of memory is the one that training prints before its first step,
for a model with fake tensors. Hours follow from the share of the GPU's published speed that the traffic of a layer
leaves, a model and no measurement, or from the one given (--mfu). docs/costs.md has the tables.
"""

from nestling.config import CostsConfig, parse_config, run


def main() -> None:
    config = parse_config(CostsConfig, __doc__)
    from nestling.costs.speed import share_of_peak
    from nestling.costs.stage import estimate_stage
    from nestling.costs.tables import GPUS, StageRow, advice, memory_table, work_table
    from nestling.costs.traffic import ROOFLINES

    device_memory = (config.gpu_memory or GPUS[config.gpu]) * 1e9
    rows = []
    for stage in config.stages:
        for launch in config.launches:
            estimate = estimate_stage(stage, launch, device_memory)
            share = config.mfu or share_of_peak(stage, launch, estimate, config.gpu)
            rows.append(StageRow(stage, launch, estimate, share))
    published = ROOFLINES[config.gpu].published
    print(f"gigabytes of each process, of {device_memory / 1e9:g} (by the estimator, not measured)")
    print(memory_table(rows, markdown=config.markdown))
    source = "by a model of its traffic" if config.mfu is None else "as given"
    print(f"\nwork, at a share {source} of {published / 1e12:g} teraflop a second (by the estimator, not measured)")
    print(work_table(rows, published, markdown=config.markdown))
    for line in advice(rows):
        print(line)


if __name__ == "__main__":
    run(main)
