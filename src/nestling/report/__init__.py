"""Reports: one self-contained HTML page, without scripts, of training runs and evaluation results."""
