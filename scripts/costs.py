"""Estimate memory and GPU hours of recipes from their settings and the configuration of their model.

    python scripts/costs.py --config configs/costs/qwen3-0.6b.yaml
    python scripts/costs.py --config configs/costs/qwen3-8b.yaml --gpu a100-80 --mfu 0.3
    python scripts/costs.py --gpu l4 \\
        --launches '[{backend: one, num_processes: 1}, {backend: ddp, num_processes: 4}]' \\
        --stages '[{path: configs/rerank/qwen3-0.6b-lora.yaml, script: rerank, examples: 10000, query_tokens: 112,
                   document_tokens: 208}]'

No weights, no data and no GPU are needed. The estimate of memory is the one that training prints before its first step,
for a model with fake tensors; hours assume a fraction (--mfu) of the published speed of the GPU. docs/costs.md has the
tables.
"""

from nestling.config import CostsConfig, parse_config, run


def main() -> None:
    config = parse_config(CostsConfig, __doc__)
    from nestling.costs.stage import estimate_stage
    from nestling.costs.tables import GPUS, StageRow, advice, memory_table, work_table

    gigabytes, speed = GPUS[config.gpu]
    device_memory = (config.gpu_memory or gigabytes) * 1e9
    rows = [
        StageRow(stage, launch, estimate_stage(stage, launch, device_memory))
        for stage in config.stages
        for launch in config.launches
    ]
    print(f"gigabytes of each process, of {device_memory / 1e9:g} (by the estimator, not measured)")
    print(memory_table(rows, markdown=config.markdown))
    print(f"\nwork, at {config.mfu:.0%} of {speed / 1e12:g} teraflop a second (by the estimator, not measured)")
    print(work_table(rows, config.mfu * speed, markdown=config.markdown))
    for line in advice(rows):
        print(line)


if __name__ == "__main__":
    run(main)
