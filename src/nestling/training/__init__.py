"""What both recipes share: the steps, memory, the run and its reports."""
