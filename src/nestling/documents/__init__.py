"""From a folder of documents to a corpus.jsonl of chunks that tell where in which file they stand."""
